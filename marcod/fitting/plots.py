"""Curves of a training as an image and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

POINTS: Final = {
    "loss": ("loss", "training", "#888888"),
    "validation_loss": ("loss", "validation", "#0b6e4f"),
    "validation_accuracy": ("share", "accuracy", "#2b6cb0"),
    "validation_crystal_average_precision": ("share", "average precision of crystals", "#b7410e"),
}


def write(folder: Path, curve: Sequence[dict[str, float]], title: str, about: dict[str, Any]) -> None:
    """Write ``curve.json``, and ``curve.png`` when there are points; ``about`` is written into it."""
    text = json.dumps({**about, "curve": list(curve)}, indent=2) + "\n"
    (folder / "curve.json").write_text(text, encoding="utf-8")
    if not curve:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = dict(zip(("loss", "share"), figure.subplots(1, 2), strict=True))
    for name, (panel, label, colour) in POINTS.items():
        points = [(point["epoch"], point[name]) for point in curve if name in point]
        if points:
            panels[panel].plot(*zip(*points, strict=True), label=label, color=colour, marker=".", linewidth=1.4)
    _dress(panels, title)
    figure.savefig(folder / "curve.png", dpi=120)


def _dress(panels: dict[str, Any], title: str) -> None:
    panels["loss"].set_title(title, loc="left", fontsize=10)
    for name, panel in panels.items():
        panel.set_xlabel("passes over the images")
        panel.set_ylabel("log loss" if name == "loss" else "share of validation drops")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)
        else:
            panel.set_visible(False)
    if panels["share"].lines:
        panels["share"].set_ylim(0, 1)

"""Evaluation as one self-contained HTML page: tables, and plots as images inside the page.

The page has no script and no outside resource, every text is escaped, and the same evaluation gives the same page.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marcod import __version__
from marcod.evaluate import tables
from marcod.evaluate.results import PAPER_PERCENT, Evaluation, Ranking

TEMPLATE: Final = Path(__file__).with_name("page.html")

GREEN, OCHRE, BLUE, GREY = "#1b7f4d", "#b8860b", "#2b6cb0", "#8a8f98"
_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Without it every page would carry other names inside its images.
    "svg.hashsalt": "marcod",
}


def html(of: Evaluation) -> str:
    """Render the whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    plots = [
        ("Confusion, percent of the true class", _plot(lambda axes: _confusion(axes, of), 4.6, 4.0)),
        ("ROC curves", _plot(lambda axes: _roc(axes, of), 4.6, 4.0)),
        ("Precision and recall of crystals", _plot(lambda axes: _precision_recall(axes, of), 4.6, 4.0)),
        ("Reliability diagram", _plot(lambda axes: _reliability(axes, of), 4.6, 4.0)),
        ("By imager", _plot(lambda axes: _imagers(axes, of), 9.4, 2.9)),
    ]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        of=of,
        accuracy=tables.percent(of.accuracy.value),
        facts=tables.facts(of),
        warnings=tables.warnings(of),
        tables=tables.all_tables(of),
        plots=plots,
        program=f"marcod {__version__}",
    )


def _plot(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """Encode a figure of width and height in inches as a data URL."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _confusion(axes: Axes, of: Evaluation) -> None:
    shares = [[cell or 0.0 for cell in row] for row in of.confusion.percent]
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=115)
    names = of.confusion.classes
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    for row, cells in enumerate(of.confusion.percent):
        for column, cell in enumerate(cells):
            text = tables.DASH if cell is None else f"{cell:.1f} %"
            colour = "white" if (cell or 0) > 60 else "black"
            axes.text(column, row - 0.18, text, ha="center", va="center", color=colour, weight="bold")
            below = f"{of.confusion.counts[row][column]}\npaper {PAPER_PERCENT[row][column]:.1f}"
            axes.text(column, row + 0.2, below, ha="center", va="center", color=colour, size=7)
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)


def _roc(axes: Axes, of: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for ranking, colour in ((of.crystals, GREEN), (of.precipitate, OCHRE)):
        _roc_of(axes, ranking, colour)
    axes.plot([], [], "o", color="black", markersize=5, label="at the paper's recalls")
    axes.plot([], [], "o", color="black", markersize=5, fillstyle="none", label="the paper")
    axes.set(xlabel="false positive rate", ylabel="recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="lower right", fontsize=8)


def _roc_of(axes: Axes, ranking: Ranking, colour: str) -> None:
    name = ranking.drop_class.value
    if not ranking.roc:
        axes.plot([], [], color=colour, label=f"{name}: not defined on this set")
        return
    axes.plot(*zip(*ranking.roc, strict=True), color=colour, label=f"{name}, AUC {tables.decimals(ranking.auc.value)}")
    recalls = [at.recall for at in ranking.operating]
    here: list[Any] = [at.false_positive_rate for at in ranking.operating]
    axes.plot(here, recalls, "o", color=colour, markersize=5)
    axes.plot([at.paper for at in ranking.operating], recalls, "o", color=colour, markersize=5, fillstyle="none")


def _precision_recall(axes: Axes, of: Evaluation) -> None:
    ranking = of.crystals
    total = ranking.positives + ranking.negatives
    if ranking.precision_recall:
        area = tables.decimals(ranking.average_precision.value)
        points = zip(*ranking.precision_recall, strict=True)
        axes.plot(*points, color=GREEN, label=f"Crystals, average precision {area}")
        axes.axhline(ranking.positives / total, color=GREY, linewidth=1, linestyle="--", label="by chance")
    for detection, marker in zip(of.detection, ("s", "D"), strict=True):
        if detection.recall.value is not None and detection.precision.value is not None:
            rule = detection.rule if detection.threshold is None else f"threshold {detection.threshold:g}"
            axes.plot(detection.recall.value, detection.precision.value, marker, color=BLUE, markersize=6, label=rule)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize=8)


def _reliability(axes: Axes, of: Evaluation) -> None:
    bins = [b for b in of.calibration.bins if b.count]
    most = max(b.count for b in bins)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    width = bins[0].high - bins[0].low
    counts = [0.25 * b.count / most for b in bins]
    axes.bar([b.low for b in bins], counts, width, align="edge", color="#dfe3e8", label=f"counts, highest {most}")
    sure, right = [b.sure or 0.0 for b in bins], [b.right or 0.0 for b in bins]
    axes.plot(sure, right, "o-", color=BLUE, markersize=4, label=f"ECE {of.calibration.error:.3f}")
    axes.set(xlabel="highest probability, mean of the bin", ylabel="share right", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize=8)


def _imagers(axes: Axes, of: Evaluation) -> None:
    shown: list[tuple[str, str, list[float | None]]] = [
        ("accuracy", BLUE, [p.accuracy.value for p in of.imagers]),
        ("crystal AUC", GREEN, [p.crystal_auc for p in of.imagers]),
        ("crystal recall at the threshold", OCHRE, [p.crystal_recall.value for p in of.imagers]),
        ("crystal precision at the threshold", GREY, [p.crystal_precision.value for p in of.imagers]),
    ]
    width = 0.8 / len(shown)
    for number, (label, colour, values) in enumerate(shown):
        places = [index - 0.4 + (number + 0.5) * width for index in range(len(values))]
        bars = axes.bar(places, [value or 0.0 for value in values], width * 0.92, color=colour, label=label)
        texts = [tables.DASH if value is None else f"{value:.2f}" for value in values]
        axes.bar_label(bars, texts, fontsize=7, padding=1)
    axes.set_xticks(range(len(of.imagers)), [f"{p.name or 'not named'} ({p.counted})" for p in of.imagers])
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.08), xlim=(-0.6, max(len(of.imagers) - 0.4, 2.0)))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)

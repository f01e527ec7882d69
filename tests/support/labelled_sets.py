"""Labelled images without files, and what a model might say of them, made from a seed."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from marcod.domain import CLASSES, DropClass
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.model.bundle import BundleRecord, Threshold

FOUR = tuple(c.value for c in CLASSES)
SIX = {"clear": 0, "crystals": 1, "skin": 2, "light": 3, "dry": 0, "needles": 1}


def record(classes: tuple[str, ...] = FOUR, threshold: float = 0.3, temperature: float = 1.0) -> BundleRecord:
    """A record that needs no bundle; six classes are those of ``SIX`` and fold as it says."""
    folding = (
        {c: CLASSES[SIX[c]] for c in SIX} if len(classes) == len(SIX) else dict(zip(classes, CLASSES, strict=True))
    )
    return BundleRecord(
        name="made",
        version=1,
        classes=classes,
        temperature=temperature,
        training_data="none",
        licence="Apache-2.0",
        synthetic=True,
        notice="Made of <random> numbers.",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture={"family": "none"},
        preprocessing={"size": 1},
        folding=folding,
        threshold=Threshold(crystal=threshold, measured_on="nothing"),
    )


def labelled(label: DropClass, name: str = "a", **more: object) -> Labelled:
    """One image that is a drop, a unit and a group of its own unless told."""
    values = {"own": None, "source": "", "imager": "", "drop": name, "inspection": "1", "unit": name, "group": name}
    return Labelled(Path(f"{name}.jpg"), label, **(values | more))  # type: ignore[arg-type]


def said(count: int = 400, seed: int = 1, classes: int = 4, fold: tuple[int, ...] = (0, 1, 2, 3)) -> Predictions:
    """Logits that are often right; two imagers, three sources, four drops a group."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, classes, count)
    logits = rng.normal(0, 1, (count, classes)) + 1.5 * np.eye(classes)[own]
    images = tuple(
        labelled(
            CLASSES[fold[own[i]]],
            f"d{i}",
            own=int(own[i]),
            source=f"lab {i % 3}",
            imager=("Minstrel", "Rock <Imager>")[i % 2],
            group=f"p{i // 4}",
        )
        for i in range(count)
    )
    return Predictions(images, logits, ())

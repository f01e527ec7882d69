"""Simulated labs for the gate: drops that are hard for every model, and models of any skill. Synthetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, DropClass, TrainedOn
from marcod.evaluate import metrics, paired
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.model import probabilities
from marcod.model.bundle import BundleRecord, Threshold

CRYSTALS = CLASSES.index(DropClass.CRYSTALS)
PREVALENCE = (0.4, 0.25, 0.1, 0.25)
"""Of clear, crystals, other and precipitate among labelled drops."""

Judged = tuple[BundleRecord, Predictions]


def record(version: int, threshold: float, temperature: float = 1.0) -> BundleRecord:
    """A version of which only the threshold and the temperature matter."""
    return BundleRecord(
        name="lab",
        version=version,
        classes=tuple(c.value for c in CLASSES),
        temperature=temperature,
        training_data="none",
        licence="Apache-2.0",
        trained_on=(TrainedOn.RENDERED,),
        synthetic=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture={"family": "none"},
        preprocessing={"size": 1},
        folding={c.value: c for c in CLASSES},
        threshold=Threshold(crystal=threshold, measured_on="nothing"),
    )


def image(number: int, label: int, plate: str, source: str = "rock", **more: Any) -> Labelled:
    """One image of a drop of its own, unless told."""
    values: dict[str, Any] = {"drop": f"d{number}", "inspection": "1", "unit": f"{source} d{number}"} | more
    return Labelled(
        file=Path(f"/{source}/{number}.jpg"),
        label=CLASSES[label],
        own=None,
        source="" if source == paired.BASE else source,
        imager=paired.BASE if source == paired.BASE else "rigaku",
        group=plate,
        **values,
    )


@dataclass(frozen=True)
class Lab:
    """Labelled test drops; ``labels`` int [n], ``noise`` float [n, 4] is what makes a drop hard for every model."""

    images: tuple[Labelled, ...]
    labels: NDArray[np.intp]
    noise: NDArray[np.float64]

    def logits(self, skill: float | NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """What a model of some skill says: half of what it gets wrong is the drop's fault, half its own."""
        own = np.random.default_rng(seed).normal(0, 1, self.noise.shape)
        strength = np.broadcast_to(skill, len(self.labels))[:, np.newaxis]
        logits: NDArray[np.float64] = strength * np.eye(4)[self.labels] + np.sqrt(0.5) * (self.noise + own)
        return logits

    def judged(self, version: int, skill: float | NDArray[np.float64], seed: int, recall: float = 0.95) -> Judged:
        """A model with a threshold for this recall, set on other drops."""
        usual = float(np.mean(skill))
        return self.by(version, self.logits(skill, seed), threshold_of(usual, recall))

    def mislabelled(self, share: float, seed: int) -> "Lab":
        """The same drops with so many labels drawn at random; ``labels`` stay the truth that models see."""
        rng = np.random.default_rng(seed)
        wrong = rng.random(len(self.labels)) < share
        said = np.where(wrong, rng.integers(0, 4, len(self.labels)), self.labels)
        images = tuple(replace(p, label=CLASSES[word]) for p, word in zip(self.images, said, strict=True))
        return replace(self, images=images)

    def by(self, version: int, logits: NDArray[np.float64], threshold: float, temperature: float = 1.0) -> Judged:
        return record(version, threshold, temperature), Predictions(self.images, logits, ())


def lab(seed: int, plates: int = 12, of_plate: int = 20, sources: Sequence[str] = ("rock",)) -> Lab:
    """Plates that differ from one another, taken in turn by the sources."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, plates * of_plate, p=PREVALENCE)
    plate = np.arange(len(labels)) // of_plate
    noise = 0.9 * rng.normal(0, 1, (len(labels), 4)) + 0.45 * rng.normal(0, 1, (plates, 4))[plate]
    images = tuple(
        image(i, int(label), f"p{plate[i]}", sources[plate[i] % len(sources)]) for i, label in enumerate(labels)
    )
    return Lab(images, labels.astype(np.intp), noise)


@cache
def threshold_of(skill: float, recall: float) -> float:
    """What validation on many other drops would choose."""
    rng = np.random.default_rng(99)
    logits = skill * np.eye(4)[[CRYSTALS] * 4000] + rng.normal(0, 1, (4000, 4))
    return metrics.recall_threshold(probabilities.softmax(logits)[:, CRYSTALS], recall)

"""Recalibration: another temperature and crystal threshold for the same weights.

Weights and golden images stay the same. A recall is promised only when finite samples allow it. Sources: temperature
scaling, Guo et al., arXiv 1706.04599; conformal risk control, Angelopoulos et al., arXiv 2208.02814; tolerance limits
by the binomial tail (Clopper-Pearson).
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CRYSTALS, DropClass
from marcod.errors import MarcodError
from marcod.evaluate import metrics
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.evaluate.results import calibration
from marcod.model import bundle, probabilities
from marcod.model.bundle import BundleRecord, Golden, Threshold
from marcod.model.predictor import Predictor

DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """Results of a temperature and threshold on the set; ``flagged`` is the share of hits among all counted."""

    temperature: float
    threshold: float
    calibration_error: float
    log_loss: float
    crystals_missed: int
    flagged: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted temperature and threshold, their promise, and the state before and after.

    ``recall`` is promised: on average over new drops where ``confidence`` is None, else for this threshold with that
    confidence. ``crystals`` are counted one a drop, ``misses`` of them are below the threshold.
    """

    recall: float
    confidence: float | None
    crystals: int
    misses: int
    allowed_misses: int
    data: str
    counted: int
    before: CalibrationState
    after: CalibrationState

    @property
    def promise(self) -> str:
        """The sentence in a bundle on what its threshold was measured on."""
        how = "expected of new drops" if self.confidence is None else f"with {_percent(self.confidence)} confidence"
        return (
            f"{self.crystals} crystals, one a drop, of {self.data}: {self.misses} below the threshold; "
            f"recall of at least {_percent(self.recall)} {how}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def crystals_needed(recall: float, confidence: float | None) -> int:
    """Return the least number of crystals for a promise: as many as carry it when none is missed.

    ``recall`` and ``confidence`` are below 1. The rule for an expected recall is (misses + 1) / (n + 1) <= 1 - recall.
    """
    if confidence is None:
        return math.ceil(1 / (1 - recall) - 1 - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log(recall) - 1e-9)


def allowed_misses(crystals: int, recall: float, confidence: float | None) -> int:
    """Return how many crystals may lie below a threshold that keeps the promise; -1 when it cannot be kept.

    With a confidence: the most misses that would be no more likely than 1 - confidence if the recall were lower.
    """
    if confidence is None:
        return min(crystals - 1, math.floor((crystals + 1) * (1 - recall) + 1e-9) - 1)
    most = -1
    while most + 1 < crystals and metrics.binomial_at_most(most + 1, crystals, 1 - recall) <= 1 - confidence + 1e-12:
        most += 1
    return most


def fit(
    predictions: Predictions, record: BundleRecord, data: str, *, recall: float, confidence: float | None = None
) -> Fit:
    """Fit the temperature by log loss, and the highest threshold that keeps the promise at it.

    Raises as :func:`require_crystals`.
    """
    misses = require_crystals(predictions.images, recall, confidence)
    counted, crystals = predictions.counted(record), _one_a_drop(predictions, record)
    temperature = metrics.fit_temperature(counted.logits, counted.labels, bundle.folding(record))
    threshold = metrics.threshold_missing(_crystal_scores(crystals, record, temperature), misses, DECIMALS)
    before, after = (
        _state(counted, crystals, record, *values)
        for values in ((record.temperature, record.threshold.crystal), (temperature, threshold))
    )
    found, missed = len(crystals.images), after.crystals_missed
    return Fit(recall, confidence, found, missed, misses, data, len(counted.images), before, after)


def require_crystals(images: Iterable[Labelled], recall: float, confidence: float | None) -> int:
    """Return how many labelled drops with crystals may be missed; known before anything is scored.

    Raises MarcodError when there are too few of them, saying how many it takes.
    """
    found = len({image.drop for image in images if image.label is DropClass.CRYSTALS})
    misses = allowed_misses(found, recall, confidence)
    if misses < 0:
        promise = _percent(recall) + ("" if confidence is None else f" with {_percent(confidence)} confidence")
        raise MarcodError(
            f"a crystal recall of {promise} needs at least {crystals_needed(recall, confidence)} drops with crystals, "
            f"and there are {found}; label more, or ask for less with --recall"
        )
    return misses


def _one_a_drop(predictions: Predictions, record: BundleRecord) -> Predictions:
    """Choose per drop with crystals its most crystalline image at the first inspection that shows crystals."""
    crystals = predictions.only([i for i, p in enumerate(predictions.images) if p.label is DropClass.CRYSTALS])
    first: dict[str, str] = {}
    for image in crystals.images:
        first.setdefault(image.drop, image.inspection)
    shown = crystals.only([i for i, p in enumerate(crystals.images) if p.inspection == first[p.drop]])
    scores = _crystal_scores(shown, record, record.temperature)
    return shown.only(metrics.highest([image.drop for image in shown.images], scores))


def _crystal_scores(predictions: Predictions, record: BundleRecord, temperature: float) -> NDArray[np.float32]:
    return predictions.folded(record, temperature)[:, CRYSTALS]


def _state(
    counted: Predictions, crystals: Predictions, record: BundleRecord, temperature: float, threshold: float
) -> CalibrationState:
    scores = counted.folded(record, temperature)
    measured = calibration(scores, counted.labels)
    missed = int((_crystal_scores(crystals, record, temperature) < threshold).sum())
    flagged = float((scores[:, CRYSTALS] >= threshold).mean())
    return CalibrationState(temperature, threshold, measured.error, measured.log_loss, missed, flagged)


def write(models: Path, parent: Path, predictor: Predictor, version: int, fitted: Fit) -> Path:
    """Write the bundle in ``parent``, which is loaded as ``predictor``, with another version number.

    Weights and golden images stay, their expectations follow the temperature, and metrics.json gains
    ``calibration``. Raises BundleError when the version exists.
    """
    old = predictor.record
    bundle.verify(parent)
    measured, golden = measured_and_golden(parent)
    kept = old.model_dump(exclude={"files", "libraries", "created_at", "version", "parent", "temperature", "threshold"})
    measured_recall = 1 - fitted.misses / fitted.crystals
    record = bundle.new_record(
        **kept,
        version=version,
        parent=f"{old.name}:{old.version}",
        temperature=fitted.after.temperature,
        threshold=Threshold(crystal=fitted.after.threshold, recall=measured_recall, measured_on=fitted.promise),
    )
    expected = expectations(predictor, golden, record.temperature)
    return bundle.write_derived(models, record, parent, {**measured, "calibration": asdict(fitted)}, expected)


def measured_and_golden(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read metrics.json and the golden images of a bundle that has been verified."""
    expected: Mapping[str, Any] = json.loads((path / bundle.EXPECTED_FILE).read_text(encoding="utf-8"))
    golden = {name: (path / "golden" / name).read_bytes() for name in expected}
    return json.loads((path / bundle.METRICS_FILE).read_text(encoding="utf-8")), golden


def expectations(predictor: Predictor, images: Mapping[str, bytes], temperature: float) -> list[Golden]:
    """Predict the golden probabilities of images by name at a temperature."""
    found = []
    for name, data in images.items():
        logits = predictor.logits(predictor.prepare(data)[np.newaxis])
        found.append(Golden(name, data, probabilities.softmax(logits / temperature)[0].tolist()))
    return found

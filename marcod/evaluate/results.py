"""Numbers of an evaluation: the MARCO paper's results for any labelled set, with intervals.

Every number comes with what it was counted from, is None where the data does not define it, and is the same for the
same set, model and seed. The paper is Bruno et al., PLOS ONE 2018 (arXiv 1803.10342); docs/evaluation.md defines every
number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.evaluate import metrics
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.model.bundle import BundleRecord

ORDER: Final = (DropClass.CRYSTALS, DropClass.PRECIPITATE, DropClass.CLEAR, DropClass.OTHER)
"""The paper's order of rows and columns."""

RESAMPLES: Final = 1000
FEWEST: Final = 10
"""A source counts for a row of the deviations with at least so many images of that class."""

PAPER_ACCURACY: Final = 94.5
PAPER_PERCENT: Final = (
    (91.0, 5.8, 1.7, 1.5),
    (0.8, 96.1, 2.3, 0.7),
    (0.2, 1.8, 97.9, 0.2),
    (4.8, 19.7, 5.9, 69.6),
)
PAPER_AUC: Final = {DropClass.CRYSTALS: 0.988, DropClass.PRECIPITATE: 0.989}
PAPER_OPERATING: Final = {
    DropClass.CRYSTALS: ((0.987, 0.19), (0.94, 0.016)),
    DropClass.PRECIPITATE: ((0.996, 0.25), (0.94, 0.034)),
}
"""Recall and the false positive rate at which the paper reaches it."""

PAPER_DETECTION: Final = {"precision": 0.7777, "recall": 0.8663, "accuracy": 0.9018}

_TO_PAPER: Final = [CLASSES.index(c) for c in ORDER]

Table = tuple[tuple[float | None, ...], ...]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Number with its 95 % interval; None where the data does not define it."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts and percentages of rows, rows the true class; ``deviation`` is the paper's Table 5, in percent points.

    A row's deviations are sample standard deviations over those ``sources`` that have :data:`FEWEST` images of it.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    percent: Table
    deviation: Table = ()
    sources: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a recall is first reached, and the paper's false positive rate there."""

    recall: float
    false_positive_rate: float | None
    threshold: float | None
    paper: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Separation of one class from the others by its probability.

    ``roc`` are (false positive rate, recall), ``precision_recall`` are (recall, precision), at most 200 points each.
    """

    drop_class: DropClass
    positives: int
    negatives: int
    auc: Estimate
    average_precision: Estimate
    paper_auc: float
    operating: tuple[OperatingPoint, ...]
    roc: Points
    precision_recall: Points


@dataclass(frozen=True, slots=True)
class Detection:
    """Detection of crystals by one rule; ``threshold`` is None where the likeliest class decides."""

    rule: str
    threshold: float | None
    found: int
    missed: int
    false_alarms: int
    precision: Estimate
    recall: Estimate
    accuracy: Estimate
    f1: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of the probabilities; ``bins`` are the reliability diagram."""

    error: float
    log_loss: float
    brier: float
    bins: tuple[metrics.Bin, ...]


@dataclass(frozen=True, slots=True)
class ImagerResults:
    """Headline numbers of one imager; recall and precision at the version's threshold."""

    name: str
    counted: int
    crystals: int
    accuracy: Estimate
    crystal_auc: float | None
    precipitate_auc: float | None
    crystal_recall: Estimate
    crystal_precision: Estimate
    calibration_error: float


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """Judged model, and its warnings."""

    name: str
    digest: str
    synthetic: bool
    notice: str
    classes: tuple[str, ...]
    temperature: float
    threshold: float
    threshold_measured_on: str


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Images it was judged on: ``counted`` units (a drop at an inspection, else an image) of all scored images."""

    description: str
    images: int
    counted: int
    drops: int
    groups: int
    sources: tuple[str, ...]
    unreadable: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results; ``own`` is the confusion of a model's own classes where all labels were given in them."""

    model: EvaluatedModel
    data: EvaluationData
    evaluated_at: datetime
    seed: int
    accuracy: Estimate
    accuracy_over_groups: Estimate
    confusion: Confusion
    own: Confusion | None
    crystals: Ranking
    precipitate: Ranking
    detection: tuple[Detection, ...]
    calibration: Calibration
    imagers: tuple[ImagerResults, ...]


def evaluate(
    predictions: Predictions,
    record: BundleRecord,
    description: str,
    *,
    missing: Sequence[str] = (),
    seed: int,
    now: datetime,
) -> Evaluation:
    """Judge a model by its predictions for labelled images; 1,000 bootstrap resamples follow from ``seed``."""
    counted = predictions.counted(record)
    scores, labels = counted.folded(record), counted.labels
    predicted = scores.argmax(axis=1)
    groups = metrics.numbered([p.group for p in counted.images])
    ranks = {c: metrics.Ranks.of(scores[:, CLASSES.index(c)], labels == CLASSES.index(c)) for c in PAPER_AUC}
    spread = _bootstrap(predicted == labels, ranks, groups, seed)
    return Evaluation(
        model=_model(record),
        data=_data(predictions, counted, description, missing),
        evaluated_at=now,
        seed=seed,
        accuracy=_share(int((predicted == labels).sum()), len(labels)),
        accuracy_over_groups=Estimate(float((predicted == labels).mean()), *(spread["accuracy"] or (None, None))),
        confusion=_confusion(labels, predicted, [p.source for p in counted.images]),
        own=_own_confusion(counted, record),
        crystals=_ranking(DropClass.CRYSTALS, scores, labels, spread),
        precipitate=_ranking(DropClass.PRECIPITATE, scores, labels, spread),
        detection=_detections(scores, labels, record.threshold.crystal),
        calibration=calibration(scores, labels),
        imagers=_imagers(counted.images, scores, labels, record.threshold.crystal),
    )


def _model(record: BundleRecord) -> EvaluatedModel:
    return EvaluatedModel(
        name=f"{record.name}:{record.version}",
        digest=record.digest,
        synthetic=record.synthetic,
        notice=record.notice,
        classes=record.classes,
        temperature=record.temperature,
        threshold=record.threshold.crystal,
        threshold_measured_on=record.threshold.measured_on,
    )


def _data(predictions: Predictions, counted: Predictions, description: str, missing: Sequence[str]) -> EvaluationData:
    return EvaluationData(
        description=description,
        images=len(predictions.images),
        counted=len(counted.images),
        drops=len({p.drop for p in counted.images}),
        groups=len({p.group for p in counted.images}),
        sources=tuple(sorted({p.source for p in counted.images} - {""})),
        unreadable=predictions.unreadable,
        missing=tuple(missing),
    )


def _share(k: int, n: int) -> Estimate:
    """Return a proportion with its Clopper-Pearson interval."""
    interval = metrics.clopper_pearson(k, n)
    return Estimate(None) if interval is None else Estimate(k / n, *interval)


_Spread = dict[str, tuple[float, float] | None]


def _bootstrap(
    right: NDArray[np.bool_], ranks: dict[DropClass, metrics.Ranks], groups: NDArray[np.intp], seed: int
) -> _Spread:
    """Return intervals over resampled groups by the name of the number; None with one group only."""
    names = ["accuracy", *(f"{c} {what}" for c in ranks for what in ("auc", "precision"))]
    if groups.max() == 0:
        return dict.fromkeys(names)
    parts: list[list[NDArray[Any]]] = [[] for _ in names]
    for weights in metrics.resamples(groups, RESAMPLES, seed):
        values = [weights @ right / weights.sum(axis=1)]
        for rank in ranks.values():
            values.extend(rank.areas(weights))
        for part, value in zip(parts, values, strict=True):
            part.append(value)
    return {name: metrics.percentiles(np.concatenate(part)) for name, part in zip(names, parts, strict=True)}


def _confusion(labels: NDArray[np.intp], predicted: NDArray[np.intp], sources: Sequence[str]) -> Confusion:
    counts = metrics.confusion(labels, predicted, len(CLASSES))[np.ix_(_TO_PAPER, _TO_PAPER)]
    numbers = metrics.numbered(sources)
    of_source = [
        metrics.confusion(labels[numbers == i], predicted[numbers == i], len(CLASSES))[np.ix_(_TO_PAPER, _TO_PAPER)]
        for i in range(int(numbers.max()) + 1)
    ]
    rows = [[metrics.row_percent(c)[r] for c in of_source if c[r].sum() >= FEWEST] for r in range(len(ORDER))]
    nothing = np.full(len(ORDER), np.nan)
    deviation = np.array([np.std(row, axis=0, ddof=1) if len(row) > 1 else nothing for row in rows])
    return Confusion(
        tuple(c.value for c in ORDER), _whole(counts), _table(metrics.row_percent(counts)),
        _table(deviation), tuple(len(row) for row in rows),
    )  # fmt: skip


def _own_confusion(counted: Predictions, record: BundleRecord) -> Confusion | None:
    own = [image.own for image in counted.images]
    if len(record.classes) == len(CLASSES) and all(record.folding[c].value == c for c in record.classes):
        return None
    labels = np.array([-1 if index is None else index for index in own], np.intp)
    if (labels < 0).any():
        return None
    counts = metrics.confusion(labels, counted.logits.argmax(axis=1), len(record.classes))
    return Confusion(record.classes, _whole(counts), _table(metrics.row_percent(counts)))


def _whole(counts: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(cell) for cell in row) for row in counts)


def _table(values: NDArray[Any]) -> Table:
    return tuple(tuple(None if np.isnan(cell) else float(cell) for cell in row) for row in values)


def _ranking(drop_class: DropClass, scores: NDArray[Any], labels: NDArray[np.intp], spread: _Spread) -> Ranking:
    index = CLASSES.index(drop_class)
    values, positive = scores[:, index], labels == index
    curve = metrics.curve(values, positive)
    both, some = bool(positive.any() and not positive.all()), bool(positive.any())
    return Ranking(
        drop_class=drop_class,
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        auc=_estimate(metrics.auc(values, positive), spread[f"{drop_class} auc"]),
        average_precision=_estimate(metrics.average_precision(values, positive), spread[f"{drop_class} precision"]),
        paper_auc=PAPER_AUC[drop_class],
        operating=tuple(_operating(recall, paper, curve) for recall, paper in PAPER_OPERATING[drop_class]),
        roc=((0.0, 0.0), *_points(curve, curve.false_positive_rate, curve.recall)) if both else (),
        precision_recall=_points(curve, curve.recall, curve.precision) if some else (),
    )


def _operating(recall: float, paper: float, curve: metrics.Curve) -> OperatingPoint:
    rate, threshold = metrics.false_positive_rate_at(recall, curve) or (None, None)
    return OperatingPoint(recall, rate, threshold, paper)


def _estimate(value: float | None, interval: tuple[float, float] | None) -> Estimate:
    return Estimate(value) if value is None or interval is None else Estimate(value, *interval)


def _points(curve: metrics.Curve, x: NDArray[Any], y: NDArray[Any]) -> Points:
    """Spread along both axes, so that neither the steep nor the flat part of a curve is lost."""
    chosen = curve.thinned(_rise(curve.true_positives) + _rise(curve.false_positives), 199)
    return tuple((float(x[i]), float(y[i])) for i in chosen)


def _rise(counts: NDArray[Any]) -> NDArray[Any]:
    return counts / max(1.0, float(counts[-1]))


def _detections(scores: NDArray[Any], labels: NDArray[np.intp], threshold: float) -> tuple[Detection, ...]:
    return (
        _detection("likeliest class", None, scores.argmax(axis=1) == CRYSTALS, labels == CRYSTALS),
        _detection("threshold", threshold, scores[:, CRYSTALS] >= threshold, labels == CRYSTALS),
    )


def _detection(rule: str, threshold: float | None, flagged: NDArray[np.bool_], true: NDArray[np.bool_]) -> Detection:
    found, missed, alarms = int((flagged & true).sum()), int((~flagged & true).sum()), int((flagged & ~true).sum())
    halves = 2 * found + missed + alarms
    return Detection(
        rule=rule,
        threshold=threshold,
        found=found,
        missed=missed,
        false_alarms=alarms,
        precision=_share(found, found + alarms),
        recall=_share(found, found + missed),
        accuracy=_share(int((flagged == true).sum()), len(true)),
        f1=2 * found / halves if halves else None,
    )


def calibration(scores: NDArray[Any], labels: NDArray[np.intp]) -> Calibration:
    """Measure the calibration of probabilities [n, 4] for class indices [n]."""
    return Calibration(
        error=metrics.calibration_error(scores, labels),
        log_loss=metrics.log_loss(scores, labels),
        brier=metrics.brier(scores, labels),
        bins=tuple(metrics.reliability(scores, labels)),
    )


def _imagers(
    images: Sequence[Labelled], scores: NDArray[Any], labels: NDArray[np.intp], threshold: float
) -> tuple[ImagerResults, ...]:
    names = np.array([image.imager for image in images])
    return tuple(_part(str(n), scores[names == n], labels[names == n], threshold) for n in sorted(set(names)))


def _part(name: str, scores: NDArray[Any], labels: NDArray[np.intp], threshold: float) -> ImagerResults:
    at = _detections(scores, labels, threshold)[1]
    auc = {c: metrics.auc(scores[:, CLASSES.index(c)], labels == CLASSES.index(c)) for c in PAPER_AUC}
    return ImagerResults(
        name=name,
        counted=len(labels),
        crystals=int((labels == CRYSTALS).sum()),
        accuracy=_share(int((scores.argmax(axis=1) == labels).sum()), len(labels)),
        crystal_auc=auc[DropClass.CRYSTALS],
        precipitate_auc=auc[DropClass.PRECIPITATE],
        crystal_recall=at.recall,
        crystal_precision=at.precision,
        calibration_error=metrics.calibration_error(scores, labels),
    )

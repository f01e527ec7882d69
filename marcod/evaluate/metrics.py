"""Metrics over arrays, without any input or output; None where the data does not define a number.

Scores are probabilities float [n, classes], labels are class indices int [n], ``positive`` is a mask bool [n].
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn import metrics as scikit

from marcod.domain import CLASSES, CRYSTALS
from marcod.model.probabilities import softmax

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

BINS: Final = 15
RESAMPLED_AT_ONCE: Final = 400000
"""How many numbers the bootstrap holds at a time; it bounds the memory, not the result."""


def confusion(labels: Ints, predicted: Ints, classes: int) -> NDArray[np.int64]:
    """Count rows as int [classes, classes]: the row is the true class, the column the predicted one."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def row_percent(counts: Ints) -> Floats:
    """Return each cell as a percentage of its row; NaN in a row without counts."""
    return 100.0 * ratio(counts, counts.sum(axis=1, keepdims=True))


def log_loss(scores: Floats, labels: Ints, weights: Floats | None = None) -> float:
    """Return the weighted mean of -log of the true class's probability, which is cut off at 1e-12."""
    return float(np.average(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)), weights=weights))


def brier(scores: Floats, labels: Ints) -> float:
    """Return the mean squared distance of the probabilities from the truth, summed over the classes, 0 to 2."""
    truth = np.eye(scores.shape[1])[labels]
    return float(((scores - truth) ** 2).sum(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose highest probability lies in (low, high]; ``sure`` is its mean, ``right`` the share right."""

    low: float
    high: float
    count: int
    sure: float | None
    right: float | None


def reliability(scores: Floats, labels: Ints, bins: int = BINS) -> list[Bin]:
    """Return the reliability diagram of the highest probability over equal bins (Guo et al., arXiv 1706.04599)."""
    counts, sure, right = _binned(scores, labels, bins)
    return [
        Bin(i / bins, (i + 1) / bins, int(n), *((float(sure[i] / n), float(right[i] / n)) if n else (None, None)))
        for i, n in enumerate(counts)
    ]


def calibration_error(scores: Floats, labels: Ints, bins: int = BINS) -> float:
    """Return the expected calibration error over equal bins (Guo et al., arXiv 1706.04599)."""
    _, sure, right = _binned(scores, labels, bins)
    return float(np.abs(sure - right).sum() / len(labels))


def _binned(scores: Floats, labels: Ints, bins: int) -> tuple[Ints, Ints | Floats, Ints | Floats]:
    top, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    bin_of = np.minimum((top * bins).astype(int), bins - 1)
    return (
        np.bincount(bin_of, minlength=bins).astype(np.intp),
        np.bincount(bin_of, weights=top, minlength=bins),
        np.bincount(bin_of, weights=right, minlength=bins),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Every distinct score as a threshold, the highest first, with counts at or above it: float [k] each."""

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats

    @property
    def recall(self) -> Floats:
        """The share of the positives found; NaN without positives."""
        return ratio(self.true_positives, self.true_positives[-1:])

    @property
    def false_positive_rate(self) -> Floats:
        """The share of the negatives flagged; NaN without negatives."""
        return ratio(self.false_positives, self.false_positives[-1:])

    @property
    def precision(self) -> Floats:
        """The share of positives among those flagged."""
        return self.true_positives / (self.true_positives + self.false_positives)

    def thinned(self, by: Floats, points: int = 200) -> Ints:
        """Choose at most ``points`` thresholds, first and last included, spread evenly along a rising ``by``."""
        wanted = np.searchsorted(by, np.linspace(by[0], by[-1], points)) if len(by) > points else np.arange(len(by))
        return np.unique(np.minimum(wanted, len(by) - 1))


def ratio(counts: Floats | Ints, total: Floats | Ints) -> NDArray[np.float64]:
    """Divide counts by their total; NaN where it is 0."""
    return np.asarray(np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0), np.float64)


def numbered(names: Iterable[object]) -> NDArray[np.intp]:
    """Give names numbers from 0 without gaps, int [n]."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.intp)


def highest(keys: Iterable[object], values: Floats) -> list[int]:
    """Return the index of each key's highest value, of equal ones the first, in the order of the keys."""
    best: dict[object, int] = {}
    for index, key in enumerate(keys):
        if values[index] > values[best.setdefault(key, index)]:
            best[key] = index
    return list(best.values())


def curve(scores: Floats, positive: Mask) -> Curve:
    """Return the curve of one class's scores [n], n at least 1; equal scores are one threshold."""
    _, false, _, true, thresholds = scikit.confusion_matrix_at_thresholds(positive, scores, pos_label=True)
    return Curve(thresholds, true, false)


def auc(scores: Floats, positive: Mask) -> float | None:
    """Return the area under the ROC curve, None without positives or negatives; ties count half."""
    return float(scikit.roc_auc_score(positive, scores)) if positive.any() and not positive.all() else None


def average_precision(scores: Floats, positive: Mask) -> float | None:
    """Return the mean, over the positives, of the precision at their score. None without positives."""
    return float(scikit.average_precision_score(positive, scores)) if positive.any() else None


def false_positive_rate_at(recall: float, of: Curve) -> tuple[float, float] | None:
    """Return false positive rate and threshold where a recall is first reached. None without both sides."""
    if not (of.true_positives[-1] and of.false_positives[-1]):
        return None
    first = int(np.argmax(of.recall >= recall - 1e-12))
    return float(of.false_positive_rate[first]), float(of.thresholds[first])


def binomial_at_most(k: int, n: int, p: float) -> float:
    """Return the chance of ``k`` or fewer successes in ``n`` trials of chance ``p``."""
    # 50 times faster than stats.binom.cdf; searches for a threshold call this in loops.
    return float(special.bdtr(min(k, n), n, p)) if k >= 0 else 0.0


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the exact interval of a share of ``k`` in ``n`` independent draws. None when n is 0."""
    if n == 0:
        return None
    found = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def resamples(groups: Ints, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw bootstrap weights: how often each image is drawn, float [part, n], ``count`` rows in all.

    Whole groups (int [n], from 0 without gaps) are drawn with replacement, as many as there are, since the images
    of a group resemble one another.
    """
    rng, number = np.random.default_rng(seed), int(groups.max()) + 1
    part = max(1, RESAMPLED_AT_ONCE // len(groups))
    for start in range(0, count, part):
        size = min(part, count - start)
        drawn = rng.integers(0, number, (size, number)) + np.arange(size)[:, np.newaxis] * number
        times = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        yield times[:, groups].astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """One class's scores, sorted once: AUC and average precision of many weightings, 75 times faster than one by one.

    ``ends`` are the last places of the distinct scores in ``order``, which is from the highest score down.
    """

    order: Ints
    ends: Ints
    positive: Mask

    @classmethod
    def of(cls, scores: Floats, positive: Mask) -> "Ranks":
        """Sort scores [n] and the mask [n]."""
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        return cls(order, ends, positive[order])

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return AUC and average precision, float [m] each, NaN where undefined, for weights [m, n]."""
        ranked = weights[:, self.order]
        seen = np.cumsum(ranked, axis=1)[:, self.ends]
        tp = np.cumsum(ranked * self.positive, axis=1)[:, self.ends]
        fp = seen - tp
        risen, passed = np.diff(tp, axis=1, prepend=0), np.diff(fp, axis=1, prepend=0)
        roc = (passed * (tp - risen / 2)).sum(axis=1)
        precise = (risen * np.divide(tp, seen, out=np.zeros_like(tp), where=seen > 0)).sum(axis=1)
        return ratio(roc, tp[:, -1] * fp[:, -1]), ratio(precise, tp[:, -1])


def percentiles(values: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the middle share of bootstrap values [m] without NaN; None when all are NaN."""
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        return None
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def fit_temperature(logits: Floats, labels: Ints, fold: Floats | None = None, weights: Floats | None = None) -> float:
    """Find the temperature from 1/4 to 4 with the least log loss, after folding by ``fold`` [own, classes].

    ``weights`` [n] are what each row counts for.
    """
    candidates = np.geomspace(0.25, 4.0, 401)
    scores = (softmax(logits / t) for t in candidates)
    losses = [log_loss(p if fold is None else p @ fold, labels, weights) for p in scores]
    return round(float(candidates[int(np.argmin(losses))]), 4)


def threshold_missing(crystal_scores: Floats, misses: int, decimals: int) -> float:
    """Return the highest threshold that at most ``misses`` of these crystals, fewer than all, score below."""
    # Rounded down, so that the drop that sets the threshold stays above it.
    scale = 10.0**decimals
    return math.floor(float(np.sort(crystal_scores)[misses]) * scale) / scale


def recall_threshold(crystal_scores: Floats, recall: float) -> float:
    """Return the highest threshold at or above which at least ``recall`` of these crystals score, else 0."""
    if len(crystal_scores) == 0:
        return 0.0
    return threshold_missing(crystal_scores, int(np.floor(len(crystal_scores) * (1 - recall) + 1e-9)), 4)


def measure(logits: Floats, labels: Ints, temperature: float, threshold: float) -> dict[str, Any]:
    """Return the numbers of metrics.json for one set in the four classes; rows of the confusion are the truth."""
    plain = {"log_loss_without_temperature": _rounded(log_loss(softmax(logits), labels))}
    return measured(softmax(logits / temperature), labels, threshold) | plain


def measured(scores: Floats, labels: Ints, threshold: float) -> dict[str, Any]:
    """Return the same of probabilities [n, 4], without the loss at temperature 1."""
    predicted, is_crystal, hits = scores.argmax(axis=1), labels == CRYSTALS, scores[:, CRYSTALS] >= threshold
    found = int((hits & is_crystal).sum())
    return {
        "images": len(labels),
        "classes": [c.value for c in CLASSES],
        "confusion": confusion(labels, predicted, len(CLASSES)).tolist(),
        "accuracy": _rounded((predicted == labels).mean()),
        "crystal_auc": _rounded(auc(scores[:, CRYSTALS], is_crystal)),
        "crystal_average_precision": _rounded(average_precision(scores[:, CRYSTALS], is_crystal)),
        "crystal_threshold": threshold,
        "crystal_recall": _rounded(found / max(1, int(is_crystal.sum()))),
        "crystal_precision": _rounded(found / max(1, int(hits.sum()))),
        "log_loss": _rounded(log_loss(scores, labels)),
        "calibration_error": _rounded(calibration_error(scores, labels)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)

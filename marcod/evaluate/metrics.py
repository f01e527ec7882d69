"""How good scores are: definitions over arrays, without any input or output.

Hides ties, empty classes and resampling. Promises the numbers that scikit-learn gives (the tests compare the two),
and None where the data does not define a number, such as a recall without a single crystal.

Scores are probabilities float [n, classes], labels are class indices int [n], ``positive`` is a mask bool [n].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as scikit

from marcod.domain import CLASSES, DropClass
from marcod.model.probabilities import softmax

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

BINS: Final = 15
RESAMPLED_AT_ONCE: Final = 400000
"""How many numbers the bootstrap holds at a time; it bounds the memory, not the result."""

_CRYSTALS: Final = CLASSES.index(DropClass.CRYSTALS)


def confusion(labels: Ints, predicted: Ints, classes: int) -> NDArray[np.int64]:
    """Count rows as int [classes, classes]: the row is the true class, the column the predicted one."""
    counts: NDArray[np.int64] = scikit.confusion_matrix(labels, predicted, labels=range(classes))
    return counts


def row_percent(counts: Ints) -> Floats:
    """Each cell as a percentage of its row; NaN in a row without counts."""
    return 100.0 * _share(counts, counts.sum(axis=1, keepdims=True))


def log_loss(scores: Floats, labels: Ints, weights: Floats | None = None) -> float:
    """Mean negative log probability of the true class, probabilities below 1e-12 counting as that; by weight [n]."""
    return float(np.average(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)), weights=weights))


def brier(scores: Floats, labels: Ints) -> float:
    """Mean squared distance between the probabilities and the truth, summed over the classes: 0 is best, 2 is worst."""
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
    """The reliability diagram of the highest probability over bins of equal width (Guo et al., arXiv 1706.04599)."""
    counts, sure, right = _binned(scores, labels, bins)
    return [
        Bin(i / bins, (i + 1) / bins, int(n), *((float(sure[i] / n), float(right[i] / n)) if n else (None, None)))
        for i, n in enumerate(counts)
    ]


def calibration_error(scores: Floats, labels: Ints, bins: int = BINS) -> float:
    """Expected calibration error of the highest score over equal bins (Guo et al., arXiv 1706.04599)."""
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
    """Every distinct score as a threshold, the highest first, and how many score there or above: float [k] each."""

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats

    @property
    def recall(self) -> Floats:
        """Share of the positives found; NaN without positives."""
        return _share(self.true_positives, self.true_positives[-1:])

    @property
    def false_positive_rate(self) -> Floats:
        """Share of the negatives taken for positives; NaN without negatives."""
        return _share(self.false_positives, self.false_positives[-1:])

    @property
    def precision(self) -> Floats:
        """Share of the found that are positives."""
        return self.true_positives / (self.true_positives + self.false_positives)

    def thinned(self, by: Floats, points: int = 200) -> Ints:
        """Indices of at most ``points`` thresholds, first and last included, spread evenly along a rising ``by``."""
        wanted = np.searchsorted(by, np.linspace(by[0], by[-1], points)) if len(by) > points else np.arange(len(by))
        return np.unique(np.minimum(wanted, len(by) - 1))


def _share(counts: Floats | Ints, total: Floats | Ints) -> NDArray[np.float64]:
    """Counts over their total; NaN where there is none."""
    shares: NDArray[np.float64] = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return shares


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
    """Where a recall is first reached: false positive rate and threshold. None without positives or negatives."""
    if not (of.true_positives[-1] and of.false_positives[-1]):
        return None
    first = int(np.argmax(of.recall >= recall - 1e-12))
    return float(of.false_positive_rate[first]), float(of.thresholds[first])


def binomial_at_most(k: int, n: int, p: float) -> float:
    """Return the chance of ``k`` or fewer successes in ``n`` trials of chance ``p``."""
    return float(stats.binom.cdf(k, n, p))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the exact interval of a share of ``k`` in ``n`` independent draws. None when n is 0."""
    if n == 0:
        return None
    found = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def resamples(groups: Ints, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Bootstrap weights: how often each image is drawn, float [part, n], parts adding up to ``count`` rows.

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
        return _share(roc, tp[:, -1] * fp[:, -1]), _share(precise, tp[:, -1])


def percentiles(values: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """The middle share of bootstrap values [m], undefined ones left out; None when all are undefined."""
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        return None
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def fit_temperature(logits: Floats, labels: Ints, fold: Floats | None = None, weights: Floats | None = None) -> float:
    """The temperature from 1/4 to 4 with the least log loss, of the probabilities ``fold`` [own, classes] makes.

    ``weights`` [n] are what each row counts for.
    """
    candidates = np.geomspace(0.25, 4.0, 401)
    scores = (softmax(logits / t) for t in candidates)
    losses = [log_loss(p if fold is None else p @ fold, labels, weights) for p in scores]
    return round(float(candidates[int(np.argmin(losses))]), 4)


def threshold_missing(crystal_scores: Floats, misses: int, decimals: int) -> float:
    """The highest threshold that at most ``misses`` of these crystals, fewer than all, score below."""
    # Rounded down, so that the drop that sets the threshold stays above it.
    scale = 10.0**decimals
    return math.floor(float(np.sort(crystal_scores)[misses]) * scale) / scale


def recall_threshold(crystal_scores: Floats, recall: float) -> float:
    """The highest threshold at or above which at least ``recall`` of these crystals score; 0 without crystals."""
    if len(crystal_scores) == 0:
        return 0.0
    return threshold_missing(crystal_scores, int(np.floor(len(crystal_scores) * (1 - recall) + 1e-9)), 4)


def measure(logits: Floats, labels: Ints, temperature: float, threshold: float) -> dict[str, Any]:
    """What metrics.json says about one set scored in the four classes; rows of the confusion are the true class."""
    measured_now = measured(softmax(logits / temperature), labels, threshold)
    return measured_now | {"log_loss_without_temperature": _rounded(log_loss(softmax(logits), labels))}


def measured(scores: Floats, labels: Ints, threshold: float) -> dict[str, Any]:
    """The same of probabilities [n, 4], without what they would be at another temperature."""
    predicted, is_crystal, hits = scores.argmax(axis=1), labels == _CRYSTALS, scores[:, _CRYSTALS] >= threshold
    found = int((hits & is_crystal).sum())
    return {
        "images": len(labels),
        "classes": [c.value for c in CLASSES],
        "confusion": confusion(labels, predicted, len(CLASSES)).tolist(),
        "accuracy": _rounded((predicted == labels).mean()),
        "crystal_auc": _rounded(auc(scores[:, _CRYSTALS], is_crystal)),
        "crystal_average_precision": _rounded(average_precision(scores[:, _CRYSTALS], is_crystal)),
        "crystal_threshold": threshold,
        "crystal_recall": _rounded(found / max(1, int(is_crystal.sum()))),
        "crystal_precision": _rounded(found / max(1, int(hits.sum()))),
        "log_loss": _rounded(log_loss(scores, labels)),
        "calibration_error": _rounded(calibration_error(scores, labels)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)

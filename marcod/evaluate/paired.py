"""Paired comparison of two models on the same labelled images.

Both models are judged on the same drops with the same weights. A drop counts once per class however often it was
imaged. The same seed gives the same numbers.

The bootstrap is paired (Efron & Tibshirani, An Introduction to the Bootstrap, 1993): every resample draws the same
drops for both. Plates are drawn whole, since their drops resemble one another. A bootstrap of a few plates is too
narrow (two plates both happen to be better one time in four), so drops are drawn singly as well, and the more careful
of the two counts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.errors import MarcodError
from marcod.evaluate import metrics
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.model.bundle import BundleRecord

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

BASE: Final = "base"
"""The imager of images that are not the lab's own; their source is empty."""

_LEAST: Final = 1e-12
_FEW: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class ModelScores:
    """Predictions of one model for n units: probabilities float32 [n, 4], and its own crystal threshold."""

    name: str
    digest: str
    threshold: float
    scores: NDArray[np.float32]

    @property
    def crystals(self) -> Floats:
        """The crystal probabilities [n]."""
        return self.scores[:, CRYSTALS]

    @property
    def flagged(self) -> Mask:
        """The hits at the model's own threshold, bool [n]."""
        return self.crystals >= self.threshold

    def only(self, chosen: Mask) -> "ModelScores":
        """Select units, bool [n]."""
        return ModelScores(self.name, self.digest, self.threshold, self.scores[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class PairedScores:
    """Predictions of both models for n units (a drop at an inspection, or an image).

    ``images`` holds one image a unit, ``labels`` int [n] are classes. ``weights`` float [n] let a drop count once a
    class: they are 1 over the units of the same drop with the same label.
    """

    images: tuple[Labelled, ...]
    labels: NDArray[np.intp]
    weights: NDArray[np.float64]
    champion: ModelScores
    candidate: ModelScores
    left_out: tuple[str, ...]

    @property
    def is_crystal(self) -> Mask:
        """The units labelled as crystals, bool [n]."""
        return np.asarray(self.labels == CRYSTALS, np.bool_)

    @property
    def is_lab(self) -> Mask:
        """The lab's own units, not the rehearsal set's, bool [n]."""
        return np.array([not (p.imager == BASE and p.source == "") for p in self.images], np.bool_)

    @property
    def imagers(self) -> list[str]:
        """The imager of each unit, with its source."""
        return [imager_of(image) for image in self.images]

    @property
    def drops(self) -> list[tuple[str, str]]:
        """The drop of each unit."""
        return [(p.source, p.drop) for p in self.images]

    @property
    def plates(self) -> list[tuple[str, str]]:
        """The plate (group) of each unit."""
        return [(p.source, p.group) for p in self.images]

    def only(self, chosen: Mask) -> "PairedScores":
        """Select units, bool [n]."""
        images = tuple(p for p, kept in zip(self.images, chosen, strict=True) if kept)
        sides = (self.champion.only(chosen), self.candidate.only(chosen))
        return PairedScores(images, self.labels[chosen], self.weights[chosen], *sides, self.left_out)


def imager_of(image: Labelled) -> str:
    """Return the name of an image's imager, with its source."""
    parts = [part for part in (image.source, image.imager) if part]
    return " ".join(dict.fromkeys(parts)) or "unnamed"


def pair(champion: tuple[BundleRecord, Predictions], candidate: tuple[BundleRecord, Predictions]) -> PairedScores:
    """Match two models' predictions for the same images; images that one could not read are left out and named.

    Raises MarcodError when an image is on one side only, or carries another label, plate or drop there.
    """
    former, latter = _by_file(champion[1]), _by_file(candidate[1])
    _check_asked(former, latter, candidate[1], "candidate")
    _check_asked(latter, former, champion[1], "champion")
    common = [file for file in former if file in latter]
    for file in common:
        _check_same(champion[1].images[former[file]], candidate[1].images[latter[file]])
    matched = [
        _by_unit(record, predictions.only([index[file] for file in common]))
        for (record, predictions), index in ((champion, former), (candidate, latter))
    ]
    units = list(matched[0])
    images = tuple(matched[0][unit][0] for unit in units)
    return PairedScores(
        images,
        np.array([CLASSES.index(image.label) for image in images], np.intp),
        _weights(images),
        _model_scores(champion[0], [matched[0][unit][1] for unit in units]),
        _model_scores(candidate[0], [matched[1][unit][1] for unit in units]),
        tuple(dict.fromkeys((*champion[1].unreadable, *candidate[1].unreadable))),
    )


def _by_file(predictions: Predictions) -> dict[str, int]:
    return {str(image.file): index for index, image in enumerate(predictions.images)}


def _check_asked(there: dict[str, int], here: dict[str, int], of: Predictions, who: str) -> None:
    """Refuse an image that only one model was asked about. Raises MarcodError."""
    for file in there:
        if file not in here and not any(text.startswith(f"{file}: ") for text in of.unreadable):
            raise MarcodError(
                f"champion and candidate must be judged on the same images, but the {who} was not asked about {file}"
            )


def _check_same(one: Labelled, other: Labelled) -> None:
    for what in ("label", "source", "imager", "drop", "unit", "group"):
        if getattr(one, what) != getattr(other, what):
            raise MarcodError(
                f"champion and candidate must be judged on the same images, but {one.file} has {what} "
                f"{getattr(one, what)!r} for one and {getattr(other, what)!r} for the other"
            )


def _by_unit(record: BundleRecord, predictions: Predictions) -> dict[str, tuple[Labelled, NDArray[np.float32]]]:
    """Choose the image and the probabilities that count, by unit."""
    if not predictions.images:
        return {}
    labels: dict[str, DropClass] = {}
    for image in predictions.images:
        if labels.setdefault(image.unit, image.label) is not image.label:
            raise MarcodError(f"the images of {image.unit!r} count as one but carry two labels")
    counted = predictions.counted(record)
    return {p.unit: (p, row) for p, row in zip(counted.images, counted.folded(record), strict=True)}


def _model_scores(record: BundleRecord, rows: Sequence[NDArray[np.float32]]) -> ModelScores:
    scores = np.array(rows, np.float32).reshape(len(rows), len(CLASSES))
    return ModelScores(f"{record.name}:{record.version}", record.digest, record.threshold.crystal, scores)


def _weights(images: Sequence[Labelled]) -> NDArray[np.float64]:
    of_drop = [(p.source, p.drop, p.label) for p in images]
    counts = Counter(of_drop)
    return np.array([1 / counts[key] for key in of_drop], np.float64)


def share(of: Mask, among: Mask, weights: Floats) -> NDArray[np.float64]:
    """Return the weighted share of ``among`` [n] that is also ``of`` [n], for weights [m, n]: [m], NaN if none."""
    return metrics.ratio(weights @ (of & among).astype(np.float64), weights @ among.astype(np.float64))


def recall(pair: PairedScores, model: ModelScores, weights: Floats) -> NDArray[np.float64]:
    """Return crystal recall at the model's own threshold, float [m]."""
    return share(model.flagged, pair.is_crystal, weights)


def average_precision(pair: PairedScores, model: ModelScores, weights: Floats) -> NDArray[np.float64]:
    """Return the average precision of crystals, float [m]."""
    return np.asarray(metrics.Ranks.of(model.crystals, pair.is_crystal).areas(weights)[1], np.float64)


def log_loss(pair: PairedScores, model: ModelScores, weights: Floats) -> NDArray[np.float64]:
    """Return the mean negative log probability of the labelled class, float [m]."""
    given = model.scores[np.arange(len(pair.labels)), pair.labels].astype(np.float64)
    return np.asarray(weights @ -np.log(np.maximum(given, _LEAST)) / weights.sum(axis=1), np.float64)


Measure = Callable[[PairedScores, ModelScores, Floats], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Candidate minus champion: both values, and the differences in each kind of resample.

    A value is None where the data does not define it.
    """

    champion: float | None
    candidate: float | None
    resampled: tuple[NDArray[np.float64], ...]

    @property
    def value(self) -> float | None:
        """The candidate's value less the champion's."""
        return None if self.champion is None or self.candidate is None else self.candidate - self.champion

    def at_least(self, confidence: float) -> float | None:
        """Return the one-sided lower bound of the true difference at this confidence."""
        return min((float(np.quantile(r, 1 - confidence)) for r in self.resampled if len(r)), default=None)

    def above_zero(self) -> float:
        """Return the share of resamples above zero, the least of the kinds.

        Where fewer than :data:`_FEW` resamples have no more, their number is too coarse, and a normal distribution of
        the resamples' mean and spread counts where it gives less.
        """
        return min((_share_above_zero(r) for r in self.resampled if len(r)), default=0.0)


def _share_above_zero(resampled: NDArray[np.float64]) -> float:
    share = float((resampled > 0).mean())
    spread = float(resampled.std())
    if (1 - share) * len(resampled) >= _FEW or spread == 0.0:
        return share
    return min(share, NormalDist().cdf(float(resampled.mean()) / spread))


def difference(pair: PairedScores, measure: Measure, resamples: int, seed: int) -> Difference:
    """Compare by one measure, resampling plates and, for want of plates, drops."""
    if not len(pair.labels):
        return Difference(None, None, ())
    once = pair.weights[np.newaxis]
    was, now = (value_of(measure(pair, model, once)) for model in (pair.champion, pair.candidate))
    kinds = [metrics.numbered(names) for names in (pair.plates, pair.drops)]
    return Difference(was, now, tuple(_resampled(pair, measure, k, resamples, seed) for k in kinds if k.max() > 0))


def _resampled(
    pair: PairedScores, measure: Measure, groups: NDArray[np.intp], resamples: int, seed: int
) -> NDArray[np.float64]:
    parts = []
    for times in metrics.resamples(groups, resamples, seed):
        weights = times * pair.weights
        parts.append(measure(pair, pair.candidate, weights) - measure(pair, pair.champion, weights))
    found = np.concatenate(parts)
    return found[~np.isnan(found)]


def value_of(shares: NDArray[np.float64]) -> float | None:
    """Return the one number in float [1], None for NaN."""
    return None if np.isnan(shares[0]) else float(shares[0])


def at_recall(pair: PairedScores, model: ModelScores, wanted: float) -> tuple[float | None, float | None]:
    """Return crystal precision and the share of other drops flagged, at the highest threshold that finds this share.

    Both are None without crystals, the second also without drops that have none.
    """
    if not pair.is_crystal.any():
        return None, None
    ranks = metrics.Ranks.of(model.crystals, pair.is_crystal)
    ranked = pair.weights[ranks.order]
    found, alarms = (np.cumsum(ranked * part)[ranks.ends] for part in (ranks.positive, ~ranks.positive))
    first = int(np.argmax(found >= wanted * found[-1] - 1e-9))
    precision = float(found[first] / (found[first] + alarms[first]))
    return precision, None if pair.is_crystal.all() else float(alarms[first] / alarms[-1])


def lost_and_gained(pair: PairedScores, champion: Mask, candidate: Mask, among: Mask) -> tuple[int, int]:
    """Count drops that only the champion, and only the candidate, classifies right; bool [n] each."""
    balance: Counter[tuple[str, str]] = Counter()
    drops = pair.drops
    for index in np.flatnonzero(among & (champion != candidate)):
        balance[drops[index]] += 1 if candidate[index] else -1
    return sum(b < 0 for b in balance.values()), sum(b > 0 for b in balance.values())


def chance_of_loss(lost: int, gained: int) -> float:
    """Return the p-value of the losses: McNemar's test, one-sided, exact, with the mid-p correction.

    Fagerland, Lydersen & Laake, BMC Medical Research Methodology 2013, 13:91. Few drops can thus not block.
    """
    n = lost + gained
    return (metrics.binomial_at_most(gained - 1, n, 0.5) + metrics.binomial_at_most(gained, n, 0.5)) / 2


def crystal_threshold(scores: Floats, is_crystal: Mask, recall: float, false_alarms: float) -> float:
    """Choose a candidate's threshold on validation drops: one that finds ``recall`` of the crystals, or lower.

    ``false_alarms`` is the share of the drops without crystals that the champion flags there. Half of what the
    candidate saves of them is spent on a lower threshold. Without that two models tuned to one recall lose other
    crystals each, and a few hundred test drops cannot show that the better one does not lose more. Crystal
    probabilities [n], mask [n]; 0 without crystals.
    """
    wanted = metrics.recall_threshold(scores[is_crystal], recall)
    others = np.sort(scores[~is_crystal])[::-1]
    flagged = int((others >= wanted).sum())
    allowed = (flagged + int(np.floor(false_alarms * len(others) + 1e-9))) // 2
    if allowed <= flagged:
        return wanted
    return min(wanted, float(np.nextafter(others[allowed], np.inf)))

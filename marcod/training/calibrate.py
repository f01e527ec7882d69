"""Temperature and crystal threshold of a new model, for the classes' natural shares.

A threshold counts one image per drop. Drops that people saw because of the model's own scores do not count. The promise
names its data. Temperature scaling: arXiv 1706.04599. Conformal risk control for the threshold: arXiv 2208.02814.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.evaluate import calibration, metrics, paired
from marcod.fitting import adapt, steps
from marcod.model import bundle, probabilities
from marcod.model.bundle import BundleRecord, Threshold
from marcod.training.data import TrainingSet


@dataclass(frozen=True)
class Calibrated:
    """Classes, temperature and threshold of a bundle's record; ``measured`` is for ``metrics.json``."""

    classes: tuple[str, ...]
    folding: dict[str, DropClass]
    temperature: float
    threshold: Threshold
    measured: dict[str, Any]


def natural_shift(
    trained_with: NDArray[np.float64], natural: NDArray[np.float64] | None, rows: TrainingSet
) -> NDArray[np.float32]:
    """Return what to add to logits learned with other class shares, so that probabilities are of natural ones.

    Without natural shares those of the labels are used, and without labels nothing is added.
    """
    if natural is None:
        natural = adapt.shares(rows.targets, rows.weights) if len(rows) else trained_with
    return np.log(natural / trained_with).astype(np.float32)


def keep_crystals(shift: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a shift with the crystals' changed so that the mean of their log-odds over ``logits`` [n, 4] stays."""
    found = shift.copy()
    found[CRYSTALS] = 0
    if len(logits):
        found[CRYSTALS] = float((steps.crystal_odds(logits) - steps.crystal_odds(logits + found)).mean())
    return found


def calibrate(
    logits: NDArray[np.float32],
    rows: TrainingSet,
    natural: NDArray[np.float64] | None,
    parent: BundleRecord | None,
    former: Threshold,
    recall: float,
    false_alarms: float | None = None,
) -> Calibrated:
    """Fit the temperature, and the threshold at it.

    ``parent`` is the record of weights that did not change, whose classes stay; None for four classes. ``former`` is
    the threshold that stays where there are no crystals to choose another by. ``false_alarms`` is the share of the
    lab's drops without crystals that the champion flags here; half of what is saved of them goes into recall.
    """
    members = np.eye(len(CLASSES), dtype=np.float32) if parent is None else bundle.folding(parent)
    temperature = 1.0 if parent is None else parent.temperature
    if len(rows):
        counted = natural_weights(rows.labels, rows.weights, natural)
        temperature = metrics.fit_temperature(logits, rows.labels, members, counted)
    scores = probabilities.softmax(logits / temperature) @ members
    threshold = _threshold(rows, scores[:, CRYSTALS], former, recall, false_alarms)
    measured = {
        "natural_shares": None if natural is None else [round(float(share), 5) for share in natural],
        "validation": metrics.measured(scores, rows.labels, threshold.crystal) if len(rows) else None,
    }
    classes = tuple(c.value for c in CLASSES) if parent is None else parent.classes
    folding = {c.value: c for c in CLASSES} if parent is None else dict(parent.folding)
    return Calibrated(classes, folding, temperature, threshold, measured)


def natural_weights(
    labels: NDArray[np.intp], weights: NDArray[np.float32], natural: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """Return the weight of each labelled image with which the classes have their natural shares."""
    if natural is None:
        return weights
    share = np.bincount(labels, weights=weights, minlength=len(CLASSES)) / weights.sum()
    return np.asarray(weights * (natural / np.maximum(share, 1e-6))[labels], np.float32)


def _threshold(
    rows: TrainingSet, crystals: NDArray[np.float32], former: Threshold, recall: float, false_alarms: float | None
) -> Threshold:
    """Return the highest threshold that keeps the recall on all crystals and on those of each large domain."""
    best = _one_a_drop(rows, crystals)
    if not len(best):
        return Threshold(crystal=former.crystal, recall=None, measured_on="nothing: no labelled drop with crystals")
    domains = [[i for i in best if rows.domains[i] == name] for name in sorted(set(rows.domains))]
    least = calibration.crystals_needed(recall, None)
    groups = [best, *(domain for domain in domains if len(domain) >= least)]
    crystal = min(_keeping(crystals[group], recall) for group in groups)
    if false_alarms is not None and rows.is_lab.any():
        own, is_crystal = crystals[rows.is_lab], (rows.labels == CRYSTALS)[rows.is_lab]
        spent = paired.crystal_threshold(own, is_crystal, recall, false_alarms)
        crystal = min(crystal, spent) if is_crystal.any() else crystal
    missed = int((crystals[best] < crystal).sum())
    kept = "expected of new drops" if len(best) >= least else f"wished; it takes {least} crystals to promise it"
    text = f"{len(best)} crystals, one a drop, of the validation side: {missed} below; recall of {recall:g} {kept}"
    return Threshold(crystal=crystal, recall=1 - missed / len(best), measured_on=text)


def _keeping(crystals: NDArray[np.float32], recall: float) -> float:
    misses = max(0, calibration.allowed_misses(len(crystals), recall, None))
    return metrics.threshold_missing(crystals, misses, calibration.DECIMALS)


def _one_a_drop(rows: TrainingSet, crystals: NDArray[np.float32]) -> list[int]:
    """Choose the most crystalline image per drop with crystals, as for the verdict on a drop.

    Without the drops that were chosen by score, unless there are no others.
    """
    usable = (rows.labels == CRYSTALS) & ~rows.chosen
    if not usable.any():
        usable = rows.labels == CRYSTALS
    chosen = np.flatnonzero(usable)
    drops = [(rows.domains[i], rows.drops[i]) for i in chosen]
    return sorted(chosen[metrics.highest(drops, crystals[chosen])].tolist())

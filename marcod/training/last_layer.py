"""Last layer of a candidate: of several steps from the champion's, the one that the lab's labels support.

A label is judged by layers that learned from other plates: those of the validation side by one that learned from the
training side, those of the training side by one that did not see the plate's fold. The validation side teaches nothing,
so that it can judge every later model too. A champion that learned from the training side is compared on the
validation side alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES
from marcod.evaluate import label_issues
from marcod.fitting import adapt, steps
from marcod.fitting.adapt import Features, Floats
from marcod.fitting.steps import LastLayer, LayerStep, StepJudges
from marcod.training.data import TrainingSet
from marcod.training.tiers import KEEPS_CRYSTALS, STEPS, Tier

FOLDS: Final = 5

BELIEVED: Final = 5.0
"""Labelled drops with which a class counts half of what it counts with very many."""


@dataclass(frozen=True)
class TrunkFeatures:
    """Layers before the last: features float32 [n, f] of all rows, and the last layer to begin with."""

    about: str
    features: Floats
    start: LastLayer


@dataclass(frozen=True)
class LayerLabels:
    """Rows of both sides, and which of them teach; the others only judge.

    ``champion`` are its logits of the four classes [n, 4]; ``unseen`` is False if it learned from rows that teach.
    """

    rows: TrainingSet
    teach: NDArray[np.bool_]
    champion: Floats
    unseen: bool

    @property
    def judges(self) -> NDArray[np.intp]:
        """Rows that judge: the validation side, and the lab's training side where a plate of it can be left out."""
        held_out = ~self.teach
        if self.unseen or not (held_out & self.rows.is_lab).any():
            held_out = held_out | (self.of_fold >= 0)
        return np.flatnonzero(held_out)

    @property
    def of_fold(self) -> NDArray[np.intp]:
        """The fold of each of the lab's rows that teach, by plate; -1 for others, and where there is but one plate."""
        found, lab = np.full(len(self.rows), -1, np.intp), np.flatnonzero(self.teach & self.rows.is_lab)
        plates = [self.rows.plates[i] for i in lab]
        if len(set(plates)) > 1:
            found[lab] = label_issues.folds(plates, FOLDS)
        return found


@dataclass(frozen=True)
class StepOption:
    """LayerStep on one trunk. ``logits`` [judges, 4] are of rows that its layers had not seen."""

    tier: Tier
    trunk: int
    step: LayerStep
    layer: LastLayer
    logits: Floats


@dataclass(frozen=True)
class ChosenStep:
    """StepOption taken, class shares [4] that it learned with, and what was found about every option."""

    option: StepOption
    trained_with: NDArray[np.float64]
    measured: list[dict[str, Any]]


def choose(labels: LayerLabels, trunks: Sequence[TrunkFeatures], highest: Tier, margin: float) -> ChosenStep:
    """Fit every step up to tier ``highest`` on every trunk, and choose one as :func:`steps.choose` does.

    The first trunk is the champion's. ``margin`` is what other imagers may lose.
    """
    options = list(_options(labels, trunks, highest))
    rows = labels.rows.only(labels.judges)
    judges = StepJudges(rows.labels, rows.weights, rows.domains, rows.plates, rows.drops, rows.is_lab)
    index, found = steps.choose([option.logits for option in options], judges, margin)
    measured = [
        {"step": str(o.step), "trunk": trunks[o.trunk].about, "gain": round(j.gain, 5), "error": round(j.error, 5),
         "harm": j.harm, "chosen": o is options[index]}
        for o, j in zip(options, found, strict=True)
    ]  # fmt: skip
    seen = _taught(labels, trunks[0], labels.teach)
    return ChosenStep(options[index], adapt.shares(seen.targets, seen.weights), measured)


def _options(labels: LayerLabels, trunks: Sequence[TrunkFeatures], highest: Tier) -> Iterator[StepOption]:
    """Yield the champion as it is, then each step, on the champion's trunk before another."""
    yield StepOption("recalibrate", 0, steps.LADDER[0], trunks[0].start, labels.champion[labels.judges])
    # Another normalization changes every image's features, and with them the order of crystals.
    for number, trunk in enumerate(trunks):
        for step in steps.LADDER:
            tier: Tier = "normalization" if step.kind == "parent" else step.kind
            allowed = tier not in KEEPS_CRYSTALS if number else step.kind != "parent"
            if allowed and STEPS.index(tier) <= STEPS.index(highest):
                yield _option(labels, number, trunk, step, tier)


def _option(labels: LayerLabels, number: int, trunk: TrunkFeatures, step: LayerStep, tier: Tier) -> StepOption:
    of_fold = labels.of_fold
    layer = _fit(labels, trunk, step, labels.teach)
    logits = steps.logits(trunk.features, layer)
    for fold in sorted(set(of_fold.tolist()) - {-1}):
        inside = of_fold == fold
        logits[inside] = steps.logits(trunk.features[inside], _fit(labels, trunk, step, labels.teach & ~inside))
    return StepOption(tier, number, step, layer, logits[labels.judges])


def _fit(labels: LayerLabels, trunk: TrunkFeatures, step: LayerStep, taught: NDArray[np.bool_]) -> LastLayer:
    return steps.fit(_taught(labels, trunk, taught), trunk.start, step, steps.crystal_odds(labels.champion[taught]))


def _taught(labels: LayerLabels, trunk: TrunkFeatures, taught: NDArray[np.bool_]) -> Features:
    """Select rows that teach. Lab and base set weigh the same; a class of the lab weighs less if it has few labels."""
    rows = labels.rows.only(np.flatnonzero(taught))
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab)
    for index in range(len(CLASSES)):
        of_class = rows.is_lab & (rows.labels == index)
        drops = len({rows.drops[i] for i in np.flatnonzero(of_class)})
        weights[of_class] *= drops / (drops + BELIEVED)
    return Features(trunk.features[taught], rows.targets, weights)

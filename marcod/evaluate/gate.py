"""Gate: decides if a candidate may replace the champion, on drops that neither was trained on.

Guarantees:

* The result follows from the predictions, the rules and the seed alone.
* Every condition comes with its numbers and a sentence for a crystallographer.
* What the data cannot answer is refused: too few drops, plates or crystals never promote anything.

The comparison is that of ``paired``: each drop counts once per class, differences are paired over plates and drops.
Crystal recall is taken at each model's own threshold, because that is what a lab loses or gains by the change.

Limits: the gate trusts the labels of the test side. Labels that are wrong at random blur both models alike, so a better
candidate is refused rather than a worse one promoted. Labels that are wrong on purpose, or by one person's habit, are
wrong on the test side too, and a candidate that learned them looks better there. Three things help: the rehearsal set,
whose labels are not the lab's and which counts as an imager of its own; the golden images of the candidate's bundle;
and the share of labels that look wrong to a model that did not see them (:func:`labels_trusted`). A small and
consistent error of everybody who labels passes all three, and a person has to find it.

A test side that is used again and again lets a worse candidate through by chance. So each further look asks for more
confidence, see :attr:`Rules.needed`; ``training.looks`` counts looks by what test sides share.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.evaluate import paired
from marcod.evaluate.paired import Measure, ModelScores, PairedScores
from marcod.evaluate.predictions import Predictions
from marcod.model.bundle import BundleRecord
from marcod.text import count

AVERAGE_PRECISION: Final = "crystal_average_precision"
LOG_LOSS: Final = "log_loss"

_MEASURES: Final[dict[str, tuple[str, Measure, float]]] = {
    AVERAGE_PRECISION: ("average precision of crystals", paired.average_precision, 1.0),
    LOG_LOSS: ("log loss", paired.log_loss, -1.0),
}
"""What it is called, and whether more (1) or less (-1) is better."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Conditions of a promotion; shares from 0 to 1.

    ``primary`` must get better: the ranking of crystals, or the log loss where the candidate keeps crystals as they are
    ranked. Where both models rank every crystal of the test side first, the log loss must get better. ``confidence`` is
    one-sided. ``looks`` is how many candidates this test side has judged before, one that was judged on a part of its
    drops as that part. ``most_false_alarms`` is the share of drops without crystals that may be flagged at most, unless
    the champion flags more, or would for ``recall``.
    """

    recall_margin: float = 0.02
    imager_margin: float = 0.05
    precision_margin: float = 0.10
    most_false_alarms: float = 0.5
    min_crystals: int = 15
    min_drops: int = 30
    min_plates: int = 2
    label_noise: float = 0.25
    recall: float = 0.95
    primary: str = AVERAGE_PRECISION
    confidence: float = 0.9
    resamples: int = 2000
    seed: int = 1
    looks: float = 0.0

    @property
    def needed(self) -> float:
        """The confidence needed that the primary measure got better.

        A look may take a part of the risk 1 - ``confidence``: the first a half, the second a third, the tenth an
        eleventh. No test side is ever used up, but each further look asks for more.
        """
        return 1 - (1 - self.confidence) / (2 + self.looks)


@dataclass(frozen=True, slots=True)
class GateCheck:
    """Condition of the gate, as a sentence and numbers."""

    name: str
    passed: bool
    sentence: str
    numbers: Mapping[str, float | int | str | None]


@dataclass(frozen=True, slots=True)
class GateResult:
    """Result of the gate. ``numbers`` is ready for JSON: both models' numbers, the rules, and all ``checks``."""

    passed: bool
    checks: tuple[GateCheck, ...]
    numbers: dict[str, Any]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of the failed checks, or of all when it passed."""
        return tuple(check.sentence for check in self.checks if self.passed or not check.passed)


def judge(
    champion: tuple[BundleRecord, Predictions],
    candidate: tuple[BundleRecord, Predictions],
    rules: Rules,
    *,
    extra: Sequence[GateCheck] = (),
) -> GateResult:
    """Judge two models' predictions for the same images; it passes when every check does, the ``extra`` ones too.

    Images of the base set (source "", imager "base") count as an imager, not in the lab's own numbers. Raises
    MarcodError when the two were asked about different images, ValueError for an unknown ``primary``.
    """
    everything = paired.pair(champion, candidate)
    lab = everything.only(everything.is_lab)
    checks = (
        _enough(lab, rules),
        keeps_crystals(lab, rules),
        _primary(lab, rules),
        _precision(lab, rules),
        _false_alarms(lab, rules),
        *_imagers(everything, rules),
        *extra,
    )
    return GateResult(all(check.passed for check in checks), checks, _numbers(everything, lab, rules, checks))


def labels_trusted(suspects: int, judged: int, rules: Rules) -> GateCheck:
    """Check that few labels look wrong: ``suspects`` of ``judged``, by a model that had not seen them."""
    share = suspects / judged if judged else None
    limit = f"from {_percent(rules.label_noise)} on nothing is promoted"
    if share is None:
        sentence = "no label was compared with a model that had not seen it, so it is unknown how many labels are wrong"
    else:
        look = "looks" if suspects == 1 else "look"
        sentence = f"{suspects} of {count(judged, 'label')} {look} wrong ({_percent(share)}); {limit}"
        sentence += "" if share < rules.label_noise else "; `marcod label suspects` lists them"
    numbers = {"suspects": suspects, "labels": judged, "share": share, "limit": rules.label_noise}
    return GateCheck("label noise", share is not None and share < rules.label_noise, sentence, numbers)


def _enough(lab: PairedScores, rules: Rules) -> GateCheck:
    check = enough(_counts(lab), rules)
    if not lab.left_out:
        return check
    unreadable = f"images that could not be read and count for neither: {len(lab.left_out)}"
    return replace(check, sentence=f"{check.sentence}; {unreadable}")


def enough(found: Mapping[str, int], rules: Rules) -> GateCheck:
    """Check that a test side has enough ``drops``, ``plates`` and drops with ``crystals``; labels alone decide it."""
    needed = {"crystals": rules.min_crystals, "drops": rules.min_drops, "plates": rules.min_plates}
    sentence = (
        f"the test side has {count(found['crystals'], 'drop')} with crystals, {count(found['drops'], 'drop')} and "
        f"{count(found['plates'], 'plate')}; a promotion takes {needed['crystals']}, {needed['drops']} and "
        f"{needed['plates']}"
    )
    numbers = {**found, **{f"{name}_needed": count for name, count in needed.items()}}
    return GateCheck("enough drops", all(found[name] >= count for name, count in needed.items()), sentence, numbers)


def _counts(lab: PairedScores) -> dict[str, int]:
    drops, crystal = lab.drops, lab.is_crystal
    return {
        "crystals": len({drop for drop, is_crystal in zip(drops, crystal, strict=True) if is_crystal}),
        "drops": len(set(drops)),
        "plates": len(set(lab.plates)),
    }


def keeps_crystals(lab: PairedScores, rules: Rules) -> GateCheck:
    """Check that with confidence the loss of crystals, each model at its own threshold, is within the margin."""
    name = "crystal recall"
    found = paired.difference(lab, paired.recall, rules.resamples, rules.seed)
    bound = found.at_least(rules.confidence)
    numbers = {
        "champion": found.champion, "candidate": found.candidate, "difference": found.value,
        "bound": bound, "margin": rules.recall_margin,
    }  # fmt: skip
    if found.champion is None or found.candidate is None or bound is None:
        return GateCheck(name, False, f"{name} cannot be compared: {_lacking(lab)}", numbers)
    loss = max(0.0, -bound)
    sentence = (
        f"{name} at its own threshold is {_percent(found.candidate)}, the champion's {_percent(found.champion)}; "
        f"with {_percent(rules.confidence)} confidence at most {_points(loss)} are lost, "
        f"and {_points(rules.recall_margin)} may be"
    )
    return GateCheck(name, bound >= -rules.recall_margin - _ROUNDING, sentence, numbers)


def _primary(lab: PairedScores, rules: Rules) -> GateCheck:
    """Check superiority in enough resamples."""
    name, measure, sign = _MEASURES[_primary_of(lab, rules)]

    def gain(pair: PairedScores, model: ModelScores, weights: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return sign * measure(pair, model, weights)

    found = paired.difference(lab, gain, rules.resamples, rules.seed)
    sure = found.above_zero()
    was, now = (None if v is None else sign * v for v in (found.champion, found.candidate))
    numbers = {
        "champion": was, "candidate": now, "improvement": found.value,
        "better_in": sure, "needed": rules.needed, "looks": rules.looks,
    }  # fmt: skip
    if was is None or now is None or found.value is None:
        return GateCheck(name, False, f"{name} cannot be compared: {_lacking(lab)}", numbers)
    sentence = (
        f"{name} is {now:.3f}, the champion's {was:.3f}; it is better in {_finely(sure)} of the resampled test sides, "
        f"and {_finely(rules.needed)} are needed"
    )
    better = found.value > 0
    if rules.looks:
        sentence += f", because of {_looks(rules.looks)} at this test side before"
    if better and replace(rules, looks=0.0).needed <= sure < rules.needed:
        sentence += "; at a first look that would do: label drops on more plates"
    return GateCheck(name, better and sure >= rules.needed, sentence, numbers)


def _primary_of(lab: PairedScores, rules: Rules) -> str:
    """Return the measure that must get better: the log loss where both models rank every crystal first already."""
    if rules.primary not in _MEASURES:
        raise ValueError(f"unknown primary measure {rules.primary!r}")
    if not lab.is_crystal.any():
        return rules.primary
    once = lab.weights[np.newaxis]
    areas = (paired.value_of(paired.average_precision(lab, model, once)) for model in (lab.champion, lab.candidate))
    ranked = all(area is not None and area >= 1 - _ROUNDING for area in areas)
    return LOG_LOSS if ranked else rules.primary


def _looks(looks: float) -> str:
    """Write a number of looks, which may be broken: a look at a part of the drops counts as that part."""
    return count(round(looks), "look") if abs(looks - round(looks)) < 0.05 else f"{looks:.1f} looks"


def _precision(lab: PairedScores, rules: Rules) -> GateCheck:
    """Check that precision is not far below the champion's, own or at the candidate's recall.

    Without the second a candidate that finds more crystals would be blamed for the false alarms that go with it.
    """
    name = "crystal precision"
    once = lab.weights[np.newaxis]
    was, now = (
        paired.value_of(paired.share(lab.is_crystal, model.flagged, once)) for model in (lab.champion, lab.candidate)
    )
    reached = paired.value_of(paired.recall(lab, lab.candidate, once))
    same = None if reached is None else paired.at_recall(lab, lab.champion, reached)[0]
    against = min((p for p in (was, same) if p is not None), default=None)
    numbers = {
        "champion": was, "champion_at_same_recall": same, "candidate": now, "margin": rules.precision_margin,
    }  # fmt: skip
    if now is None or against is None:
        why = _lacking(lab) if reached is None else "the candidate calls no drop a hit"
        return GateCheck(name, False, f"{name} cannot be compared: {why}", numbers)
    sentence = (
        f"{name} at its own threshold is {_percent(now)}, the champion's {_percent(was)} at its own and "
        f"{_percent(same)} at the same recall; {_points(rules.precision_margin)} below the lower of them are allowed"
    )
    return GateCheck(name, now >= against - rules.precision_margin - _ROUNDING, sentence, numbers)


def _false_alarms(lab: PairedScores, rules: Rules) -> GateCheck:
    """Check the false alarms: a threshold near 0 finds every crystal and is useless.

    The champion is asked at the wished recall as well: on an imager that it does not know it may miss half of the
    crystals, and a candidate must not be blamed for the alarms that finding them costs.
    """
    name = "false alarms"
    once = lab.weights[np.newaxis]
    was, now = (
        paired.value_of(paired.share(model.flagged, ~lab.is_crystal, once)) for model in (lab.champion, lab.candidate)
    )
    _, wished = paired.at_recall(lab, lab.champion, rules.recall)
    numbers = {
        "champion": was, "champion_at_wished_recall": wished, "candidate": now, "limit": rules.most_false_alarms,
    }  # fmt: skip
    if was is None or now is None:
        return GateCheck(name, False, f"{name} cannot be compared: {_lacking(lab)}", numbers)
    limit = max(rules.most_false_alarms, was, wished or 0.0)
    sentence = (
        f"{_percent(now)} of the drops without crystals are called hits, {_percent(was)} by the champion, which would "
        f"call {_percent(wished)} hits to find {_percent(rules.recall)} of the crystals; {_percent(limit)} may be"
    )
    return GateCheck(name, now <= limit + _ROUNDING, sentence, numbers)


def _imagers(everything: PairedScores, rules: Rules) -> Iterator[GateCheck]:
    """Check each imager: no loss of accuracy or recall above the margin that is more than chance."""
    names = np.array(everything.imagers)
    for name in sorted(set(names)):
        yield _imager(str(name), everything.only(names == name), rules)


def _imager(name: str, part: PairedScores, rules: Rules) -> GateCheck:
    every = np.ones(len(part.labels), np.bool_)
    right = [model.scores.argmax(axis=1) == part.labels for model in (part.champion, part.candidate)]
    found = [model.flagged for model in (part.champion, part.candidate)]
    losses = [
        _loss(part, what, correct, among, rules)
        for what, correct, among in (("accuracy", right, every), ("crystal recall", found, part.is_crystal))
        if among.any()
    ]
    passed = all(loss.passed for loss in losses)
    numbers = {key: value for loss in losses for key, value in loss.numbers.items()}
    numbers |= {"drops": len(set(part.drops)), "margin": rules.imager_margin}
    sentences = " and ".join(loss.sentence for loss in losses)
    ending = "" if passed else f"; {_points(rules.imager_margin)} may be lost, and chance does not explain so many"
    return GateCheck(f"imager {name}", passed, f"imager {name}: {sentences}{ending}", numbers)


def _loss(
    part: PairedScores, what: str, correct: Sequence[NDArray[np.bool_]], among: NDArray[np.bool_], rules: Rules
) -> GateCheck:
    """Check that one loss is within the margin or may be chance; ``correct`` is where each model is right."""
    before, after = (float(paired.share(one, among, part.weights[np.newaxis])[0]) for one in correct)
    lost, gained = paired.lost_and_gained(part, correct[0], correct[1], among)
    chance = paired.chance_of_loss(lost, gained)
    values = {"champion": before, "candidate": after, "lost": lost, "gained": gained, "chance": chance}
    worse = before - after > rules.imager_margin + _ROUNDING and chance < 1 - rules.confidence
    sentence = f"{what} {_percent(after)} after {_percent(before)} ({count(lost, 'drop')} lost, {gained} gained)"
    return GateCheck(what, not worse, sentence, {f"{what.replace(' ', '_')}_{key}": v for key, v in values.items()})


def _lacking(lab: PairedScores) -> str:
    if not len(lab.labels):
        return "no labelled drop of the lab's own is on the test side"
    if not lab.is_crystal.any():
        return "no drop with crystals is on the test side"
    if lab.is_crystal.all():
        return "no drop without crystals is on the test side"
    return "there are too few drops on the test side"


def _numbers(everything: PairedScores, lab: PairedScores, rules: Rules, checks: Sequence[GateCheck]) -> dict[str, Any]:
    return {
        **_counts(lab),
        "units": len(lab.labels),
        "base_drops": len(set(everything.drops)) - len(set(lab.drops)),
        "left_out": list(everything.left_out),
        "champion": _of_model(lab, lab.champion),
        "candidate": _of_model(lab, lab.candidate),
        "rules": asdict(rules),
        "checks": [asdict(check) for check in checks],
    }


def _of_model(lab: PairedScores, model: ModelScores) -> dict[str, Any]:
    """Return a model's headline numbers on the lab's test drops; None where one is undefined."""
    about: dict[str, Any] = {"model": model.name, "digest": model.digest, "threshold": model.threshold}
    if not len(lab.labels):
        return about
    once, crystal = lab.weights[np.newaxis], lab.is_crystal
    every = np.ones(len(crystal), np.bool_)
    right = model.scores.argmax(axis=1) == lab.labels
    values = {
        "accuracy": paired.share(right, every, once),
        "crystal_recall": paired.recall(lab, model, once),
        "crystal_precision": paired.share(crystal, model.flagged, once),
        "false_alarms": paired.share(model.flagged, ~crystal, once),
        "flagged": paired.share(model.flagged, every, once),
        AVERAGE_PRECISION: paired.average_precision(lab, model, once),
        LOG_LOSS: paired.log_loss(lab, model, once),
    }
    return about | {name: paired.value_of(value) for name, value in values.items()}


_ROUNDING: Final = 1e-9
"""Tolerance, so that a loss of exactly the margin is within it in spite of rounding."""


def _percent(share: float | None) -> str:
    return "undefined" if share is None else f"{100 * share:.1f} %"


def _finely(share: float) -> str:
    """Format a share close to 1 with as many digits as it needs, rounded down."""
    digits = 1
    while digits < 6 and 0 < 100 * (1 - share) < 10 ** (1 - digits):
        digits += 1
    return f"{math.floor(share * 10 ** (2 + digits) + _ROUNDING) / 10**digits:.{digits}f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"

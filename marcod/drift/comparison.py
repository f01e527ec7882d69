"""Statistical comparison of an imager's recent images with its reference.

Each signal is a mean or a share over a plate's drops. A plate's *deviation* is the mean, over the ages at which it was
seen, of its difference from the reference's plates of the same age. Student's t-test compares the window's deviations
with the reference's. The plate is the unit: drops of a plate are alike, so ten thousand images of thirty plates are
thirty observations. Comparing within ages is what Rabanser et al. (arXiv 1810.11953) leave to the reader: old plates
hold more crystals without any drift. As there, every signal has its own test, at a level small enough for all together.
A signal raises an alarm only when the shift is also large enough: for measured values the Kolmogorov-Smirnov distance
of the drops' distributions, for shares the difference.
"""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from marcod.domain import CLASSES
from marcod.drift import statistics
from marcod.drift.days import LASTING
from marcod.drift.statistics import Ages, Cell, PlateSums

REFERENCE_PLATES: Final = 8
"""Plates of one age that a reference needs, in addition to its images: fewer do not show the usual variation."""

WINDOW_PLATES: Final = 3
"""Plates that a window needs."""

EMPTY_SHARE: Final = 0.01
"""Share of the reference's images, those of the least contrast for their brightness, that are called empty."""

LEAST_P: Final = 1e-99

IMAGES: Final = "images"
FOCUS: Final = "focus"
SCORES: Final = "scores"
KINDS: Final = (IMAGES, FOCUS, SCORES)
"""Kinds of signals: of the images whatever model there is, of their focus, which depends on the number of pixels that
the model takes, and of the model's scores."""

Reading = tuple[float, float]
"""A sum and the number of images it is over."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One watched quantity; ``least`` is the smallest shift worth a look.

    ``histogram`` names the distribution whose distance is compared with ``least``; shares have none. ``higher`` and
    ``lower`` describe a shift up or down; ``part`` is the class of a share that is one of several under one name.
    """

    name: str
    read: Callable[[PlateSums, int], Reading]
    least: float
    histogram: str | None
    higher: str
    lower: str
    part: str = ""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.name)


def kind_of(signal: str) -> str:
    """Return the kind of a signal by its name, one of KINDS."""
    if signal == FOCUS:
        return FOCUS
    return IMAGES if signal in LASTING else SCORES


def _measure(name: str) -> Callable[[PlateSums, int], Reading]:
    place = statistics.MEASURES.index(name)
    return lambda plate, empty_below: (float(plate.measures[place]), plate.images)


def _class(place: int) -> Callable[[PlateSums, int], Reading]:
    return lambda plate, empty_below: (float(plate.classes[place]), plate.images)


def _empty(plate: PlateSums, empty_below: int) -> Reading:
    return int(plate.reliefs[:empty_below].sum()), plate.images


def _failures(plate: PlateSums, empty_below: int) -> Reading:
    return plate.failed, plate.failed + plate.images


SIGNALS: Final = (
    Signal(
        "brightness", _measure(statistics.BRIGHTNESS), 0.2, statistics.BRIGHTNESS,
        "the images of {source} are brighter; look at its lamp and exposure",
        "the images of {source} are darker; look at its lamp, exposure and shutter",
    ),
    Signal(
        "contrast", _measure(statistics.CONTRAST), 0.2, statistics.CONTRAST,
        "the images of {source} have more contrast; look at its lamp and exposure",
        "the images of {source} have less contrast; look at its lamp, focus and optics",
    ),
    Signal(
        "focus", _measure(statistics.FOCUS), 0.2, statistics.FOCUS,
        "the images of {source} are sharper or noisier; look at its camera's gain and compression",
        "the images of {source} are less sharp; look at its focus and optics",
    ),
    Signal(
        "empty", _empty, 0.03, None,
        "{source} shows more images without any contrast; look at its lamp and shutter, and at the dispenser",
        "{source} shows fewer images without any contrast",
    ),
    Signal(
        "failures", _failures, 0.02, None,
        "more images of {source} cannot be read; `marcod queue failed` shows why",
        "fewer images of {source} are unreadable",
    ),
    Signal(
        "confidence", _measure(statistics.CONFIDENCE), 0.2, statistics.CONFIDENCE,
        "the model is surer of the images of {source} than it was",
        "the model is less sure of the images of {source}; review some of them and label them",
    ),
    Signal(
        "crystals", _measure(statistics.P_CRYSTALS), 0.15, statistics.P_CRYSTALS,
        "the model sees more crystals at {source} than in plates of that age before; review some",
        "the model sees fewer crystals at {source} than in plates of that age before; review some",
    ),
    *(
        Signal(
            "classes", _class(place), 0.15, None,
            "the model calls more drops of {source} " + str(name) + " than in plates of that age before; review some",
            "the model calls fewer drops of {source} " + str(name) + " than in plates of that age before; review some",
            str(name),
        )
        for place, name in enumerate(CLASSES)
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """Comparison of one signal: ``value`` now, ``reference`` for plates of the same ages, the difference's p-value.

    ``shift`` is compared with ``least``; ``days`` is the window's length. ``part`` is the class concerned.
    """

    signal: str
    value: float
    reference: float
    p_value: float
    shift: float
    least: float
    plates: int
    images: int
    days: int
    part: str
    alarm: bool
    detail: str


def judge(
    reference: Ages,
    window: Ages,
    *,
    source: str,
    days: int,
    tests: int,
    least_images: int,
    level: float,
    kinds: Container[str] = KINDS,
) -> list[DriftFinding]:
    """Make one finding for each signal with enough images; ages without a reference are left out.

    Only signals of ``kinds`` are compared. ``tests`` is the number of windows; each p-value is multiplied by that and
    by the parts of its signal.
    """
    shared = {age: cell for age, cell in window.items() if age in reference}
    empty_below = _emptiest(reference)
    best: dict[str, DriftFinding] = {}
    for signal in SIGNALS:
        if signal.kind not in kinds:
            continue
        parts = sum(other.name == signal.name for other in SIGNALS)
        found = _compare(signal, reference, shared, empty_below, least_images, days, tests * parts)
        if found is not None and (signal.name not in best or found.p_value < best[signal.name].p_value):
            alarm = found.p_value < level and found.shift >= found.least
            best[signal.name] = replace(found, alarm=alarm, detail=_sentence(signal, found, source))
    return list(best.values())


def _emptiest(reference: Ages) -> int:
    """Find the bin of RELIEF below which the emptiest hundredth of the reference's images lies."""
    plates = [plate.reliefs for cell in reference.values() for plate in cell.plates.values()]
    so_far = np.cumsum(np.sum(plates, axis=0))
    return int(np.count_nonzero(so_far <= EMPTY_SHARE * so_far[-1]))


def _compare(
    signal: Signal, reference: Ages, window: Ages, empty_below: int, least_images: int, days: int, tests: int
) -> DriftFinding | None:
    usual = {age: _readings(signal, reference[age], empty_below) for age in window}
    now = {age: _readings(signal, cell, empty_below) for age, cell in window.items() if usual[age]}
    usual = {age: usual[age] for age in now}
    means = {age: sum(top / under for top, under in of.values()) / len(of) for age, of in usual.items()}
    images = sum(under for of in now.values() for _, under in of.values())
    here, there = _deviations(now, means), _deviations(usual, means)
    if images < least_images or len(here) < WINDOW_PLATES or len(there) < WINDOW_PLATES:
        return None
    weights = {age: sum(under for _, under in of.values()) / images for age, of in now.items()}
    # A reference of one age is as uncertain as its own plates; the bound holds for any correlation of a plate's ages.
    doubt = 1 / len(here) + sum(weight / len(usual[age]) for age, weight in weights.items())
    mean = sum(here) / len(here)
    spread = max(_pooled(here, there), 0.0 if signal.histogram else _chance(usual, now))
    p_value = t_test(mean / math.sqrt(max(spread * doubt, 1e-18)), len(here) + len(there) - 2)
    value = sum(weights[age] * sum(t / u for t, u in of.values()) / len(of) for age, of in now.items())
    shift = abs(mean) if signal.histogram is None else _distance(signal.histogram, reference, window, weights)
    return DriftFinding(
        signal.name, value, value - mean, min(1.0, max(LEAST_P, p_value * tests)), shift, signal.least,
        len(here), round(images), days, signal.part, alarm=False, detail="",
    )  # fmt: skip


def _readings(signal: Signal, cell: Cell, empty_below: int) -> dict[int, Reading]:
    """Read a signal of each plate that has any images for it."""
    found = {plate_id: signal.read(plate, empty_below) for plate_id, plate in cell.plates.items()}
    return {plate_id: reading for plate_id, reading in found.items() if reading[1]}


def _deviations(readings: dict[int, dict[int, Reading]], means: dict[int, float]) -> list[float]:
    """Compute each plate's mean deviation from the reference's means at the same ages."""
    tops: dict[int, float] = {}
    unders: dict[int, float] = {}
    for age, of in readings.items():
        for plate_id, (top, under) in of.items():
            tops[plate_id] = tops.get(plate_id, 0.0) + top - under * means[age]
            unders[plate_id] = unders.get(plate_id, 0.0) + under
    return [top / unders[plate_id] for plate_id, top in tops.items()]


def _pooled(here: list[float], there: list[float]) -> float:
    """Pool the variance between plates around each side's own mean."""
    around = sum(len(side) * float(np.var(side)) for side in (here, there))
    return around / (len(here) + len(there) - 2)


def _chance(*sides: dict[int, dict[int, Reading]]) -> float:
    """Compute the least variance of a plate's share, that of independent draws; equal plates would have none at all."""
    every = [reading for side in sides for of in side.values() for reading in of.values()]
    under = sum(u for _, u in every)
    share = (sum(t for t, _ in every) + 0.5) / (under + 1)
    return share * (1 - share) * len(every) / under


def _distance(name: str, reference: Ages, window: Ages, weights: dict[int, float]) -> float:
    """Compute the Kolmogorov-Smirnov distance of the window's drops from the reference's at the same ages."""
    gap = np.zeros(statistics.SCALES[name].bins)
    for age, weight in weights.items():
        now, usual = window[age].histograms[name], reference[age].histograms[name]
        gap += weight * (now / max(1, now.sum()) - usual / max(1, usual.sum()))
    return float(np.abs(np.cumsum(gap)).max())


def _sentence(signal: Signal, found: DriftFinding, source: str) -> str:
    name = f"share of {signal.part}" if signal.part else signal.name
    meaning = signal.higher if found.value > found.reference else signal.lower
    return (
        f"{name} {found.value:.3g}, was {found.reference:.3g} (p {found.p_value:.0e}): {meaning.format(source=source)}"
    )


def t_test(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t."""
    if t == 0:
        return 1.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function, for x in 0..1."""
    if x in (0.0, 1.0):
        return x
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges fast on this side; the other follows by symmetry.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8), by Lentz."""
    found = top = 1.0
    below = 1 / _not_zero(1 - (a + b) * x / (a + 1))
    found = below
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            below = 1 / _not_zero(1 + term * below)
            top = _not_zero(1 + term / top)
            found *= top * below
        if abs(top * below - 1) < _EXACT:
            break
    return found


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


_TERMS: Final = 500
_EXACT: Final = 1e-15
_TINY: Final = 1e-300

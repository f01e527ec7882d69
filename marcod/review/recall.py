"""Crystal recall of a model, estimated from a stratified random audit of few drops.

The point estimate needs no assumptions. The interval covers the truth in at least 95 of 100 labs; a test and
``benchmarks/recall.py`` measure that on simulated labs. It covers fewer labs of one kind: a threshold so low that it
flags most drops, with the few crystals below it spread evenly.

The point estimate is the stratified ratio of Horvitz and Thompson (J. Am. Stat. Assoc. 47, 1952): an audited drop
stands for as many as were there for each that was drawn. No large-sample interval can go with it: a stratum of
thousands in which forty audited drops show no crystal gives no variance and may still hide many.

The interval takes the drops for a sample of a superpopulation (Ericson, J. R. Stat. Soc. B 31, 1969): in stratum h each
has crystals with probability p_h; those audited are seen, of the others as many have them as a binomial says. The one
assumption is that a higher score never means fewer crystals: p is that of the stratum above, 1 above the highest, times
a Beta(c, 1). The posterior of this chain is exact on a grid (forward
filtering, backward sampling). As in Clopper and Pearson's interval each end has the prior that is against it: the lower
one a slow fall (c = ``SLOW``), under which many crystals hide where nobody looked, the upper one a fast (c = ``FAST``).
The interval is widened where the point estimate lies outside.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

CONFIDENCE: Final = 0.95
DRAWS: Final = 2000
LEAST_ANSWERS: Final = 30
LEAST_CRYSTALS: Final = 5
"""Answered drops, and crystals among them, below which nothing is said."""

FLAGGED_SHARE: Final = 0.2
"""Share of an audit that is drawn among the drops above the threshold."""

FLAGGED_PARTS: Final = (0.5, 0.5)
UNFLAGGED_PARTS: Final = (0.01, 0.02, 0.05, 0.12, 0.30, 0.50)
"""Parts of the drops above and below the threshold that make a stratum each, from the highest score down."""

SLOW: Final = 1.75
FAST: Final = 0.2
"""Rates at which crystals may thin out from a stratum to the next: for the interval's lower and upper end."""

_GRID: Final = np.geomspace(1e-7, 1.0, 600)


@dataclass(frozen=True, slots=True)
class AnsweredStratum:
    """Drops of similar score: how many there are, how many people have judged, and in how many they saw crystals."""

    flagged: bool
    population: int
    answered: int
    crystals: int


@dataclass(frozen=True, slots=True)
class RecallEstimate:
    """The share of the crystals that score at or above the threshold, with the interval of ``CONFIDENCE``."""

    recall: float
    low: float
    high: float


def estimate(strata: Sequence[AnsweredStratum], *, seed: int = 0) -> RecallEstimate | None:
    """Estimate the recall from strata in falling order of score, or None where too little was answered.

    Too little are a stratum without an answer, fewer than ``LEAST_ANSWERS`` answers or ``LEAST_CRYSTALS`` crystals,
    or none above the threshold.
    """
    filled = [s for s in strata if s.population]
    crystals, found = sum(s.crystals for s in filled), sum(s.crystals for s in filled if s.flagged)
    unseen = any(s.answered == 0 for s in filled)
    if unseen or sum(s.answered for s in filled) < LEAST_ANSWERS or crystals < LEAST_CRYSTALS or not found:
        return None
    tail = (1 - CONFIDENCE) / 2
    rng = np.random.default_rng(seed)
    low = np.quantile(_recalls(filled, rng, SLOW), tail)
    high = np.quantile(_recalls(filled, rng, FAST), 1 - tail)
    point = _weighted(filled)
    return RecallEstimate(point, min(float(low), point), max(float(high), point))


def _weighted(strata: Sequence[AnsweredStratum]) -> float:
    """Compute the ratio of the inversely weighted counts."""
    counts = [s.population * s.crystals / s.answered for s in strata]
    return sum(n for n, s in zip(counts, strata, strict=True) if s.flagged) / sum(counts)


def _recalls(strata: Sequence[AnsweredStratum], rng: np.random.Generator, fall: float) -> Floats:
    """Draw recalls [DRAWS] from the posterior."""
    found, every = np.zeros(DRAWS), np.zeros(DRAWS)
    for s, share in zip(strata, _shares(strata, rng, fall), strict=True):
        crystals = s.crystals + rng.binomial(s.population - s.answered, share)
        every += crystals
        found += crystals if s.flagged else 0
    return found / np.maximum(every, 1)


def _shares(strata: Sequence[AnsweredStratum], rng: np.random.Generator, fall: float) -> list[Floats]:
    """Draw each stratum's share of crystals [DRAWS], none above that of the stratum before it."""
    # The density of a Beta(fall, 1), on a grid that is even in the logarithm.
    weights = _GRID**fall
    below: Floats = np.ones_like(_GRID)
    sums: list[Floats] = []
    for s in reversed(strata):
        sums.append(np.cumsum(weights * _likelihood(s) * below))
        below = sums[-1] / np.cumsum(weights)
        below = below / below.max()
    at = np.full(DRAWS, len(_GRID) - 1)
    shares = []
    for summed in reversed(sums):
        at = np.minimum(np.searchsorted(summed, rng.random(DRAWS) * summed[at]), at)
        shares.append(_GRID[at])
    return shares


def _likelihood(s: AnsweredStratum) -> Floats:
    """Compute the likelihood of the answers at each share of the grid, up to a factor."""
    others = s.answered - s.crystals
    with np.errstate(divide="ignore"):
        logs = s.crystals * np.log(_GRID) + (others * np.log1p(-_GRID) if others else 0)
    return np.asarray(np.exp(logs - logs.max()))


@dataclass(frozen=True, slots=True)
class Slice:
    """A stratum to be drawn from: how many drops it has, and how many are drawn."""

    flagged: bool
    population: int
    sample: int


def plan(drops: int, flagged: int, unflagged: int) -> list[Slice]:
    """Spread an audit of ``drops`` over the drops above and below the threshold, the highest first.

    The drops below are cut at ranks, not at scores, so that a model's confidence does not matter. Each
    stratum is larger than the one above it and gets as many, so that drops are likelier drawn where crystals are.
    """
    of_flagged = min(flagged, max(round(drops * FLAGGED_SHARE), drops - unflagged))
    sides = ((True, FLAGGED_PARTS, flagged, of_flagged), (False, UNFLAGGED_PARTS, unflagged, drops - of_flagged))
    return [
        Slice(side, population, sample)
        for side, parts, every, drawn in sides
        for population, sample in _drawn(_sizes(parts, every), drawn)
    ]


def _sizes(parts: Sequence[float], population: int) -> list[int]:
    """Cut a population into parts of whole drops; the last has the rest of the rounding."""
    ends = [math.ceil(population * sum(parts[: i + 1])) for i in range(len(parts) - 1)]
    marks = [0, *(min(end, population) for end in ends), population]
    return [high - low for low, high in pairwise(marks)]


def _drawn(populations: Sequence[int], sample: int) -> Iterator[tuple[int, int]]:
    """Spread draws evenly over the populations, none with more than it has."""
    left, drawn = min(sample, sum(populations)), [0] * len(populations)
    while left:
        open_ = [i for i, n in enumerate(populations) if drawn[i] < n]
        for place, i in enumerate(open_):
            more = min(populations[i] - drawn[i], -(-left // (len(open_) - place)))
            drawn[i] += more
            left -= more
    return zip(populations, drawn, strict=True)

"""How often the interval of `marcod review recall` holds the true recall of a simulated lab, and how wide it is.

A lab is so many drops of which some have crystals, each with a score as a logit. The scores of drops without crystals
are normal, those of crystals normal and a few standard deviations above; in a lab with blind spots half of what the
model misses looks like any other drop; with heavy tails the crystals' scores are of Student's t with 3 degrees of
freedom. The threshold is where the wanted recall is.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Table
from marcod.review import recall
from marcod.review.recall import AnsweredStratum

KINDS: Final = ("sharp", "middling", "blind spots", "heavy tails")
PREVALENCES: Final = (0.01, 0.03, 0.15)
RECALLS: Final = (0.80, 0.95, 0.99)
DROPS: Final = (2_000, 20_000, 100_000)
AUDITS: Final = (200, 300, 500)
SEED: Final = 20261

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def run(bench: Bench) -> Iterator[Table]:
    """One table: a line a kind of lab, prevalence and recall, over all sizes of labs and audits."""
    labs = bench.size(40, 3)
    rows: list[list[Cell]] = []
    every: list[bool] = []
    for kind in KINDS:
        bench.say(f"recall: {kind}")
        for prevalence in PREVALENCES:
            for wanted in RECALLS:
                held, cells = _setting(kind, prevalence, wanted, labs)
                rows.append([kind, f"{prevalence:.0%}", f"{wanted:.0%}", *cells])
                every.extend(held)
    yield Table(
        "Interval of the crystal recall",
        f"{100 * float(np.mean(every)):.1f} % of all {len(every)} intervals hold the truth; labs of {DROPS} drops, "
        f"audits of {AUDITS}, {labs} labs each, seed {SEED}. Where too little was found nothing is said.",
        ("lab", "crystals", "recall", "labs told", "told, %", "interval holds the truth, %", "mean width, points",
         "mean lower end, %", "mean error of the point, points"),
        rows,
    )  # fmt: skip


def _setting(kind: str, prevalence: float, wanted: float, labs: int) -> tuple[list[bool], list[Cell]]:
    """Whether each interval held the truth, and the cells of the line."""
    held: list[bool] = []
    widths, lows, errors = [], [], []
    for drops in DROPS:
        for sample in AUDITS:
            seeds = [SEED, KINDS.index(kind), round(1000 * prevalence), round(100 * wanted), drops, sample]
            rng = np.random.default_rng(seeds)
            for _ in range(labs):
                truth, strata = _lab(rng, kind, drops, prevalence, wanted, sample)
                if (found := recall.estimate(strata)) is not None:
                    held.append(found.low - 1e-9 <= truth <= found.high + 1e-9)
                    widths.append(found.high - found.low)
                    lows.append(found.low)
                    errors.append(found.recall - truth)
    told = 100 * len(held) / (labs * len(DROPS) * len(AUDITS))
    means = [100 * float(np.mean(values)) if values else float("nan") for values in (held, widths, lows, errors)]
    return held, [len(held), *(round(number, 1) for number in (told, *means))]


def _lab(
    rng: np.random.Generator, kind: str, drops: int, prevalence: float, wanted: float, sample: int
) -> tuple[float, list[AnsweredStratum]]:
    """The true recall of a lab, and what an audit of it finds."""
    crystals = rng.random(drops) < prevalence
    scores = _scores(rng, kind, crystals, wanted)
    threshold = np.quantile(scores[crystals], 1 - wanted)
    truth = crystals[np.argsort(-scores, kind="stable")]
    flagged = int((scores >= threshold).sum())
    strata, start = [], 0
    for part in recall.plan(sample, flagged, drops - flagged):
        have = int(truth[start : start + part.population].sum())
        seen = int(rng.hypergeometric(have, part.population - have, part.sample)) if part.sample else 0
        strata.append(AnsweredStratum(part.flagged, part.population, part.sample, seen))
        start += part.population
    return float((scores[crystals] >= threshold).mean()), strata


def _scores(rng: np.random.Generator, kind: str, crystals: Mask, wanted: float) -> Floats:
    scores: Floats = rng.normal(0, 1.2, len(crystals))
    count = int(crystals.sum())
    if kind == "heavy tails":
        scores[crystals] = 4 + rng.standard_t(3, count)
        return scores
    looks_like_others = rng.random(count) < (1 - wanted) / 2 if kind == "blind spots" else np.zeros(count, bool)
    shifted = rng.normal(3.0 if kind == "middling" else 4.5, 1.0, count)
    scores[crystals] = np.where(looks_like_others, scores[crystals], shifted)
    return scores

"""The recall from a random audit: its point, its interval, and how often the interval holds the truth. Simulated."""

import numpy as np
import pytest

from marcod.review import recall
from marcod.review.recall import AnsweredStratum, RecallEstimate


def audited(
    rng: np.random.Generator, scores: np.ndarray, crystals: np.ndarray, threshold: float, drops: int
) -> list[AnsweredStratum]:
    """An audit of a simulated lab whose drops have these scores [n]; ``crystals`` [n] tells which have some."""
    truth = crystals[np.argsort(-scores, kind="stable")]
    flagged = int((scores >= threshold).sum())
    strata, start = [], 0
    for part in recall.plan(drops, flagged, len(scores) - flagged):
        have = int(truth[start : start + part.population].sum())
        seen = int(rng.hypergeometric(have, part.population - have, part.sample)) if part.sample else 0
        strata.append(AnsweredStratum(part.flagged, part.population, part.sample, seen))
        start += part.population
    return strata


def lab(rng: np.random.Generator, drops: int, prevalence: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] as logits and crystals [n]; those of crystals lie ``apart`` above the others'."""
    crystals = rng.random(drops) < prevalence
    return rng.normal(0, 1.2, drops) + np.where(crystals, apart, 0.0), crystals


SETTINGS = [
    (2_000, 0.03, 0.95, 4.0, 300), (2_000, 0.15, 0.80, 3.0, 200), (20_000, 0.01, 0.80, 4.5, 500),
    (20_000, 0.03, 0.95, 4.0, 300), (20_000, 0.15, 0.99, 4.5, 300), (100_000, 0.05, 0.90, 3.5, 500),
]  # fmt: skip
"""Drops, prevalence, recall, distance of the scores, drops audited."""


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_95_of_100_labs() -> None:
    held, widths = [], []
    for setting, (drops, prevalence, wanted, apart, sample) in enumerate(SETTINGS):
        rng = np.random.default_rng([5, setting])
        scores, crystals = lab(rng, drops, prevalence, apart)
        threshold = np.quantile(scores[crystals], 1 - wanted)
        truth = float((scores[crystals] >= threshold).mean())
        for _ in range(50):
            found = recall.estimate(audited(rng, scores, crystals, threshold, sample))
            if found is not None:
                held.append(found.low <= truth <= found.high)
                widths.append(found.high - found.low)
    assert len(held) > 250
    assert np.mean(held) >= 0.93
    assert np.mean(widths) < 0.35


def test_an_estimate_is_the_same_to_the_last_digit_whatever_computes_its_likelihood() -> None:
    first = [
        AnsweredStratum(True, 100, 50, 40),
        AnsweredStratum(False, 900, 90, 2),
        AnsweredStratum(False, 9_000, 90, 0),
    ]
    whole = [
        AnsweredStratum(True, 40, 40, 40),
        AnsweredStratum(True, 60, 20, 11),
        AnsweredStratum(False, 500, 60, 3),
        AnsweredStratum(False, 5_000, 60, 0),
    ]
    expected = [
        (0.8, 0.19146403242147927, 0.9411935704514363), (0.7448979591836735, 0.18005137111785313, 0.9032355227361056),
    ]  # fmt: skip
    found = [recall.estimate(strata, seed=3) for strata in (first, whole)]
    assert [(e.recall, e.low, e.high) for e in found if e] == [pytest.approx(numbers, rel=1e-9) for numbers in expected]


def test_the_point_is_weighted_inversely() -> None:
    strata = [
        AnsweredStratum(True, 100, 50, 40),
        AnsweredStratum(False, 900, 90, 2),
        AnsweredStratum(False, 9_000, 90, 0),
    ]
    found = recall.estimate(strata)
    assert found is not None
    # 40 of 50 stand for 80 of 100, 2 of 90 for 20 of 900.
    assert found.recall == pytest.approx(80 / (80 + 20))
    assert found.low < 0.8 < found.high < 0.97
    assert recall.estimate(strata) == found


def test_who_looked_at_every_drop_knows() -> None:
    assert recall.estimate([AnsweredStratum(True, 30, 30, 19), AnsweredStratum(False, 20, 20, 1)]) == RecallEstimate(
        0.95, 0.95, 0.95
    )


@pytest.mark.parametrize(
    "strata",
    [
        [],
        [AnsweredStratum(True, 100, 0, 0), AnsweredStratum(False, 900, 0, 0)],
        [AnsweredStratum(True, 100, 10, 8), AnsweredStratum(False, 900, 10, 0)],
        [AnsweredStratum(True, 100, 50, 4), AnsweredStratum(False, 900, 100, 0)],
        [AnsweredStratum(True, 100, 50, 0), AnsweredStratum(False, 900, 100, 9)],
        [AnsweredStratum(True, 100, 50, 40), AnsweredStratum(False, 100, 50, 1), AnsweredStratum(False, 900, 0, 0)],
    ],
)
def test_too_little_says_nothing(strata: list[AnsweredStratum]) -> None:
    assert recall.estimate(strata) is None


def test_more_answers_narrow_the_interval() -> None:
    few = recall.estimate([AnsweredStratum(True, 500, 20, 16), AnsweredStratum(False, 20_000, 40, 0)])
    many = recall.estimate([AnsweredStratum(True, 500, 200, 160), AnsweredStratum(False, 20_000, 400, 0)])
    assert few is not None
    assert many is not None
    assert many.high - many.low < (few.high - few.low) / 2


@pytest.mark.parametrize(
    ("drops", "flagged", "unflagged"), [(300, 600, 20_000), (300, 5, 10), (300, 0, 1000), (10, 3, 1)]
)
def test_a_plan_has_all_drops_and_never_draws_more(drops: int, flagged: int, unflagged: int) -> None:
    plan = recall.plan(drops, flagged, unflagged)
    assert sum(part.population for part in plan if part.flagged) == flagged
    assert sum(part.population for part in plan if not part.flagged) == unflagged
    assert sum(part.sample for part in plan) == min(drops, flagged + unflagged)
    assert all(part.sample <= part.population for part in plan)
    rates = [part.sample / part.population for part in plan if not part.flagged and part.population > 50]
    assert rates == sorted(rates, reverse=True)

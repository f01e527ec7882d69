"""How often the gate errs over years: simulated labs in which one candidate after the other is judged.

The labs are those of the tests (``tests/support/simulated_labs.py``): 12 plates with 240 labelled test drops, a quarter
of them with crystals, and models whose errors are half the drop's fault and half their own. Every candidate has errors
of its own, so a worse one may look better by chance, and the more often it is tried the more likely.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Table
from marcod.evaluate import paired
from marcod.evaluate.gate import Rules, judge
from marcod.training.looks import JudgedDrops, Look

if TYPE_CHECKING:
    from simulated_labs import Judged

TESTS: Final = Path(__file__).resolve().parent.parent / "tests"
LABS: Final = 200
STORY_LABS: Final = 40
RUNS: Final = 30
ASKED: Final = (1, 2, 5, 10, 30)
"""Runs before which a better candidate is tried."""

PLATES, OF_PLATE = 12, 20
RESAMPLES: Final = 300
FEW: Final = 40
"""Resamples that refuse a candidate that is far from passing, so that the rest need not be drawn."""

CHAMPION: Final = 2.0
KINDS: Final = (("equal", 2.0, 0.95), ("2 points worse", 1.9, 0.95))
"""Candidates by skill, and the recall for which their threshold is set."""

BETTER: Final = ("7 points better", 2.67, 0.99)
"""Its threshold finds more, because half of the false alarms that it saves are spent on that."""


@dataclass(frozen=True)
class Story:
    """Test sides of one lab over the runs: drops ``first(run)`` to ``last(run)`` in the order of their labels."""

    name: str
    first: Callable[[int], int]
    last: Callable[[int], int]

    def looks(self, run: int, crystals: Sequence[bool]) -> float:
        """Return the looks before a run, as training counts them."""
        first, last = self.first(run), self.last(run)
        drops = JudgedDrops(["lab"] * (last - first), np.arange(first, last), np.array(crystals[first:last], np.bool_))
        return sum(drops.shared(Look(self.last(earlier) - 1)) for earlier in range(run))


SIDE: Final = PLATES * OF_PLATE
STORIES: Final = (
    Story("always the same", lambda run: 0, lambda run: SIDE),
    Story("a drop more each run", lambda run: 0, lambda run: SIDE + run),
    Story("a plate more each run", lambda run: 0, lambda run: SIDE + OF_PLATE * run),
    Story("wholly new after 15 runs", lambda run: SIDE * (run // 15), lambda run: SIDE * (1 + run // 15)),
)


def run(bench: Bench) -> Iterator[Table]:
    """Two tables: one test side and every kind of candidate; test sides that change, and the worse one."""
    sys.path.insert(0, str(TESTS / "support"))
    yield _one_side(bench)
    yield _stories(bench)


def _one_side(bench: Bench) -> Table:
    labs = bench.size(LABS, 4)
    rows: list[list[Cell]] = []
    for name, skill, recall in KINDS:
        plain, ruled = 0, 0
        for seed in range(labs):
            tried = _tried(STORIES[0], seed, skill, recall)
            plain += any(one.passes(0.9) for one in tried)
            ruled += any(one.passes(Rules(looks=one.looks).needed) for one in tried)
            _say(bench, name, seed)
        rows.append([name, plain, ruled, round(100 * ruled / labs, 1), *[""] * len(ASKED)])
    name, skill, recall = BETTER
    found = [_better(STORIES[0], seed, 0, skill, recall) for seed in range(labs)]
    shares = [sum(one.passes(Rules(looks=before - 1).needed) for one in found) / labs for before in ASKED]
    rows.append([name, "", "", "", *(round(100 * share, 1) for share in shares)])
    about = (
        f"{labs} simulated labs with {SIDE} labelled test drops; {RUNS} candidates each, of {RESAMPLES} resamples. "
        "Differences are of the true average precision of crystals; each candidate has errors of its own."
    )
    columns = [
        "candidate", "labs that promote one, 90 % asked", "labs that promote one", "%",
        *(f"passes as number {number}, % of labs" for number in ASKED),
    ]  # fmt: skip
    return Table("The gate over years", about, columns, rows)


def _stories(bench: Bench) -> Table:
    labs = bench.size(STORY_LABS, 2)
    rows: list[list[Cell]] = []
    for story in STORIES[1:]:
        cells: list[Cell] = [story.name, story.last(RUNS - 1) - story.first(RUNS - 1)]
        looks = [one.looks for one in _tried(story, 0, CHAMPION, 0.95)]
        cells += [round(looks[9], 1), round(looks[-1], 1)]
        for _, skill, recall in KINDS:
            tried = (_tried(story, seed, skill, recall) for seed in range(labs))
            cells.append(sum(any(one.passes(Rules(looks=one.looks).needed) for one in lab) for lab in tried))
            _say(bench, story.name, labs - 1)
        for number in (1, 10, RUNS):
            made = [_better(story, seed, number - 1, *BETTER[1:]) for seed in range(labs)]
            passed = sum(one.passes(Rules(looks=one.looks).needed) for one in made)
            cells.append(round(100 * passed / labs, 1))
        rows.append(cells)
    about = f"{labs} labs, {RUNS} runs each, as above. Looks are counted by what the test sides share."
    columns = [
        "test side", "drops at last", "looks before run 10", "looks before run 30", "labs that promote an equal one",
        "labs that promote one 2 points worse", "7 points better passes at run 1, %", "at run 10, %", "at run 30, %",
    ]  # fmt: skip
    return Table("The gate on test sides that change", about, columns, rows)


def _say(bench: Bench, what: str, seed: int) -> None:
    if (seed + 1) % 20 == 0:
        bench.say(f"gate: {what}, {seed + 1} labs")


@dataclass(frozen=True)
class Tried:
    """Candidate that was judged: the share of resamples in which it is better, and whether all else is fine."""

    share: float
    fine: bool
    looks: float

    def passes(self, needed: float) -> bool:
        """Return whether the gate promotes it where so much confidence is needed."""
        return self.fine and self.share >= needed


def _tried(story: Story, seed: int, skill: float, recall: float) -> list[Tried]:
    """Judge a new candidate of this skill in every run of a lab."""
    lab = _lab(story, seed)
    champion = lab.judged(1, CHAMPION, 1000 * seed + 1)
    crystals = [bool(label) for label in lab.labels == 1]
    found = []
    for number in range(RUNS):
        candidate = lab.judged(2, skill, 1000 * seed + 10 + number, recall)
        found.append(_judged(story, number, champion, candidate, crystals))
    return found


def _better(story: Story, seed: int, number: int, skill: float, recall: float) -> Tried:
    """Judge one better candidate in a lab whose earlier candidates were all refused."""
    lab = _lab(story, seed)
    crystals = [bool(label) for label in lab.labels == 1]
    champion, candidate = lab.judged(1, CHAMPION, 1000 * seed + 1), lab.judged(2, skill, 1000 * seed + 700, recall)
    return _judged(story, number, champion, candidate, crystals)


def _lab(story: Story, seed: int):  # type: ignore[no-untyped-def]
    import simulated_labs

    return simulated_labs.lab(1000 + seed, plates=-(-story.last(RUNS - 1) // OF_PLATE), of_plate=OF_PLATE)


def _judged(story: Story, number: int, champion: "Judged", candidate: "Judged", crystals: Sequence[bool]) -> Tried:
    side = range(story.first(number), story.last(number))
    looks = story.looks(number, crystals)
    sides = [(record, predictions.only(side)) for record, predictions in (champion, candidate)]
    pair = paired.pair(*sides)
    quick = paired.difference(pair, paired.average_precision, FEW, 2)
    if quick.value is None or quick.value <= 0 or quick.above_zero() < 0.75:
        return Tried(0.0, False, looks)
    checks = judge(sides[0], sides[1], Rules(resamples=RESAMPLES)).checks
    (primary,) = (check for check in checks if "better_in" in check.numbers)
    return Tried(float(primary.numbers["better_in"] or 0), all(c.passed for c in checks if c is not primary), looks)

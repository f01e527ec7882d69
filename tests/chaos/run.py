"""A run from the first file to the reckoning."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from chaos import conduct, faults, reckoning, stores
from chaos.faults import FAULTS, Deck, Fault
from chaos.imagers import State
from chaos.lab import Lab
from chaos.reckoning import Line
from marcod.errors import StoreError

DRAIN_S: Final = 90.0
"""How long the work may take after the last fault was taken back."""

START_S: Final = 150.0
"""How long all processes may take until they are at work."""

EACH_S: Final = 60.0
"""How much longer a run may take until every kind of fault was there once, where that is asked for."""

SAMPLE: Final = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos: seconds of it, seconds between two faults, files a second of all imagers together.

    With ``each_once`` it goes on, for :data:`EACH_S` at most, until every kind of fault has happened.
    """

    kind: stores.Kind
    seed: int
    seconds: float
    pace_s: float = 2.5
    files_a_second: float = 8.0
    drain_s: float = DRAIN_S
    sample: int = SAMPLE
    label_every_s: float = 2.0
    faults: tuple[Fault, ...] = FAULTS
    each_once: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What went wrong, how it ended, and how long the work took to drain.

    ``done`` counts each planned fault by its name, ``intact`` the whole images; without ``limited`` no disk was full.
    """

    tally: dict[str, int]
    done: dict[str, int]
    intact: int
    limited: bool
    lines: list[Line]
    drained_s: float

    @property
    def agrees(self) -> bool:
        return reckoning.settled(self.lines)


def run(plan: Plan, folder: Path, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """One run in an existing empty folder, whose logs stay there."""
    lab = Lab(folder, plan.kind, plan.seed, plan.files_a_second)
    try:
        lab.start(START_S)
        deck = Deck(faults.possible(lab, plan.faults), lab.rng)
        _chaos(lab, plan, deck, say)
        say("all faults are taken back")
        lab.calm()
        drained_s = _drain(lab, plan.drain_s)
        lines = reckoning.reckon(lab)
        stopped = lab.stop()
        lines += _after(lab, stopped)
        lines += reckoning.probabilities(lab, plan.sample)
        return _outcome(lab, plan, deck, lines, drained_s)
    finally:
        lab.close()


def in_own_folder(plan: Plan, keep: bool = False, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """One run in a folder that is gone at the end, unless something does not agree or ``keep`` is set."""
    # Not below pytest's own folder: the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="marcod-chaos-"))
    kept = True
    try:
        outcome = run(plan, folder, say)
        kept = keep or not outcome.agrees
        return outcome
    finally:
        if kept:
            say(f"logs are in {folder}")
        else:
            shutil.rmtree(folder)


def _outcome(lab: Lab, plan: Plan, deck: Deck, lines: list[Line], drained_s: float) -> Outcome:
    done = {fault.__name__: deck.done[fault.__name__] for fault in plan.faults}
    intact = sum(truth.state is State.INTACT for share in lab.shares for truth in share.truth.values())
    return Outcome(_tally(lab), done, intact, lab.store.quota.limited, lines, drained_s)


def _chaos(lab: Lab, plan: Plan, deck: Deck, say: Callable[[str], None]) -> None:
    tick, start = Event(), time.monotonic()
    end = start + plan.seconds
    fault_at, label_at = start + plan.pace_s, start + plan.label_every_s
    while (now := time.monotonic()) < end or (plan.each_once and deck.missing and now < end + EACH_S):
        lab.tend()
        lab.take_back()
        if now >= label_at:
            label_at = now + plan.label_every_s
            faults.label(lab)
        if now >= fault_at:
            fault_at = now + lab.rng.uniform(0.2, 1.8) * plan.pace_s
            if (told := deck.deal(lab)) is not None:
                lab.tally[told] += 1
                say(f"{now - start:6.1f} s  {told}")
        tick.wait(0.1)


def _drain(lab: Lab, longest_s: float) -> float:
    """Wait until everything agrees, or for as long as it may take. Returns the seconds it took."""
    tick, start = Event(), time.monotonic()
    while time.monotonic() < start + longest_s:
        lab.tend()
        try:
            if lab.is_at_work and reckoning.idle(lab) and reckoning.settled(reckoning.reckon(lab)):
                break
        except StoreError:
            pass
        tick.wait(1.0)
    return time.monotonic() - start


def _after(lab: Lab, stopped: dict[str, int]) -> list[Line]:
    """After everything was stopped in order, the same must hold, and nobody may be left in the books."""
    wrong = [f"{name} ended with {code}" for name, code in stopped.items() if code]
    # A training that was stopped in order waits for the next start.
    left = [line for line in reckoning.reckon(lab) if not line.agrees and line.what != reckoning.UNFINISHED]
    return [
        *conduct.lines(lab),
        Line("processes that stopped in order", len(stopped), len(stopped) - len(wrong), tuple(wrong)),
        Line("lines that do not agree after the stop", 0, len(left), tuple(line.what for line in left[:3])),
    ]


def _tally(lab: Lab) -> dict[str, int]:
    ended = [f"{p.name} with {end.code}" for p in lab.processes for end in p.ended]
    for text in ended:
        lab.tally[f"ended by itself, begun again: {text}"] += 1
    if not lab.store.quota.limited:
        lab.tally["the disk was not filled: mounting is refused here"] = 1
    lab.tally["starts of processes"] = sum(p.starts for p in lab.processes)
    lab.tally["late finishes that changed nothing"] = sum(p.late_finishes for p in lab.processes)
    lab.tally["files delivered"] = sum(len(share.truth) for share in lab.shares)
    return dict(sorted(lab.tally.items()))

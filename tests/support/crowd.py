"""Several workers of one lab at once: each tells a story of its own on the same database, files and model versions."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

import oracle
from stories import Story

from marcod.database.engine import Database

LIFE_S: Final = 60.0
"""Seconds for which the workers live, unless told otherwise."""


class Member(Story):
    """One worker: it has its own random numbers and leases, and shares clock, files and versions with the others."""

    def __init__(self, lab: Story, number: int) -> None:
        vars(self).update(vars(lab))
        self._lab = lab
        self.rng, self.held, self.log = random.Random(f"{lab.seed} {number}"), [], []
        # No two workers write the same bytes.
        self.contents = number * 1_000_000

    def live(self, actions: list[Callable[[], None]]) -> None:
        """Go by the clock that all share."""
        self.now = self._lab.now
        super().live(actions)
        self._lab.now = max(self.now, self._lab.now)


def tell(
    db: Database, seed: int, workers: int, events: int = 1_000_000, seconds: float = LIFE_S
) -> tuple[list[str], int]:
    """Let ``workers`` live for so many events or seconds, then drain. Returns the faults, and the number of events."""
    lab = Story(db, seed)
    members = [Member(lab, number) for number in range(1, workers + 1)]
    ends = time.monotonic() + seconds
    errors: list[str] = []
    threads = [threading.Thread(target=_live, args=(member, events, ends, errors)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lab.settle()
    return errors + oracle.faults(db), sum(len(member.log) for member in members)


def _live(member: Member, events: int, ends: float, errors: list[str]) -> None:
    actions = member.weighted()
    try:
        for _ in range(events):
            if time.monotonic() > ends:
                return
            member.live(actions)
    except Exception as error:  # noqa: BLE001 - whatever ends a worker is what it tells
        errors.append(f"{' '.join(member.log[-3:])}: {type(error).__name__}: {error}")

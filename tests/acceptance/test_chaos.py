"""The short form of ``make chaos``: every kind of fault once, then everything adds up."""

import math
from typing import Final

import pytest
from chaos import faults, run, stores
from chaos.faults import Fault
from chaos.reckoning import Line

_ANYWHERE: Final = (
    faults.kill_scorer, faults.hold_scorer, faults.fill_disk, faults.truncate_file, faults.rewrite_file,
    faults.unmount, faults.empty_share, faults.hide_folder,
)  # fmt: skip
ONCE: Final[dict[stores.Kind, tuple[Fault, ...]]] = {
    "sqlite": _ANYWHERE,
    # Where there is one process, one kill is the kill of every role.
    "postgres": (*_ANYWHERE, faults.kill_watcher, faults.kill_trainer, faults.crash_server, faults.drop_connections),
}
FEWEST: Final = 40
"""Intact images without which it would be a test of nothing."""


def _told(lines: list[Line]) -> str:
    return "\n".join(f"{line.what}: {line.found} of {line.expected} {line.wrong}" for line in lines if not line.agrees)


@pytest.mark.story
@pytest.mark.parametrize("kind", stores.KINDS)
def test_after_every_fault_each_intact_image_has_one_score_and_each_broken_one_a_reason(kind: stores.Kind) -> None:
    # Labels wait for the schedule, which has tests of its own.
    plan = run.Plan(
        kind, seed=6, seconds=7.0, pace_s=0.7, files_a_second=10.0, drain_s=90.0, sample=8, label_every_s=math.inf,
        faults=ONCE[kind], each_once=True,
    )  # fmt: skip
    outcome = run.in_own_folder(plan)
    assert outcome.agrees, _told(outcome.lines)
    assert outcome.intact >= FEWEST
    refused = set() if outcome.limited else {"fill_disk"}
    assert {fault.__name__ for fault in ONCE[kind] if not outcome.done[fault.__name__]} == refused

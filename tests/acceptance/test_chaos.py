"""The short form of ``make chaos``: every kind of fault once, then everything adds up."""

import math

import pytest
from chaos import faults, run, stores
from chaos.reckoning import Line

ONCE = (
    faults.kill_scorer, faults.hold_scorer, faults.crash_server, faults.drop_connections, faults.fill_disk,
    faults.truncate_file, faults.rewrite_file, faults.unmount, faults.empty_share, faults.hide_folder,
)  # fmt: skip


def _told(lines: list[Line]) -> str:
    return "\n".join(f"{line.what}: {line.found} of {line.expected} {line.wrong}" for line in lines if not line.agrees)


@pytest.mark.parametrize("kind", stores.KINDS)
def test_after_every_fault_each_intact_image_has_one_score_and_each_broken_one_a_reason(kind: stores.Kind) -> None:
    # Labels wait for the schedule, which has tests of its own.
    plan = run.Plan(
        kind, seed=6, seconds=7.0, pace_s=0.7, files_a_second=10.0, drain_s=120.0, sample=8, label_every_s=math.inf,
        faults=ONCE,
    )  # fmt: skip
    outcome = run.in_own_folder(plan)
    assert outcome.agrees, _told(outcome.lines)

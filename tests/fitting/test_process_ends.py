"""Slots and ends of training processes, which are real and train nothing, and the board that others follow."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from waiting import wait_until

from marcod.fitting import together
from marcod.fitting.fit import StoppedError
from marcod.fitting.together import Board, TrainingProcess
from marcod.fitting.worker import WorkOrder

BEGUN = """print('{"what": "begun", "done": 0, "total": 1}', flush=True)"""


@dataclass(frozen=True, slots=True)
class Script(WorkOrder):
    """Order to run a few lines of Python instead of a training."""

    def program(self) -> list[str]:
        return [sys.executable, "-c", self.job]


def end_of(script: str, folder: Path) -> None:
    """Run a process, stop it as soon as it says that it has begun, and raise what its end means."""
    stop = Event()
    with TrainingProcess(Script(script, "", 0, 1), folder, alone=True) as worker:
        together._watch([worker], lambda *_: stop.set(), stop)
        together._conclude([worker])


@pytest.mark.parametrize(("taken", "free"), [((), 0), ((0,), 1), ((1,), 0), ((2, 0), 1), ((1, 0), 2)])
def test_a_start_takes_the_lowest_slot_that_is_free(taken: tuple[int, ...], free: int) -> None:
    assert together.free_slot(taken) == free


def test_a_process_that_does_not_end_in_time_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "STOP_S", 0.3)
    deaf = f"import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); {BEGUN}; threading.Event().wait()"
    with pytest.raises(StoppedError):
        end_of(deaf, tmp_path)


def test_a_process_that_does_not_listen_yet_was_stopped(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        end_of(f"import threading; {BEGUN}; threading.Event().wait()", tmp_path)


def test_a_board_that_could_not_be_written_for_a_while_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was posted in between is on it."""
    monkeypatch.setattr(together, "BEAT_S", 0.02)
    place, away = tmp_path / "share" / "board.json", tmp_path / "away"
    with Board(place).kept() as board:
        place.parent.rename(away)
        board.post(Script("", "here:1", 0, 2))
        beats = board._beats
        wait_until(lambda: board._beats > beats + 2, "beats that fail")
        away.rename(place.parent)
        wait_until(lambda: json.loads(place.read_text())["posted"] == 1, "the post")
    assert json.loads(place.read_text())["end"]

"""The supervisor: what it begins anew, what it waits out, and when it ends the process so that systemd does."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from marcod import app, telemetry
from marcod.database import workers
from marcod.errors import StoreError
from marcod.service.periodic import PeriodicWork
from marcod.service.supervisor import RestartBudget, Service
from marcod.settings import DaemonSettings, ModelSettings, Settings, StoreSettings
from marcod.settings.environment import child_environment

pytestmark = pytest.mark.story


def configured(folder: Path, **values: Any) -> Settings:
    return Settings(
        store=StoreSettings(url=f"sqlite:///{folder / 'marcod.sqlite'}"),
        models=ModelSettings(folder=folder / "models"),
        daemon=DaemonSettings(stop_s=20, **values),
    )


@contextmanager
def supervised(folder: Path, silence_s: float = 60.0, **values: Any) -> Iterator[tuple[Service, threading.Event]]:
    """A service without roles of its own, which is given its loops."""
    settings, stop = configured(folder, **values), threading.Event()
    with app.open_app(settings) as ready:
        yield Service(settings, ready, (), stop, silence_s=silence_s), stop


def test_a_loop_that_fails_again_and_again_ends_the_process(tmp_path: Path) -> None:
    calls: list[int] = []

    def loop(stop: threading.Event, alive: Callable[[], None]) -> None:
        calls.append(1)
        raise ZeroDivisionError

    with supervised(tmp_path, restarts=1) as (service, stop):
        assert service.supervise({"odd": loop}) == 1
        assert stop.is_set()
    assert len(calls) == 2


def test_a_database_that_is_offline_is_waited_for_however_long(tmp_path: Path) -> None:
    calls: list[int] = []

    def loop(stop: threading.Event, alive: Callable[[], None]) -> None:
        alive()
        calls.append(1)
        if len(calls) < 3:
            raise StoreError("the database is away")
        stop.set()

    with supervised(tmp_path, restarts=0) as (service, _):
        assert service.supervise({"score": loop}) == 0
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_loop_is_restarted(tmp_path: Path) -> None:
    calls: list[int] = []

    def loop(stop: threading.Event, alive: Callable[[], None]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise SystemExit  # ends a thread without a word
        stop.set()

    with supervised(tmp_path) as (service, _):
        assert service.supervise({"notify": loop}) == 0
    assert len(calls) == 2


HANGING = """
import sys, threading
from pathlib import Path
from marcod import telemetry
from test_supervision import supervised
telemetry.configure("info", "json")
with supervised(Path(sys.argv[1]), batch_limit_s=0.2) as (service, _):
    service.supervise({"score": lambda stop, alive: threading.Event().wait()})
"""


def test_a_batch_that_hangs_on_its_device_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    environment = child_environment(PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "loops hang" in done.stderr
    # Where it hangs, for whoever reads the log.
    assert "<lambda>" in done.stderr


def test_a_share_that_hangs_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    until = threading.Event()

    def hanging(stop: threading.Event, alive: Callable[[], None]) -> None:
        until.wait()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(60)
        with supervised(tmp_path, silence_s=0.1) as (service, stop):
            running = threading.Thread(target=service.supervise, args=({"watch away": hanging},))
            running.start()
            began = time.monotonic()
            said = [systemd.recv(100).decode() for _ in range(4)]
            assert time.monotonic() - began > 0.2
            until.set()
            stop.set()
            running.join(60)
    assert said == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_duties_go_on_when_the_clock_is_set_back(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    with app.open_app(settings) as ready:

        def alive() -> bool:
            return bool(ready.db.read(lambda c: workers.alive(c, ready.db.now())))

        duties = PeriodicWork(settings, ready, (), "here:1:x", telemetry.Heartbeats(), list)
        duties.start()
        assert alive()
        duties.follow_clock(5000.0, 100.0)
        ready.db.write(lambda c: workers.leave(c, "here:1:x"))
        duties.follow_clock(5000.0 - 3600.0, 101.0)
        # The next heartbeat would have been ten seconds later.
        wait_until(alive, "a heartbeat at once", deadline_s=8)
        duties.stop()
        duties.leave()
        assert not alive()


def test_failures_long_ago_are_forgiven() -> None:
    budget = RestartBudget(2)
    assert [budget.spend(now) for now in (0.0, 1.0, 2.0)] == [True, True, False]
    assert budget.spend(3601.5)

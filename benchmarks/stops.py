"""`kill -TERM` at random moments, again and again: how it ends, how long that takes, and what is left behind.

A stop before the process has set its handler is Python's to answer; every later one has to end with 0, in time.
"""

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from benchmarks import models, plates
from benchmarks.bench import Bench, Kind
from benchmarks.tables import Cell, Table
from marcod.database.engine import Database
from marcod.settings.environment import child_environment

STOPS: Final = 50
SEED: Final = 11
STOP_S: Final = 30.0
IMAGES: Final = 40
"""New images before every start, so that a stop after READY falls into scans and batches."""

EARLY_S: Final = 12.0
LATE_S: Final = 4.0
READY_S: Final = 90.0
FINISH_S: Final = 180.0
SMALL: Final = 8
PHASES: Final = ("at once", "before READY", "after READY")
"""Every third stop comes within the first half second, one before READY, one within a few seconds after it."""


def run(bench: Bench) -> Iterator[Table]:
    """All databases in turn. Raises RuntimeError, after its table, for stops that were not in order and lost images."""
    stops = bench.size(STOPS, 6)
    with bench.place("models") as place, bench.place("stops") as folder, ExitStack() as stack:
        own, title = models.own_folder(place)
        labs = [_Lab(kind, folder / kind, stack.enter_context(bench.database(kind)), own) for kind in bench.kinds]
        rng = random.Random(SEED)
        for number in range(stops):
            lab, phase = labs[number % len(labs)], PHASES[number // len(labs) % len(PHASES)]
            lab.deliver(IMAGES if phase == "after READY" else SMALL)
            stop = lab.stopped(phase, rng)
            bench.say(f"stop {number + 1} of {stops}, {lab.kind}, {stop}")
        rows = [row for lab in labs for row in lab.rows()]
        about = (
            f"{title}. SIGTERM to `marcod run` at {stops} random moments (seed {SEED}), daemon.stop_s = {STOP_S:g}; "
            "then one run until nothing waits. Leases and worker rows are counted after every stop."
        )
        yield Table("Stopping in order", about, _COLUMNS, rows)
        if wrong := [fault for lab in labs for fault in lab.faults()]:
            raise RuntimeError("; ".join(wrong))


_COLUMNS: Final = [
    "database", "signal", "stops", "before the handler", "exit 0", "other exits", "slowest s", "leases left",
    "worker rows left", "tracebacks", "images", "lost", "twice",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stop:
    """One stop: seconds from start to signal, whether READY came before, exit code, seconds to the end.

    ``handled`` tells whether the process had set its handler when the signal was sent.
    """

    phase: str
    after_s: float
    ready: bool
    handled: bool
    code: int
    took_s: float
    leases: int
    workers: int
    traceback: bool

    @property
    def in_order(self) -> bool:
        """Nothing is left leased by any stop; one that the process could handle ends with 0 before its deadline."""
        ended = self.code == 0 and self.took_s <= STOP_S and not self.traceback
        return not self.leases and (ended or (not self.handled and self.code == -signal.SIGTERM))

    def __str__(self) -> str:
        when = "after" if self.ready else "before"
        left = f"{self.leases} leases, {self.workers} workers left"
        return f"SIGTERM {self.after_s:.2f} s from the start, {when} READY: {self.code} in {self.took_s:.2f} s, {left}"


@dataclass
class _Lab:
    """One installation; its database is given."""

    kind: Kind
    folder: Path
    db: Database
    models_folder: Path | None
    stops: list[_Stop] = field(default_factory=list)
    delivered: int = 0
    lost: int = 0
    twice: int = 0

    def __post_init__(self) -> None:
        self.root = self.folder / "export"
        self.root.mkdir(parents=True)
        self._names = plates.composites((1,))
        self._log = self.folder / "log"
        url = self.db.url.render_as_string(hide_password=False)
        lines = [f'store.url = "{url}"', "watch.settle_s = 0.3", f"daemon.stop_s = {STOP_S}"]
        if self.models_folder is not None:
            lines.append(f'models.folder = "{self.models_folder}"')
        lines += ["[sources.bench]", f'root = "{self.root}"', 'layout = "formulatrix"']
        self._config = self.folder / "marcod.toml"
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def deliver(self, images: int) -> None:
        """New images; rendered ones under new names and with bytes of their own."""
        pool = plates.rendered(SMALL)
        for name, _ in islice(self._names, images):
            plates.write(self.root / name, plates.marked(pool[self.delivered % len(pool)], name))
            self.delivered += 1

    def stopped(self, phase: str, rng: random.Random) -> _Stop:
        """Start the service, and stop it in this phase."""
        with _Service(self._config, self._log) as service:
            if phase == "after READY":
                service.await_ready(READY_S)
                threading.Event().wait(rng.uniform(0.0, LATE_S))
            else:
                service.await_ready(rng.uniform(0.0, 0.5 if phase == "at once" else EARLY_S))
            ready, after_s = service.ready, time.monotonic() - service.started
            handled = service.handles_stops
            code, took_s = service.terminate()
        leases = self._number("select count(*) from job where lease is not null")
        workers = self._number("select count(*) from worker")
        stop = _Stop(phase, after_s, ready, handled, code, took_s, leases, workers, b"Traceback" in service.told)
        self.stops.append(stop)
        self.db.write(lambda connection: connection.execute(sa.text("delete from worker")))
        return stop

    def rows(self) -> Iterator[list[Cell]]:
        """How the stops of each phase went, and what a last run leaves of the whole."""
        self.lost, self.twice = self._drained()
        by_phase: dict[str, list[_Stop]] = defaultdict(list)
        for stop in self.stops:
            by_phase["after READY" if stop.ready else stop.phase].append(stop)
        for phase in PHASES:
            if found := by_phase[phase]:
                others = sorted({stop.code for stop in found if stop.code})
                yield [
                    self.kind, phase, len(found), sum(not stop.handled for stop in found),
                    sum(stop.code == 0 for stop in found),
                    ", ".join(map(str, others)) or "none", max(stop.took_s for stop in found),
                    sum(stop.leases for stop in found), sum(stop.workers for stop in found),
                    sum(stop.traceback for stop in found), self.delivered, self.lost, self.twice,
                ]  # fmt: skip

    def faults(self) -> list[str]:
        """What was not as it has to be; to be asked after :meth:`rows`."""
        wrong = [f"{self.kind}, {stop}" for stop in self.stops if not stop.in_order]
        if self.lost or self.twice:
            wrong.append(f"{self.kind}: {self.lost} images lost, {self.twice} scored twice")
        return wrong

    def _drained(self) -> tuple[int, int]:
        """Run until everything is scored. Returns how many images are lost, and how many scored twice."""
        with _Service(self._config, self._log) as service:
            deadline, pause = time.monotonic() + FINISH_S, threading.Event()
            while time.monotonic() < deadline and not self._done():
                if service.ended:
                    raise RuntimeError(f"the last run ended by itself: {self._log.read_text()[-2000:]}")
                pause.wait(0.5)
            service.terminate()
        scored = self._number("select count(distinct image_id) from score")
        return self.delivered - scored, self._number("select count(*) from score") - scored

    def _done(self) -> bool:
        return bool(self._number("select count(*) from score") >= self.delivered)

    def _number(self, statement: str) -> Any:
        return self.db.read(lambda c: c.execute(sa.text(statement)).scalar())


class _Service:
    """`marcod run` as its own process, which tells when it is ready; killed at the end if it is still there."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config, self._log = config, log
        self.ready = False
        self.told = b""

    def __enter__(self) -> "_Service":
        address = f"marcod-stops-{uuid4()}"
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind("\0" + address)
        self._before = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, "-m", "marcod", "--config", str(self._config), "run"]
        with self._log.open("ab") as log:
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=child_environment(NOTIFY_SOCKET="@" + address)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._channel.close()

    @property
    def ended(self) -> bool:
        """Whether it is gone without having been asked to go."""
        return self._process.poll() is not None

    @property
    def handles_stops(self) -> bool:
        """Whether the process has set a handler for SIGTERM, as the kernel knows it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    def await_ready(self, longest_s: float) -> None:
        """Wait for READY=1, no longer than that."""
        deadline = time.monotonic() + longest_s
        while not self.ready and self._process.poll() is None and (left := deadline - time.monotonic()) > 0:
            self._channel.settimeout(left)
            try:
                self.ready = b"READY=1" in self._channel.recv(4096)
            except TimeoutError:
                return

    def terminate(self) -> tuple[int, float]:
        """SIGTERM. Returns the exit code and the seconds until the end."""
        start = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(2 * STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        took_s = time.monotonic() - start
        with self._log.open("rb") as log:
            log.seek(self._before)
            self.told = log.read()
        return code, took_s

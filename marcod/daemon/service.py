"""The service: builds the loops from settings, runs them as threads, and ends them in order.

The main thread supervises and does nothing else. One event stops everything: nominating ends, the batch on the
device is finished, unstarted claims go back, and all threads are joined against one deadline. A second signal
exits at once; the leases bring the work back. A loop that raises is logged, waits and goes on.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

from apscheduler.schedulers.background import BackgroundScheduler

from marcod import drift, labelling, telemetry, watch
from marcod.errors import ConfigError, MarcodError
from marcod.registry import Registry
from marcod.settings import Role, Settings, one_thread_an_operation, watchdog_s
from marcod.store import migrate, summaries, workers
from marcod.store.engine import Database
from marcod.train import trainer

log = telemetry.logger(__name__)

TICK_S: Final = 1.0
HEARTBEAT_S: Final = 10
TEND_S: Final = 30
LABELS_S: Final = 30
DRIFT_S: Final = 3600
DRIFT_FIRST_S: Final = 60
LOOP_SILENCE_S: Final = 300.0
"""A loop that shows no life for this long keeps WATCHDOG=1 from being sent."""

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0

Loop = Callable[[threading.Event, Callable[[], None]], None]


def worker_name() -> str:
    """A name that no other process ever has, and that tells where it runs."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Ready:
    """What every composition root starts from: a checked database and a champion."""

    db: Database
    registry: Registry


@contextmanager
def opened(settings: Settings) -> Iterator[Ready]:
    """The database with a current schema and a champion, closed at the end.

    Raises StoreError, SchemaError or BundleError with one sentence before anything else is done.
    """
    db = Database(settings.store.url.get_secret_value())
    try:
        migrate.require_current(db)
        registry = Registry(db, settings.models.folder)
        registry.ensure_champion(datetime.now(UTC))
        yield Ready(db, registry)
    finally:
        db.close()


def run(settings: Settings, roles: Sequence[Role], program: Sequence[str] = ()) -> int:
    """Run these roles until a signal comes. Returns the exit code.

    ``program`` starts marcod with the same configuration, for work that has a process of its own. Everything that can
    be wrong is found before READY=1: configuration, roots, schema, champion self-test.
    """
    if "watch" in roles:
        if not settings.sources:
            raise ConfigError(
                "no source is configured; add a [sources.NAME] table with root and layout, or try `marcod demo`"
            )
        check_sources(settings)
    if "schedule" in roles:
        labelling.tables_of(settings)
    if "trainer" in roles:
        trainer.check(settings.train)
    with stopped_by_signals() as stop, opened(settings) as ready:
        service = Service(settings, ready, roles, stop, program)
        return service.supervise(service.loops())


class Service:
    """The loops of one process."""

    def __init__(
        self,
        settings: Settings,
        ready: Ready,
        roles: Sequence[Role],
        stop: threading.Event,
        program: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._program = program
        self._ready = ready
        self._roles = roles
        self._stop = stop
        self._hearts = telemetry.Heartbeats()
        self.worker = worker_name()

    def loops(self) -> dict[str, Loop]:
        """The loops of this process's roles, each built and self-tested."""
        loops: dict[str, Loop] = {}
        if "watch" in self._roles:
            for source in watch.open_sources(self._ready.db, self._settings, datetime.now(UTC)):
                loops[f"watch {source.name}"] = self._watch_loop(source)
        if "score" in self._roles:
            loops["score"] = self._score_loop()
        if "trainer" in self._roles:
            now = datetime.now(UTC)
            loops["trainer"] = trainer.Trainer(self._ready.db, self._settings.train, self._program, now=now).run
        return loops

    def _watch_loop(self, source: watch.Source) -> Loop:
        """One thread a source, so that a slow share delays no other."""

        def loop(stop: threading.Event, alive: Callable[[], None]) -> None:
            watch.Watcher(self._ready.db, [source], self._settings.watch, beat=alive).run(stop)

        return loop

    def _score_loop(self) -> Loop:
        one_thread_an_operation()
        from marcod.score import Scorer  # loads TensorFlow, which a watching host need not have in memory

        batch_size = self._settings.score.batch_size
        scorer = Scorer(
            self._ready.db,
            lambda version: self._ready.registry.load(version, batch_size),
            self._settings.score,
            worker=self.worker,
            roots=roots(self._settings),
        )
        champion = scorer.warm()
        log.info("champion ready", model=str(champion), synthetic=champion.synthetic)
        return scorer.run

    def supervise(self, loops: dict[str, Loop]) -> int:
        """Run the loops until the stop event, then join them against one deadline. Returns the exit code."""
        scheduler = self._scheduler()
        threads = [
            threading.Thread(target=self._guard, args=(name, loop), name=name, daemon=True)
            for name, loop in loops.items()
        ]
        self._beat()
        scheduler.start()
        for thread in threads:
            thread.start()
        telemetry.notify("READY=1")
        log.info("running", roles=",".join(self._roles), database=str(self._ready.db), worker=self.worker)
        while not self._stop.wait(TICK_S):
            self._show_life()
        telemetry.notify("STOPPING=1")
        scheduler.shutdown(wait=False)
        return self._join(threads)

    def _guard(self, name: str, loop: Loop) -> None:
        """Keep one loop going: the boundary at which every exception ends."""
        pause_s = FIRST_PAUSE_S
        failures = 0

        def alive() -> None:
            nonlocal pause_s
            pause_s = FIRST_PAUSE_S
            self._hearts.beat(name, time.monotonic())

        while not self._stop.is_set():
            self._hearts.beat(name, time.monotonic())
            try:
                loop(self._stop, alive)
            except Exception as error:
                failures += 1
                expected = isinstance(error, MarcodError)
                log.error("loop failed", loop=name, error=str(error), failures=failures, exc_info=not expected)
                self._stop.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self._hearts.forget(name)

    def _show_life(self) -> None:
        stale = self._hearts.stale(time.monotonic(), LOOP_SILENCE_S)
        if stale:
            log.error("loop is silent", loops=",".join(stale))
        elif watchdog_s() is not None:
            telemetry.notify("WATCHDOG=1")

    def _scheduler(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        scheduler.add_job(lambda: self._guarded("heartbeat", self._beat), "interval", seconds=HEARTBEAT_S)
        if "schedule" in self._roles:
            scheduler.add_job(lambda: self._guarded("tend", self._tend), "interval", seconds=TEND_S)
            scheduler.add_job(
                lambda: self._guarded("labels", self._labels),
                "interval",
                seconds=LABELS_S,
                next_run_time=datetime.now(UTC),
            )
        if "schedule" in self._roles and self._settings.drift.enabled:
            scheduler.add_job(
                lambda: self._guarded("drift", self._drift),
                "interval",
                seconds=DRIFT_S,
                next_run_time=datetime.now(UTC) + timedelta(seconds=DRIFT_FIRST_S),
            )
        return scheduler

    def _beat(self) -> None:
        now, host, pid, roles = datetime.now(UTC), socket.gethostname(), os.getpid(), ",".join(self._roles)
        self._ready.db.write(lambda connection: workers.beat(connection, self.worker, host, pid, roles, now))

    def _tend(self) -> None:
        tend(self._ready.db, self._settings)

    def _labels(self) -> None:
        turn = labelling.resolve_inbox(self._ready.db, self._settings, datetime.now(UTC))
        if turn.resolved or turn.refused:
            log.info("inbox", resolved=turn.resolved, refused=turn.refused, waiting=turn.waiting)

    def _drift(self) -> None:
        drift.run(self._ready.db, self._settings.drift, datetime.now(UTC))

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except MarcodError as error:
            log.warning("scheduled work failed", job=name, error=str(error))

    def _join(self, threads: list[threading.Thread]) -> int:
        deadline = time.monotonic() + self._settings.daemon.stop_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            log.error("stopped with work unfinished; its leases will lapse", loops=",".join(late))
            # The interpreter would wait for threads that hang, on a dead share for ever.
            os._exit(1)
        self._guarded("leave", lambda: self._ready.db.write(lambda connection: workers.leave(connection, self.worker)))
        log.info("stopped")
        return 0


def tend(db: Database, settings: Settings) -> None:
    """Quarantine what killed its workers, complete quiet inspections, forget workers that are long gone."""
    now = datetime.now(UTC)
    exhausted = db.write(
        lambda connection: summaries.give_up_exhausted(connection, max_attempts=settings.score.max_attempts, now=now)
    )
    completed = db.write(lambda connection: summaries.complete_quiet(connection, now, settings.watch.quiet_s))
    db.write(lambda connection: workers.forget_gone(connection, now))
    if exhausted or completed:
        log.info("tended", quarantined=exhausted, completed=completed)


def check_sources(settings: Settings) -> None:
    """Raises ConfigError or LayoutError for the first source that cannot work, before anything is written."""
    watch.require_roots(settings)
    taken: dict[Path, str] = {}
    for name, source in settings.sources.items():
        watch.layout_of(name, source)
        if taken.setdefault(source.root.resolve(), name) != name:
            raise ConfigError(f"sources {taken[source.root.resolve()]!r} and {name!r} have one root; remove one")


def roots(settings: Settings) -> dict[str, Path]:
    """Where each configured source is on this host."""
    return {name: source.root for name, source in settings.sources.items()}


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second exits at once. For the main thread only."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

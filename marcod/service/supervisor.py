"""Supervisor of the loops of one process; it is the main thread and does nothing else.

A loop that fails is logged, waits and is restarted. The process ends with exit code 1, so that systemd restarts it, for
a loop that fails too often in a way that is not foreseen, and for one that hangs on its device. A database or a share
that is offline never ends it, however long.
"""

import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from marcod import counters, telemetry
from marcod.app import App, roots, worker_name
from marcod.errors import HostLacksError, MarcodError
from marcod.model import engines
from marcod.notify import notifier
from marcod.service.periodic import HEART, PeriodicWork
from marcod.settings import Role, Settings
from marcod.settings.environment import one_thread_an_operation, watchdog_s
from marcod.training import trainer
from marcod.watch.ingest import WatchedSource, open_sources
from marcod.watch.loop import Watcher
from marcod.watch.status import SourceStatus

if TYPE_CHECKING:
    from marcod.scoring.scorer import Scorer

log = telemetry.logger(__name__)

TICK_S: Final = 1.0
LOOP_SILENCE_S: Final = 300.0
"""A loop that shows no life for this long hangs; of a scoring loop the configuration decides."""

RESTART_WINDOW_S: Final = 3600.0
"""Failures further back are forgiven."""

TRAINING_STOP_SHARE: Final = 0.75
"""Of the time for a stop, what a training has to leave its state behind."""

STOP_GRACE_S: Final = 30.0
"""Beyond the deadline of a stop, until systemd may lose patience."""

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0

Loop = Callable[[threading.Event, Callable[[], None]], None]


class RestartBudget:
    """Budget of restarts: ``limit`` failures within :data:`RESTART_WINDOW_S` seconds. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit, self._failures, self._lock = limit, deque[float](), threading.Lock()

    def spend(self, now: float) -> bool:
        """Count one failure; False when there were too many."""
        with self._lock:
            self._failures.append(now)
            while self._failures[0] < now - RESTART_WINDOW_S:
                self._failures.popleft()
            return len(self._failures) <= self._limit


class Service:
    """The loops of one process."""

    def __init__(
        self,
        settings: Settings,
        ready: App,
        roles: Sequence[Role],
        stop: threading.Event,
        program: Sequence[str] = (),
        *,
        silence_s: float = LOOP_SILENCE_S,
    ) -> None:
        self._settings, self._silence_s = settings, silence_s
        self._program = program
        self._ready = ready
        self._roles = tuple(roles)
        self._stop = stop
        self._hearts = telemetry.Heartbeats()
        self._watchers: dict[str, Watcher] = {}
        self._budgets: dict[str, RestartBudget] = {}
        self._silent: list[str] = []
        self._failed = threading.Event()
        self.worker = worker_name()
        self._scorer: Scorer | None = None
        self._periodic = PeriodicWork(
            settings, ready, self._roles, self.worker, self._hearts, self._states, self._left_to_others
        )

    def loops(self) -> dict[str, Loop]:
        """Build and self-test the loops of this process's roles."""
        # Before the model, which takes long to load.
        self._periodic.serve()
        loops: dict[str, Loop] = {}
        now = self._ready.db.now()
        if "watch" in self._roles:
            for source in open_sources(self._ready.db, self._settings, now):
                loops[f"watch {source.name}"] = self._watch_loop(source)
        if "score" in self._roles:
            loops["score"] = self._score_loop()
        if "trainer" in self._roles:
            loops["trainer"] = self._trainer_loop()
        if "web" in self._roles:
            loops["web"] = self._web_loop()
        if "schedule" in self._roles and self._settings.notify:
            loops["notify"] = notifier.Notifier(
                self._ready.db, self._settings, worker=self.worker, clock=self._ready.db.now
            ).run
        return loops

    def supervise(self, loops: dict[str, Loop]) -> int:
        """Run the loops until the stop event, then join them against one deadline. Returns the exit code."""
        self._budgets = {name: RestartBudget(self._settings.daemon.restarts) for name in loops}
        threads = {name: self._thread(name, loop) for name, loop in loops.items()}
        counters.loops(loops)
        self._periodic.start()
        for thread in threads.values():
            thread.start()
        telemetry.notify("READY=1")
        log.info("running", roles=",".join(self._roles), database=str(self._ready.db), worker=self.worker)
        while not self._stop.wait(TICK_S):
            self._periodic.follow_clock(time.time(), time.monotonic())
            self._restart_dead(threads, loops)
            self._check_liveness()
        patience_us = int((self._settings.daemon.stop_s + STOP_GRACE_S) * 1e6)
        telemetry.notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={patience_us}")
        self._periodic.stop()
        return self._join(threads)

    def _watch_loop(self, source: WatchedSource) -> Loop:
        """Build the loop of one source, in a thread of its own so that a slow share delays no other."""

        def loop(stop: threading.Event, alive: Callable[[], None]) -> None:
            watcher = Watcher(self._ready.db, [source], self._settings.watch, worker=self.worker, beat=alive)
            self._watchers[source.name] = watcher
            watcher.run(stop)

        return loop

    def _states(self) -> list[SourceStatus]:
        # A copy, since watching threads add to the dictionary.
        return [status for watcher in list(self._watchers.values()) for status in watcher.status()]

    def _left_to_others(self) -> Mapping[str, str]:
        return {} if self._scorer is None else self._scorer.left_to_others

    def _score_loop(self) -> Loop:
        one_thread_an_operation()
        from marcod.scoring.scorer import Scorer  # loads TensorFlow, which a watching host need not have in memory

        most = self._settings.score.most_images
        scorer = self._scorer = Scorer(
            self._ready.db,
            lambda version: self._ready.registry.load(version, most),
            self._settings.score,
            worker=self.worker,
            roots=roots(self._settings),
            on_batch=counters.batch,
        )
        try:
            champion = scorer.warm()
        except HostLacksError as error:
            # Its jobs wait for a host that can; those of other versions are scored here.
            log.warning("champion not served here", error=str(error))
        else:
            log.info("champion ready", model=str(champion), synthetic=champion.synthetic)
        return scorer.run

    def _trainer_loop(self) -> Loop:
        engines.require_keras("the role trainer")
        db, patience_s = self._ready.db, TRAINING_STOP_SHARE * self._settings.daemon.stop_s
        return trainer.Trainer(
            db, self._settings.train, self._program, now=db.now(), clock=db.now, stop_s=patience_s
        ).run

    def _web_loop(self) -> Loop:
        from marcod.web.server import Page  # loads the web server, which other roles need not have in memory

        return Page(self._settings).run

    def _thread(self, name: str, loop: Loop) -> threading.Thread:
        return threading.Thread(target=self._guard, args=(name, loop), name=name, daemon=True)

    def _guard(self, name: str, loop: Loop) -> None:
        """Keep one loop going: the boundary at which every exception ends."""
        pause_s = FIRST_PAUSE_S

        def alive() -> None:
            nonlocal pause_s
            pause_s = FIRST_PAUSE_S
            self._hearts.beat(name, time.monotonic())

        while not self._stop.is_set():
            self._hearts.beat(name, time.monotonic())
            try:
                loop(self._stop, alive)
            except MarcodError as error:
                # Foreseen, such as a database that is offline: waited out, for hours if need be.
                counters.loop_failed(name)
                log.error("loop failed", loop=name, error=str(error), again_in_s=pause_s)
            except Exception:
                counters.loop_failed(name)
                log.exception("loop failed", loop=name, again_in_s=pause_s)
                if not self._budgets[name].spend(time.monotonic()):
                    self._give_up(name)
            if self._stop.wait(pause_s):
                break
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self._hearts.forget(name)

    def _restart_dead(self, threads: dict[str, threading.Thread], loops: dict[str, Loop]) -> None:
        """Restart loops whose threads are dead."""
        for name in [name for name, thread in threads.items() if not thread.is_alive() and not self._stop.is_set()]:
            log.error("loop is dead", loop=name)
            if not self._budgets[name].spend(time.monotonic()):
                self._give_up(name)
                return
            threads[name] = self._thread(name, loops[name])
            threads[name].start()

    def _give_up(self, name: str) -> None:
        """End in order, so that the service manager restarts this process."""
        log.critical("loop fails again and again, the process ends to be restarted", loop=name)
        telemetry.notify(f"STATUS=loop {name} fails again and again")
        self._failed.set()
        self._stop.set()

    def _check_liveness(self) -> None:
        limits_s = {"score": self._settings.daemon.batch_limit_s, HEART: LOOP_SILENCE_S}
        silent = self._hearts.stale(time.monotonic(), limits_s, self._silence_s)
        if silent != self._silent:
            self._silent = silent
            log.error("loops are silent", loops=silent) if silent else log.info("all loops show life again")
        # A watcher hangs on a share, which no new process can mend; the other sources must not suffer.
        if hung := [name for name in silent if not name.startswith("watch ")]:
            self._exit_hung(hung)
        elif watchdog_s() is not None:
            telemetry.notify("WATCHDOG=1")

    def _exit_hung(self, hung: list[str]) -> None:
        """Exit at once: a thread that hangs in a device or a driver can neither be stopped nor waited for."""
        log.critical("loops hang, the process ends; their leases will lapse", loops=hung)
        telemetry.notify(f"STATUS={', '.join(hung)} hangs")
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        os._exit(1)

    def _join(self, threads: dict[str, threading.Thread]) -> int:
        deadline = time.monotonic() + self._settings.daemon.stop_s
        for thread in threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [name for name, thread in threads.items() if thread.is_alive()]
        if late:
            if "score" in late and self._scorer is not None:
                self._scorer.abandon()
            log.error("stopped with work unfinished; its leases will lapse", loops=",".join(late))
            # The interpreter would wait for threads that hang, on a dead share for ever.
            os._exit(1)
        self._periodic.leave()
        log.info("stopped")
        return 1 if self._failed.is_set() else 0

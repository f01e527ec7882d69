"""Periodic work of a running service: heartbeats, housekeeping, labels, drift, metrics, pruning.

Each job is short, runs alone, and fails alone: the next turn comes whatever happened to the last.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from apscheduler.schedulers.background import BackgroundScheduler

from marcod import counters, telemetry
from marcod.app import App
from marcod.catalog import findings, rereading
from marcod.database import workers
from marcod.database.engine import Database
from marcod.drift import monitor
from marcod.errors import MarcodError
from marcod.health import prometheus, snapshot
from marcod.labels import files
from marcod.plates import metadata
from marcod.settings import Role, Settings
from marcod.store import backlog, outbox, promotions, queue, results, serving, summaries, versions
from marcod.upkeep import retention
from marcod.watch import status

log = telemetry.logger(__name__)

HEART: Final = "schedule"
"""The name under which the scheduler shows life."""

HEARTBEAT_S: Final = 10
HOUSEKEEPING_S: Final = 30
LABELS_S: Final = 30
DRIFT_S: Final = 3600
DRIFT_FIRST_S: Final = 60
JOB_DEFAULTS: Final = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
"""A turn that comes late is not left out: of drift that would be an hour."""

CLOCK_STEP_S: Final = 5.0
"""A wall clock that moves this much against a monotonic one was set."""

PROMOTION_S: Final = 5
PROMOTION_TURN_S: Final = 20.0
"""Time for which one turn works on a promotion that is under way."""

PRUNE_S: Final = 3600
PRUNE_FIRST_S: Final = 300
PRUNE_ROUNDS: Final = 50
"""Short transactions of pruning in one turn."""


class PeriodicWork:
    """The scheduled work of one process.

    ``states`` returns the state of each source that it watches, ``left_to_others`` the reasons for which it leaves
    sources to other hosts.
    """

    def __init__(
        self,
        settings: Settings,
        ready: App,
        roles: tuple[Role, ...],
        worker: str,
        hearts: telemetry.Heartbeats,
        states: Callable[[], list[status.SourceStatus]],
        left_to_others: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings, self._db, self._roles, self._worker = settings, ready.db, roles, worker
        self._hearts, self._states, self._left_to_others = hearts, states, left_to_others
        self._monitor = prometheus.Monitor(settings.metrics)
        self._pruned_up_to = 0
        self._ahead_s: float | None = None
        self._champion: versions.Version | None = None
        self._ending = threading.Event()

    def serve(self) -> None:
        """Serve metrics where the configuration asks for a port. Raises ConfigError when it is taken."""
        self._monitor.serve()

    def start(self) -> None:
        """Write the first heartbeat, then start the schedule."""
        self._beat()
        self._scheduler = self._planned()
        self._scheduler.start()

    def follow_clock(self, wall_s: float, counted_s: float) -> None:
        """Do everything now when the clock was set: the scheduler goes by it, and would wait an hour if that is lost.

        ``wall_s`` is the host's clock and ``counted_s`` a monotonic one, both in seconds.
        """
        before, self._ahead_s = self._ahead_s, wall_s - counted_s
        if before is None or abs(self._ahead_s - before) <= CLOCK_STEP_S:
            return
        log.warning("the clock was set", by_s=round(self._ahead_s - before, 1))
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))

    def stop(self) -> None:
        """Start nothing more; what is under way ends by itself."""
        self._ending.set()
        self._hearts.forget(HEART)
        self._scheduler.shutdown(wait=False)
        self._monitor.close()

    def leave(self) -> None:
        """Delete this worker's row, and its name in the rows of what it watched."""

        def work(connection: Any) -> None:
            workers.leave(connection, self._worker)
            status.leave(connection, self._worker)

        self._guarded("leave", partial(self._db.write, work))

    def _planned(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(timezone="UTC", job_defaults=JOB_DEFAULTS)
        now = datetime.now(UTC)

        def every(seconds: float, name: str, work: Callable[[], None], first: datetime | None = None) -> None:
            more = {} if first is None else {"next_run_time": first}
            scheduler.add_job(lambda: self._guarded(name, work), "interval", seconds=seconds, id=name, **more)

        every(HEARTBEAT_S, "heartbeat", self._beat)
        every(HEARTBEAT_S, "champion", self._warn_of_synthetic, now)
        if "schedule" in self._roles:
            every(HOUSEKEEPING_S, "tend", partial(housekeeping, self._db, self._settings))
            every(LABELS_S, "labels", self._labels, now)
            every(PROMOTION_S, "promotion", self._promote)
            every(self._settings.metrics.every_s, "metrics", self._measure, now)
            every(PRUNE_S, "retention", self._prune, now + timedelta(seconds=PRUNE_FIRST_S))
            if self._settings.drift.enabled:
                every(DRIFT_S, "drift", self._drift, now + timedelta(seconds=DRIFT_FIRST_S))
        return scheduler

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Run one job; every exception of it ends here."""
        try:
            work()
        except MarcodError as error:
            log.warning("scheduled work failed", job=name, error=str(error))
        except Exception:
            counters.loop_failed(name)
            log.exception("scheduled work failed", job=name)

    def _beat(self) -> None:
        # Before the database is asked: the scheduler lives, whether the database does or not.
        self._hearts.beat(HEART, time.monotonic())
        now, host, pid, roles = self._db.now(), self._db.host, os.getpid(), ",".join(self._roles)
        states, left = self._states(), self._left_to_others()

        def work(connection: Any) -> None:
            workers.beat(connection, self._worker, host, pid, roles, now, left)
            status.write(connection, states, now)

        self._db.write(work)

    def _warn_of_synthetic(self) -> None:
        """Warn when a model trained on rendered drops alone is champion, once each time it becomes so."""
        before, self._champion = self._champion, self._db.read(versions.champion)
        if self._champion.synthetic and self._champion != before:
            about = f"{versions.RENDERED_ALONE}; {versions.REAL_MODEL}"
            log.warning("champion is synthetic", model=str(self._champion), about=about)

    def _promote(self) -> None:
        """Work on the version that becomes champion, if there is one."""
        ends = time.monotonic() + PROMOTION_TURN_S
        before = self._db.read(promotions.pending)
        if before is None:
            return
        left = serving.advance(self._db, self._db.now, stop=lambda: self._ending.is_set() or time.monotonic() >= ends)
        log.info("promotion", model=str(before.version), left=None if left is None else str(left))

    def _labels(self) -> None:
        turn = files.resolve_inbox(self._db, self._settings, self._db.now())
        if turn.resolved or turn.refused:
            log.info("inbox", resolved=turn.resolved, refused=turn.refused, waiting=turn.waiting)

    def _drift(self) -> None:
        view = App(self._db, self._settings.models.folder).registry.champion_view()
        monitor.run(self._db, self._settings.drift, self._db.now(), view)

    def _measure(self) -> None:
        now = self._db.now()
        try:
            self._monitor.update(self._db.read(snapshot.take_snapshot, now), now)
        finally:
            # Also while the database is offline, so that old figures leave the file.
            self._monitor.write_textfile()

    def _prune(self) -> None:
        now = self._db.now()
        before = now - timedelta(days=self._settings.retention.events_days)
        outbox.sweep(self._db, before, PRUNE_ROUNDS)
        thinned = retention.run(self._db, self._settings.retention, now, after=self._pruned_up_to, rounds=PRUNE_ROUNDS)
        self._pruned_up_to = thinned.last or 0
        self._db.refresh_statistics()
        if thinned.rows:
            log.info("thinned", scores=thinned.scores, former_contents=thinned.contents, audit=thinned.audit)


def housekeeping(db: Database, settings: Settings) -> None:
    """Quarantine what killed its workers, complete quiet inspections, delete rows of workers and sources long gone."""
    now = db.now()
    attempts, quiet_s = settings.score.max_attempts, settings.watch.quiet_s
    exhausted = db.write_portions(partial(results.give_up_exhausted, max_attempts=attempts, now=now))
    db.write_portions(partial(rereading.catch_up, now=now))
    db.write_portions(partial(metadata.catch_up, now=now))
    completed = db.write_portions(partial(summaries.complete_quiet, now=now, quiet_s=quiet_s))
    strays = db.write(
        queue.repair_schedule,
        now=now,
        lease_s=settings.score.lease_s,
        retry_s=settings.score.retry_s,
        max_attempts=settings.score.max_attempts,
    )
    db.write(_forget, now)
    if settings.score.accept_gone:
        db.write_portions(partial(backlog.accept_gone, image_ids=None, actor="score.accept_gone", now=now))
    if exhausted or completed or strays:
        log.info("housekeeping", quarantined=exhausted, completed=completed, brought_back=strays)


def _forget(connection: Any, now: datetime) -> None:
    workers.forget_gone(connection, now)
    status.forget_gone(connection, now)
    findings.forget_gone(connection, now)

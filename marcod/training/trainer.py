"""Trainer role: decides when to train, and runs `marcod retrain` in a child process.

Guarantees:

* At most one training runs.
* A killed training is resumed.
* A failed training is repeated only for a new reason.
* A stop ends the child in order.

Nothing here loads TensorFlow.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Final, Literal

from apscheduler.triggers.cron import CronTrigger

from marcod import telemetry, text
from marcod.database.engine import Database
from marcod.drift import days
from marcod.errors import ConfigError, MarcodError
from marcod.settings import TrainSettings
from marcod.training import run_rows, shadow

log = telemetry.logger(__name__)

LOOK_S: Final = 30.0
LEARNABLE: Final = frozenset({"confidence", "crystals", "classes"})
"""Drift signals that new labels may help against; the others, such as brightness, ask for a look at the imager."""

STOP_S: Final = 45.0
"""How long the child may take to leave its state behind."""

SILENCE_S: Final = 120.0
"""A run on another host that gave no sign of life for this long is taken over."""

Cause = Literal["schedule", "labels", "drift"]


@dataclass(frozen=True, slots=True)
class RetrainReason:
    """Why to train now; ``detail`` is for the log."""

    cause: Cause
    detail: str


def check(settings: TrainSettings) -> None:
    """Check the cron expression. Raises ConfigError."""
    if settings.schedule is not None:
        _trigger(settings.schedule)


def _trigger(expression: str) -> CronTrigger:
    try:
        return CronTrigger.from_crontab(expression, timezone=UTC)
    except ValueError as error:
        raise ConfigError(
            f"train.schedule {expression!r} is not a cron expression such as '0 2 * * *': {error}"
        ) from error


def process_lives(pid: int) -> bool:
    """Tell if there is a process with this id on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Trainer:
    """Looks now and then whether there is a reason to train. ``command`` starts `marcod retrain` here."""

    def __init__(
        self,
        db: Database,
        settings: TrainSettings,
        command: Sequence[str],
        *,
        now: datetime,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_s: float = LOOK_S,
        stop_s: float = STOP_S,
    ) -> None:
        self._db, self._settings, self._command = db, settings, command
        self._clock, self._look_s, self._stop_s = clock, look_s, stop_s
        self._next = self._after(now)

    def run(self, stop: Event, alive: Callable[[], None] = lambda: None) -> None:
        """Look and train until ``stop`` is set. Raises what the database raises."""
        while not stop.is_set():
            alive()
            self._settle(stop, alive)
            reason = self.reason(self._clock())
            if reason is not None:
                log.info("training started", cause=reason.cause, why=reason.detail)
                self._call(["retrain", "--cause", reason.cause], stop, alive)
            stop.wait(self._look_s)

    def _settle(self, stop: Event, alive: Callable[[], None]) -> None:
        """Have it decided about candidates in shadow; that it fails must not keep the lab from training."""
        if not shadow.ripe(self._db):
            return
        try:
            self._call(["train", "settle"], stop, alive)
        except MarcodError as error:
            log.error("a candidate in shadow cannot be decided about", error=str(error))

    def reason(self, now: datetime) -> RetrainReason | None:
        """Why to train now, or None: a run that was killed, a new drift alarm, or new labels when it is time."""
        due = self._next is not None and now >= self._next
        self._next = self._after(now) if due else self._next
        active = self._db.read(run_rows.active)
        if active is not None:
            dead = active.host == os.uname().nodename and not process_lives(active.pid)
            gone = dead or active.beat_at < now - timedelta(seconds=SILENCE_S)
            return RetrainReason("schedule", f"run {active.id} was not finished") if gone else None
        if self._settings.on_drift and (alarm := self._new_alarm()) is not None:
            return RetrainReason("drift", alarm)
        if not due:
            return None
        count = self._new_labels()
        if count >= self._settings.min_new_labels:
            return RetrainReason("labels", text.count(count, "new label"))
        log.info("no training", new_labels=count, needed=self._settings.min_new_labels)
        return None

    def _after(self, now: datetime) -> datetime | None:
        if self._settings.schedule is None:
            return None
        found: datetime | None = _trigger(self._settings.schedule).get_next_fire_time(now, now + timedelta(seconds=1))
        return found

    def _new_labels(self) -> int:
        last = self._db.read(run_rows.last)
        data_id = None if last is None else last.dataset_id
        since = None if data_id is None else self._db.read(run_rows.last_label, data_id)
        return self._db.read(run_rows.new_labels, since)

    def _new_alarm(self) -> str | None:
        """Return an alarm raised since the latest run started, if there is a label to learn from."""
        latest = self._db.read(run_rows.listed, 1)
        new = [a for a in self._db.read(days.open_alarms) if not latest or a.raised_at > latest[0].started_at]
        fresh = [a for a in new if a.signal in LEARNABLE]
        if not fresh or not self._db.read(run_rows.new_labels, None):
            return None
        return f"{fresh[0].signal} of {fresh[0].source}"

    def _call(self, arguments: Sequence[str], stop: Event, alive: Callable[[], None]) -> None:
        """One command in a process of its own, whose log lines are this process's."""
        child = subprocess.Popen(
            [*self._command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            # A signal to the whole group would reach the child twice, and the second one ends it at once.
            start_new_session=True,
        )  # fmt: skip
        try:
            while child.poll() is None and not stop.is_set():
                alive()
                stop.wait(1.0)
            if child.poll() is None:
                child.terminate()
                child.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.returncode not in (0, 3) and not stop.is_set():
            command = f"`marcod {' '.join(arguments)}`"
            raise MarcodError(f"{command} ended with {child.returncode}; `marcod train list` and the log say why")

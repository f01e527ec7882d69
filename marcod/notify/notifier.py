"""Notifier: sends messages about events from the outbox to webhooks and mailboxes.

Guarantees:

* Nothing is lost while a notifier looks at least every three days (``outbox.STALE_AFTER``). A failed message is tried
  again with doubling pauses for three days, then kept as failed and sent again by ``marcod notify retry``.
* A message that its receiver acknowledged, and whose acknowledgement reached us, is never sent again. Where it did not
  (a crash, a broken connection or a timeout between the two) the same message comes again under the same name.
* A receiver that hangs holds its notifier for ``webhook.TIMEOUT_S``, or for three times ``mail.TIMEOUT_S``, a try, and
  for the look-up of its name; ever more rarely, and after the others had their turn.
* A target that is configured later gets no events older than ``outbox.STALE_AFTER``.

Any number of notifiers may run, on any hosts.
"""

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from marcod import telemetry, text
from marcod.database.engine import Database
from marcod.errors import ConfigError
from marcod.notify import mail, render, webhook
from marcod.settings import NotifySettings, Settings
from marcod.store import outbox
from marcod.store.outbox import DeliveryResult, Event, Message, Target

log = telemetry.logger(__name__)

TICK_S: Final = 2.0
"""Pause between looks at the outbox."""

LEASE_S: Final = 300.0
"""A notifier that died gives its message back after this time; no try takes as long."""


def targets(notify: Mapping[str, NotifySettings]) -> list[Target]:
    """Make the outbox's targets of the configured ones."""
    return [Target(name, t.events, t.sources, t.projects, t.every_s) for name, t in sorted(notify.items())]


def deliver(settings: Settings, message: Message, clock: Callable[[], datetime]) -> DeliveryResult:
    """Try to send a message to its target, once. Blocks for as long as ``webhook`` and ``mail`` say."""
    target = settings.notify[message.target]
    rendered = render.render(message)
    if target.url is not None:
        return webhook.post(target, rendered, message.id, clock)
    return mail.send(settings.mail, target.to, rendered, message.id, clock)


def unknown_target(settings: Settings, name: str) -> ConfigError:
    """Make the error for a target that is not configured."""
    offered = text.offer(name, sorted(settings.notify), "targets")
    return ConfigError(f"no target {name!r} is configured in [notify.NAME]; {offered}")


def test(settings: Settings, name: str, now: datetime) -> DeliveryResult:
    """Send a test to a target at once, without the outbox. Raises ConfigError for a target that is not configured."""
    if name not in settings.notify:
        raise unknown_target(settings, name)
    ident = uuid4().hex
    event = Event(f"test:{ident}", "test", now, {"target": name})
    return deliver(settings, Message(ident, name, "", 1, (event,)), lambda: now)


@dataclass(frozen=True, slots=True)
class NotifyCounts:
    """Counts of one round: events dispatched, messages sent, postponed and given up."""

    dispatched: int = 0
    sent: int = 0
    postponed: int = 0
    failed: int = 0


class Notifier:
    """Sender of the outbox: one message per target and round. ``worker`` names this process in leases."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        worker: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db, self._settings, self._worker, self._clock = db, settings, worker, clock
        self._targets = targets(settings.notify)
        self._troubled: set[str] = set()
        self._unwritten: list[tuple[Message, DeliveryResult]] = []

    def run(self, stop: threading.Event, alive: Callable[[], None] = lambda: None) -> None:
        """Send until ``stop`` is set; a message on its way is finished first. Raises what the database raises."""
        while not stop.is_set():
            turn = self.turn(stop, alive)
            alive()
            stop.wait(0 if turn.dispatched == outbox.PART else TICK_S)

    def turn(self, stop: threading.Event | None = None, alive: Callable[[], None] = lambda: None) -> NotifyCounts:
        """Dispatch new events, and try the message of each target that has one. Raises StoreError."""
        self._write_outcomes()
        dispatched = 0
        if self._db.read(outbox.undispatched):
            dispatched = self._db.write(outbox.dispatch, self._targets, self._clock())
        tried: list[tuple[Message, DeliveryResult]] = []
        for target in self._in_order():
            if stop is not None and stop.is_set():
                break
            tried += self._serve(target)
            alive()
        failed = sum(outbox.given_up(*attempt) for attempt in tried)
        sent = sum(outcome.sent for _, outcome in tried)
        return NotifyCounts(dispatched, sent, len(tried) - sent - failed, failed)

    def _in_order(self) -> list[Target]:
        """Order due targets: those that answered the last time come first, as the others may take long."""
        ready = self._db.read(outbox.due, self._targets, self._clock())
        return sorted(ready, key=lambda target: (target.name in self._troubled, target.name))

    def _serve(self, target: Target) -> list[tuple[Message, DeliveryResult]]:
        """Try a target's message, if no other notifier has claimed it."""
        message = self._db.write(outbox.claim, target, self._worker, now=self._clock(), lease_s=LEASE_S)
        if message is None:
            return []
        outcome = self._try(message)
        self._note(message, outcome)
        self._unwritten.append((message, outcome))
        self._write_outcomes()
        return [(message, outcome)]

    def _try(self, message: Message) -> DeliveryResult:
        try:
            return deliver(self._settings, message, self._clock)
        except Exception as error:  # noqa: BLE001 - one target must not stop the others, nor its url be logged
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
            return DeliveryResult(False, f"{type(error).__name__} in {where}; this is a fault of marcod")

    def _write_outcomes(self) -> None:
        """Store outcomes. They are kept here until the database has them, or messages would be sent again."""
        while self._unwritten:
            self._db.write(outbox.finish, *self._unwritten[0], self._clock())
            self._unwritten.pop(0)

    def _note(self, message: Message, outcome: DeliveryResult) -> None:
        fields = {"target": message.target, "message": message.id, "attempt": message.attempts}
        if outcome.sent:
            self._troubled.discard(message.target)
            events = len(message.events) + sum(more.count for more in message.more)
            log.info("notified", **fields, events=events, **({"note": outcome.error} if outcome.error else {}))
            return
        self._troubled.add(message.target)
        log.warning("notification not sent", **fields, reason=outcome.error, given_up=outbox.given_up(message, outcome))

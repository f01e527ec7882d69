"""Transactional outbox: events, and one delivery per subscribed target.

Guarantees:

* An event is written once (its ``subject`` is unique), in the transaction of its fact.
* It becomes one delivery per target, whichever notifier dispatches it, and a delivery belongs to one message for ever.
* One notifier at a time holds a message, under a lease as in ``queue``.
* The name of a message is committed before it is sent, so a message that may have been sent before a crash is repeated
  under the same name.

A message lists LISTED events and counts the rest, and the more events it has, the longer the next one waits (see
:func:`pause_s`). At most UNFINISHED_MESSAGES of a target are unfinished: one message that its receiver refuses does not
delay the others, and a target that is offline for a day gets few messages afterwards.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database, insert
from marcod.database.schema import UtcDateTime, delivery, event, source
from marcod.store.selects import count_where

PART: Final = 1_000
"""Events that one call dispatches or forgets."""

LISTED: Final = 200
"""Events that one message lists in full."""

MOST_EVENTS: Final = 100_000
"""Events that one message lists or counts."""

UNFINISHED_MESSAGES: Final = 4
CALM_EVENTS: Final = 10
"""Events in one message up to which the next may follow after the usual pause."""

FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 3_600.0
ATTEMPTS: Final = 79
"""Tries of a message, with doubling pauses of at most an hour: three days."""

STALE_AFTER: Final = timedelta(days=3)
"""Age of an undispatched event at which no target gets it; as long as a message is tried."""

ORPHANED_AFTER: Final = timedelta(days=4)
"""Wait beyond the time events are kept, after which an event counts as waiting for no configured target.

Longer than STALE_AFTER, so that nothing is dispatched while it is forgotten.
"""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be written. ``subject`` names the fact and its time, so that it is notified once."""

    kind: str
    subject: str
    source_id: int
    project: str | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A subscriber and its events. No ``sources`` or ``projects`` means all; an event of no plate has no project."""

    name: str
    kinds: Collection[str]
    sources: Collection[str] = ()
    projects: Collection[str] = ()
    every_s: float = 0.0

    def wants(self, kind: str, source_name: str | None, project: str | None) -> bool:
        """Tell if an event is for this target."""
        here = not self.sources or source_name in self.sources
        return kind in self.kinds and here and (not self.projects or project in self.projects)


@dataclass(frozen=True, slots=True)
class Event:
    """An event as a message lists it; ``id`` is its subject."""

    id: str
    kind: str
    at: datetime
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class More:
    """Events of a message that are only counted."""

    kind: str
    source: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be sent to a target now; ``attempts`` counts this try. The same ``id`` has the same content."""

    id: str
    target: str
    lease: str
    attempts: int
    events: tuple[Event, ...]
    more: tuple[More, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """Result of a try: sent, to be tried again (after ``wait_s`` where the receiver asks for it), or given up."""

    sent: bool
    error: str | None = None
    final: bool = False
    wait_s: float = 0.0


def put(connection: Connection, new: Iterable[NewEvent], now: datetime) -> None:
    """Write events in the caller's transaction; one whose subject is there already changes nothing."""
    rows = [{**asdict(one), "happened_at": now} for one in new]
    if rows:
        connection.execute(insert(connection, event).on_conflict_do_nothing(), rows)


_UNDISPATCHED: Final = event.c.dispatched_at.is_(None)


def undispatched(connection: Connection) -> bool:
    """Tell if :func:`dispatch` has something to do."""
    return bool(connection.execute(sa.select(sa.exists().where(_UNDISPATCHED))).scalar_one())


def dispatch(connection: Connection, targets: Iterable[Target], now: datetime) -> int:
    """Turn the oldest undispatched events into deliveries. Returns how many events: PART means come again.

    Without targets they are only marked, and a target that is configured later gets none of them; so are those that
    are STALE_AFTER, or one that is the first to be configured would get weeks of them.
    """
    fresh = event.c.happened_at >= now - STALE_AFTER
    oldest = (
        sa.select(event.c.id, event.c.kind, source.c.name, event.c.project, fresh)
        .outerjoin(source, source.c.id == event.c.source_id)
        .where(_UNDISPATCHED)
        .order_by(event.c.id)
        .limit(PART)
        .with_for_update(skip_locked=True, of=event)
    )
    found = connection.execute(oldest).all()
    if not found:
        return 0
    rows = [
        {"event_id": key, "target": t.name, "attempts": 0, "available_at": now + timedelta(seconds=t.every_s)}
        for t in targets
        for key, kind, source_name, project, is_fresh in found
        if is_fresh and t.wants(kind, source_name, project)
    ]
    if rows:
        connection.execute(insert(connection, delivery).on_conflict_do_nothing(), rows)
    keys = [row[0] for row in found]
    connection.execute(sa.update(event).where(event.c.id.in_(keys)).values(dispatched_at=now))
    return len(found)


def _unsent(target: str) -> sa.ColumnElement[bool]:
    return sa.and_(delivery.c.target == target, delivery.c.sent_at.is_(None), delivery.c.failed_at.is_(None))


def due(connection: Connection, targets: Iterable[Target], now: datetime) -> list[Target]:
    """List the targets that have a message to be sent now."""
    return [target for target in targets if _next(connection, target, now) is not None]


def _next(connection: Connection, target: Target, now: datetime) -> str | None:
    """Find the message to be tried now: its name, empty for a new one, or None."""
    waiting, named = _unsent(target.name), delivery.c.message.is_not(None)
    again = sa.select(delivery.c.message).where(waiting, named, delivery.c.available_at <= now)
    repeated = connection.execute(again.order_by(delivery.c.available_at).limit(1)).scalar_one_or_none()
    if repeated is not None:
        return str(repeated)
    fresh = sa.exists().where(waiting, sa.not_(named), delivery.c.available_at <= now)
    if not connection.execute(sa.select(fresh)).scalar_one():
        return None
    unfinished = sa.select(sa.func.count(delivery.c.message.distinct())).where(waiting)
    if connection.execute(unfinished).scalar_one() >= UNFINISHED_MESSAGES or now < _quiet_until(
        connection, target, now
    ):
        return None
    return ""


def _quiet_until(connection: Connection, target: Target, now: datetime) -> datetime:
    last = (
        sa.select(delivery.c.message, delivery.c.sent_at)
        .where(delivery.c.target == target.name, delivery.c.sent_at.is_not(None))
        .order_by(delivery.c.id.desc())
        .limit(1)
    )
    row = connection.execute(last).one_or_none()
    if row is None or row.sent_at > now:
        return now
    size = sa.select(sa.func.count()).where(delivery.c.message == row.message)
    events = int(connection.execute(size).scalar_one())
    return row.sent_at + timedelta(seconds=pause_s(target.every_s, events))  # type: ignore[no-any-return]


def pause_s(every_s: float, events: int) -> float:
    """Seconds from a message with so many events to the next new one: longer in a flood, up to an hour."""
    return min(max(every_s, 1.0) * max(1.0, events / CALM_EVENTS), max(every_s, LONGEST_PAUSE_S)) if events else 0.0


def claim(connection: Connection, target: Target, worker: str, *, now: datetime, lease_s: float) -> Message | None:
    """Take the message of a target that is to be sent now, or None; without :func:`finish` it comes again later.

    Commit before sending. Of messages to be repeated the longest due comes first, and before new ones.
    """
    name = _next(connection, target, now)
    if name is None:
        return None
    named = delivery.c.message == name
    chosen = sa.and_(named, delivery.c.available_at <= now) if name else _unnamed(target.name)
    name, lease = name or uuid4().hex, f"{worker}/{uuid4()}"
    values = {"message": name, "lease": lease, "available_at": now + timedelta(seconds=lease_s)}
    take = sa.update(delivery).where(_unsent(target.name), chosen)
    taken = connection.execute(take.values(**values, attempts=delivery.c.attempts + 1)).rowcount
    if taken == 0:
        return None
    return _message(connection, name, target.name, lease, taken)


def _unnamed(target: str) -> sa.ColumnElement[bool]:
    """Select the oldest unnamed deliveries; the repeated condition leaves nothing to the later of two claims."""
    free = delivery.c.message.is_(None)
    oldest = sa.select(delivery.c.id).where(_unsent(target), free).order_by(delivery.c.id).limit(MOST_EVENTS)
    return sa.and_(free, delivery.c.id.in_(oldest))


_RANK: Final = sa.case({"drift": 0, "hits": 1, "complete": 2}, value=event.c.kind, else_=3)
"""Order in which events are listed in full rather than counted when there are too many."""


def _message(connection: Connection, name: str, target: str, lease: str, size: int) -> Message:
    mine = sa.and_(delivery.c.message == name, delivery.c.event_id == event.c.id)
    columns = (event.c.subject, event.c.kind, event.c.happened_at, event.c.detail, source.c.name, delivery.c.attempts)
    listed = (
        sa.select(*columns)
        .join(delivery, mine)
        .outerjoin(source, source.c.id == event.c.source_id)
        .order_by(_RANK, event.c.id)
        .limit(LISTED)
    )
    rows = connection.execute(listed).all()
    more = _more(connection, mine, rows) if size > len(rows) else ()
    return Message(name, target, lease, rows[0].attempts, tuple(Event(*row[:4]) for row in rows), more)


def _more(connection: Connection, mine: sa.ColumnElement[bool], listed: Sequence[Any]) -> tuple[More, ...]:
    """Count by kind and source the events that a message does not list."""
    counted = (
        sa.select(event.c.kind, source.c.name, sa.func.count())
        .join(delivery, mine)
        .outerjoin(source, source.c.id == event.c.source_id)
        .group_by(event.c.kind, source.c.name)
        .order_by(event.c.kind, source.c.name)
    )
    rest = {(row[0], row[1]): int(row[2]) for row in connection.execute(counted)}
    for row in listed:
        rest[row.kind, row.name] -= 1
    return tuple(More(kind, name, count) for (kind, name), count in rest.items() if count)


def finish(connection: Connection, message: Message, outcome: DeliveryResult, now: datetime) -> bool:
    """Write the result of a try. False where the lease had lapsed and another notifier has the message."""
    values = {
        "lease": None,
        "sent_at": now if outcome.sent else None,
        "failed_at": now if given_up(message, outcome) else None,
        "error": outcome.error,
        "available_at": now + timedelta(seconds=_wait_s(message.attempts, outcome)),
    }
    mine = sa.and_(delivery.c.message == message.id, delivery.c.lease == message.lease)
    return connection.execute(sa.update(delivery).where(mine).values(values)).rowcount > 0


def given_up(message: Message, outcome: DeliveryResult) -> bool:
    """Tell if this try was the last."""
    return not outcome.sent and (outcome.final or message.attempts >= ATTEMPTS)


def _wait_s(attempts: int, outcome: DeliveryResult) -> float:
    doubled = FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20)
    return min(max(doubled, outcome.wait_s), LONGEST_PAUSE_S)


def retry(connection: Connection, now: datetime, target: str | None = None) -> int:
    """Have what failed or waits for another try sent now, under the names it had. Returns how many events."""
    again = sa.and_(delivery.c.message.is_not(None), delivery.c.sent_at.is_(None), delivery.c.lease.is_(None))
    if target is not None:
        again = sa.and_(again, delivery.c.target == target)
    values = {"failed_at": None, "attempts": 0, "available_at": now}
    return connection.execute(sa.update(delivery).where(again).values(values)).rowcount


def sweep(db: Database, before: datetime, rounds: int, limit: int = PART) -> int:
    """Call :func:`forget`, each time in a transaction of its own, until nothing is left or so many times."""
    total = 0
    for _ in range(rounds):
        gone = db.write(forget, before, limit)
        total += gone
        if gone < limit:
            break
    return total


def forget(connection: Connection, before: datetime, limit: int = PART) -> int:
    """Remove events that happened before and are sent, given up or wanted by no target. Returns how many.

    What still waits, for its target or to be dispatched, is kept until it is ORPHANED_AFTER.
    """
    unsent = sa.and_(delivery.c.sent_at.is_(None), delivery.c.failed_at.is_(None))
    waits = sa.or_(_UNDISPATCHED, sa.exists().where(delivery.c.event_id == event.c.id, unsent))
    old = sa.and_(event.c.happened_at < before, sa.or_(event.c.happened_at < before - ORPHANED_AFTER, sa.not_(waits)))
    oldest = sa.select(event.c.id).where(old).order_by(event.c.happened_at).limit(limit)
    keys = list(connection.execute(oldest).scalars())
    if keys:
        connection.execute(sa.delete(delivery).where(delivery.c.event_id.in_(keys)))
        connection.execute(sa.delete(event).where(event.c.id.in_(keys)))
    return len(keys)


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """State of a target: events by state, and the last error while something waits or failed."""

    target: str
    waiting: int
    retrying: int
    failed: int
    sent: int
    last_sent_at: datetime | None
    error: str | None


def target_statuses(connection: Connection) -> list[TargetStatus]:
    """Every target that has deliveries, by name."""
    waits = sa.and_(delivery.c.sent_at.is_(None), delivery.c.failed_at.is_(None))
    named = delivery.c.message.is_not(None)

    found = sa.select(
        delivery.c.target,
        count_where(sa.and_(waits, sa.not_(named))),
        count_where(sa.and_(waits, named)),
        count_where(delivery.c.failed_at.is_not(None)),
        count_where(delivery.c.sent_at.is_not(None)),
        sa.func.max(delivery.c.sent_at, type_=UtcDateTime()),
        sa.func.max(sa.case((delivery.c.sent_at.is_(None), delivery.c.error))),
    ).group_by(delivery.c.target)
    rows = connection.execute(found.order_by(delivery.c.target))
    return [TargetStatus(r[0], int(r[1]), int(r[2]), int(r[3]), int(r[4]), r[5], r[6]) for r in rows]


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """State of a message; ``next_at`` is when it is tried again."""

    message: str
    target: str
    events: int
    attempts: int
    sent_at: datetime | None
    failed_at: datetime | None
    next_at: datetime | None
    error: str | None


def message_statuses(connection: Connection, limit: int, target: str | None = None) -> list[MessageStatus]:
    """List the latest messages."""
    named = delivery.c.message.is_not(None)
    kept = named if target is None else sa.and_(named, delivery.c.target == target)

    def last(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        return sa.func.max(column, type_=column.type)

    times = (last(delivery.c.sent_at), last(delivery.c.failed_at), last(delivery.c.available_at))
    found = (
        sa.select(
            delivery.c.message, delivery.c.target, sa.func.count(), last(delivery.c.attempts), *times,
            last(delivery.c.error),
        )
        .where(kept)
        .group_by(delivery.c.message, delivery.c.target)
        .order_by(last(delivery.c.id).desc())
        .limit(limit)
    )  # fmt: skip
    return [_message_status(row) for row in connection.execute(found)]


def _message_status(row: Any) -> MessageStatus:
    name, target, events, attempts, sent_at, failed_at, next_at, error = row
    over = sent_at is not None or failed_at is not None
    return MessageStatus(name, target, int(events), int(attempts), sent_at, failed_at, None if over else next_at, error)

"""Label inbox of a LIMS, ``lims_label_inbox_v1``: each row becomes a label, waits for its plate, or is refused.

SQLite keeps any type in any column, and bytes that are no text; no such row keeps the others from being read. Every
row has its outcome written next to it. A turn takes ``limit`` rows: new ones first, then those tried longest ago. A
row that waits long is tried less often, until something of its plate arrives.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import update_rows
from marcod.database.schema import inspection, inspection_summary, label_inbox, plate
from marcod.errors import LabelError
from marcod.labels.recorder import NO_PLATE, DropReference, Finder, following, person_named, plain
from marcod.labels.vocabularies import LONGEST, Vocabularies
from marcod.store import votes
from marcod.store.votes import NewLabel
from marcod.text import quoted

ORIGIN: Final = "inbox"
ARRIVED_S: Final = 600.0
"""A plate of which something arrived this recently has its labels tried at every turn."""

PAUSES_S: Final = ((3600.0, 0.0), (86_400.0, 300.0))
"""Pause between two tries by the age of a row, in seconds; older rows wait ``LONGEST_PAUSE_S``."""

LONGEST_PAUSE_S: Final = 3600.0
AHEAD: Final = timedelta(days=1)
"""How far a LIMS's clock may be ahead."""

EARLIEST: Final = datetime(1980, 1, 1, tzinfo=UTC)
_BYTES: Final = 4 * LONGEST
_TEXTS: Final = ("source", "plate", "well", "inspection", "label", "person")
_FIELDS: Final = (*_TEXTS, "drop_number", "labelled_at", "received_at")


class InboxState(StrEnum):
    """Outcome of a row."""

    WAITING = "waiting"
    RESOLVED = "resolved"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class InboxCounts:
    """Counts of one turn."""

    resolved: int = 0
    refused: int = 0
    waiting: int = 0

    @property
    def looked(self) -> int:
        """The number of rows looked at."""
        return self.resolved + self.refused + self.waiting

    def __add__(self, other: "InboxCounts") -> "InboxCounts":
        return InboxCounts(self.resolved + other.resolved, self.refused + other.refused, self.waiting + other.waiting)


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A row as shown to people; bytes that are no text are escaped."""

    inbox_id: int
    source: str | None
    plate: str | None
    well: str | None
    drop_number: str | None
    inspection: str | None
    label: str | None
    person: str | None
    labelled_at: str | None
    received_at: str | None
    state: str
    reason: str | None


def resolve(
    connection: Connection, vocabularies: Vocabularies, vocabulary: str, now: datetime, *, limit: int
) -> InboxCounts:
    """Resolve one turn of rows in this transaction. ``vocabulary`` is that of labels that name none."""
    rows = connection.execute(_due(connection, now).limit(limit)).all()
    finder = Finder(connection)
    outcomes = []
    with following(connection, now) as add_labels:
        for row in rows:
            outcome = {"row_id": int(row.id), "state": InboxState.REFUSED, "reason": None, "key": None, "tried_at": now}
            with _guarded(connection, outcome):
                given = _given(finder, row, vocabularies, vocabulary, now)
                add_labels([given])
                outcome |= {"state": InboxState.RESOLVED, "key": given.key}
            outcomes.append(outcome)
    _mark(connection, outcomes)
    states = [outcome["state"] for outcome in outcomes]
    return InboxCounts(
        *(states.count(state) for state in (InboxState.RESOLVED, InboxState.REFUSED, InboxState.WAITING))
    )


def _mark(connection: Connection, outcomes: list[dict[str, Any]]) -> None:
    """Store the outcomes of the rows."""
    kept = votes.key_ids(connection, [each["key"] for each in outcomes if each["key"]])
    for each in outcomes:
        each["label_id"] = kept.get(each.pop("key"))
    update_rows(connection, label_inbox, outcomes)


@contextmanager
def _guarded(connection: Connection, outcome: dict[str, Any]) -> Iterator[None]:
    """Run one row in its own savepoint, and record as its outcome whatever is wrong with it."""
    try:
        with connection.begin_nested():
            yield
    except LabelError as error:
        outcome |= {"state": InboxState.WAITING if error.may_come else InboxState.REFUSED, "reason": str(error)}
    except sa.exc.StatementError as error:
        if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError):
            raise
        outcome |= {"state": InboxState.REFUSED, "reason": "the database cannot take this row's values; write it again"}


def _due(connection: Connection, now: datetime) -> sa.Select[Any]:
    """Select waiting rows to be tried now, every field as bytes (SQLite) or text (PostgreSQL), none very long."""
    tried, received = label_inbox.c.tried_at, label_inbox.c.received_at
    pauses = [
        sa.and_(received > now - timedelta(seconds=age_s), tried <= now - timedelta(seconds=pause_s))
        for age_s, pause_s in PAUSES_S
    ]
    folded_keys = sa.select(plate.c.key_folded)
    known = folded_keys.union(sa.select(plate.c.barcode_folded).where(plate.c.barcode_folded.is_not(None)))
    # The databases fold ASCII letters alone; what has others is tried again after its pause.
    named = sa.func.lower(label_inbox.c.plate)
    again = sa.or_(
        *pauses,
        tried <= now - timedelta(seconds=LONGEST_PAUSE_S),
        named.in_(_arrived(now)),
        sa.and_(label_inbox.c.reason.startswith(NO_PLATE), named.in_(known)),
    )
    # What this turn tried already is not tried again by its next transaction.
    # A time that is still to come was written by a clock that was ahead.
    due = sa.or_(tried.is_(None), sa.and_(tried < now, again), tried > now + timedelta(seconds=LONGEST_PAUSE_S))
    return (
        sa.select(label_inbox.c.id, *(_raw(connection, name) for name in _FIELDS))
        .where(label_inbox.c.state == InboxState.WAITING, due)
        .order_by(tried.nulls_first(), label_inbox.c.id)
        .with_for_update(skip_locked=True)
    )


def _arrived(now: datetime) -> sa.CompoundSelect[Any]:
    """Select keys and barcodes of the plates of which an image arrived just now."""
    recent = inspection_summary.c.last_image_at > now - timedelta(seconds=ARRIVED_S)

    def names(column: sa.Column[Any]) -> sa.Select[Any]:
        return (
            sa.select(column)
            .join(inspection, inspection.c.plate_id == plate.c.id)
            .join(inspection_summary, inspection_summary.c.inspection_id == inspection.c.id)
            .where(recent, column.is_not(None))
        )

    return names(plate.c.key_folded).union(names(plate.c.barcode_folded))


def _raw(connection: Connection, name: str) -> sa.ColumnElement[Any]:
    """Select a column as it is stored: a driver's conversion of hostile values would fail the whole statement."""
    kind = sa.LargeBinary() if connection.dialect.name == "sqlite" else sa.Text()
    return sa.func.substr(sa.cast(label_inbox.c[name], kind), 1, _BYTES + 1).label(name)


def _given(finder: Finder, row: Any, vocabularies: Vocabularies, default: str, now: datetime) -> NewLabel:
    texts = {name: _text(name, getattr(row, name)) for name in _FIELDS}
    for name in ("plate", "well", "label", "person"):
        if texts[name] is None:
            raise LabelError(f"{name} is missing; fill it in")
    written = plain("label", texts["label"] or "")
    at = _labelled_at(texts["labelled_at"], now) or min(_time("received_at", texts["received_at"]) or now, now)
    vocabulary, code = vocabularies.split(written, default)
    drop_class = vocabulary.read(code)
    person = person_named(texts["person"] or "")
    drop = _number(texts["drop_number"])
    target = finder.find(
        DropReference(texts["plate"], texts["well"], drop, texts["inspection"], texts["source"], at=at)
    )
    where = (target.drop_id, target.inspection_id)
    return NewLabel(*where, drop_class, person, at, ORIGIN, written, vocabulary.name)


def _text(name: str, value: bytes | str | None) -> str | None:
    """Decode a field's text; blank is the same as null."""
    if value is None:
        return None
    if len(value) > _BYTES:
        raise LabelError(f"{name} has more than {LONGEST} characters; shorten it")
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise LabelError(f"{name} is no UTF-8 text: {quoted(repr(value)[2:-1])}; write it again") from error
    return text if text.strip() else None


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:4]) >= 1 and len(text) <= 4):
        raise LabelError(f"drop_number {quoted(text)} is no drop; write a number such as 1, or nothing")
    return int(text)


def _labelled_at(text: str | None, now: datetime) -> datetime | None:
    moment = _time("labelled_at", text)
    if moment is not None and not EARLIEST <= moment <= now + AHEAD:
        raise LabelError(f"labelled_at {quoted(text or '')} is before 1980 or in the future; correct it")
    return moment


def _time(name: str, text: str | None) -> datetime | None:
    """Parse an aware time; UTC where it names no zone."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise LabelError(f"{name} {quoted(text)} is no time; write it like 2026-03-09 14:30:00") from error


def retry(connection: Connection) -> int:
    """Put refused rows back after a vocabulary changed. Returns how many."""
    refused = sa.update(label_inbox).where(label_inbox.c.state == InboxState.REFUSED)
    return connection.execute(refused.values(state=InboxState.WAITING, tried_at=None)).rowcount


def counts(connection: Connection) -> dict[str, int]:
    """Count the rows by state."""
    rows = connection.execute(sa.select(label_inbox.c.state, sa.func.count()).group_by(label_inbox.c.state))
    return {state: count for state, count in rows if state in set(InboxState)}


def listed(connection: Connection, states: Sequence[InboxState], limit: int) -> list[InboxEntry]:
    """List rows in these states, the latest first."""
    rows = connection.execute(
        sa.select(
            label_inbox.c.id, *(_raw(connection, name) for name in _FIELDS), label_inbox.c.state, label_inbox.c.reason
        )
        .where(label_inbox.c.state.in_(list(states)))
        .order_by(label_inbox.c.id.desc())
        .limit(limit)
    )
    return [
        InboxEntry(
            inbox_id=int(row.id),
            state=row.state,
            reason=row.reason,
            **{name: _printed(getattr(row, name)) for name in _FIELDS},
        )
        for row in rows
    ]


def _printed(value: bytes | str | None) -> str | None:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}..."

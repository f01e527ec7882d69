"""Findings of the sources as their last scans left them: one row per source, kind and reason."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import source, source_finding
from marcod.layouts.findings import SourceFinding

FORGOTTEN: Final = timedelta(days=7)
"""A finding that no scan confirmed for this long belongs to a source that nobody looks at any more."""

_COUNTED: Final = ("files", "of_files", "example", "hint", "hint_files", "asked", "accepted")


def replace(connection: Connection, source_id: int, found: Sequence[SourceFinding], now: datetime) -> None:
    """Write the findings of a source over all those before."""
    there = sa.select(source_finding.c.kind, source_finding.c.reason).where(source_finding.c.source_id == source_id)
    gone = {(row.kind, row.reason) for row in connection.execute(there)} - {(f.kind, f.reason) for f in found}
    for kind, reason in sorted(gone):
        mine = sa.and_(source_finding.c.kind == kind, source_finding.c.reason == reason)
        connection.execute(sa.delete(source_finding).where(source_finding.c.source_id == source_id, mine))
    _upsert(connection, source_id, found, now, only_more=False)


def add(connection: Connection, source_id: int, found: Sequence[SourceFinding], now: datetime) -> None:
    """Write findings of a scan under way: counts that are higher than those before, and none else."""
    _upsert(connection, source_id, found, now, only_more=True)


def _upsert(
    connection: Connection, source_id: int, found: Sequence[SourceFinding], now: datetime, *, only_more: bool
) -> None:
    if not found:
        return
    statement = insert(connection, source_finding)
    over = {name: statement.excluded[name] for name in (*_COUNTED, "updated_at")}
    # In one order, so that a daemon and a scan by hand never wait for each other.
    rows = [_row(source_id, one, now) for one in sorted(found, key=lambda one: (one.kind, one.reason))]
    more = statement.excluded.files > source_finding.c.files if only_more else None
    keys = ["source_id", "kind", "reason"]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=over, where=more), rows)


def _row(source_id: int, one: SourceFinding, now: datetime) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in ("kind", "reason", *_COUNTED)}
    return values | {"reason": str(one.reason), "source_id": source_id, "updated_at": now}


def read(connection: Connection) -> list[SourceFinding]:
    """Every finding, by source, kind and reason."""
    columns = [source_finding.c[name] for name in ("kind", "reason", *_COUNTED, "updated_at")]
    found: sa.Select[Any] = sa.select(source.c.name, source.c.layout, *columns).select_from(source_finding)
    order = (source.c.name, source_finding.c.kind, source_finding.c.reason)
    return [SourceFinding(*row) for row in connection.execute(found.join(source).order_by(*order))]


def clear(connection: Connection, source_id: int) -> None:
    """Drop the findings of a source that will be read otherwise."""
    connection.execute(sa.delete(source_finding).where(source_finding.c.source_id == source_id))


def forget_gone(connection: Connection, now: datetime) -> None:
    """Drop findings that no scan confirmed for :data:`FORGOTTEN`."""
    connection.execute(sa.delete(source_finding).where(source_finding.c.updated_at < now - FORGOTTEN))

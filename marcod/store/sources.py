"""Sources by name, and where each host finds their files.

A source is its name. A path means something on one host alone, so roots are rows per host, and the root of a source
is that of this host, else the one that was seen last on any.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database import workers
from marcod.database.engine import has_one_host, host_of, insert
from marcod.database.schema import image, label_inbox, plate, source, source_root, watch_state
from marcod.domain import path_text, text_path

REMEMBERED: Final = timedelta(days=30)
"""A root that another host has too is forgotten after this, or containers with ever new names would fill the table."""


def root_of(connection: Connection) -> sa.ColumnElement[str]:
    """Select the root of the statement's ``source`` on this host, else the latest known of any host."""
    here = sa.select(source_root.c.root).where(
        source_root.c.source_id == source.c.id, source_root.c.host == host_of(connection)
    )
    latest = (
        sa.select(source_root.c.root)
        .where(source_root.c.source_id == source.c.id)
        .order_by(source_root.c.seen_at.desc(), source_root.c.host)
        .limit(1)
    )
    both = (each.correlate(source).scalar_subquery() for each in (here, latest))
    return sa.func.coalesce(*both, type_=sa.Text()).label("root")


def roots(connection: Connection) -> dict[str, str]:
    """Read the root of each source for this host by name, as a path of the file system."""
    return {name: text_path(root) for name, root in connection.execute(sa.select(source.c.name, root_of(connection)))}


def put_root(connection: Connection, source_id: int, root: str, now: datetime) -> None:
    """Record that this host finds the source's files at ``root``."""
    host = host_of(connection)
    values = {"root": path_text(root), "seen_at": now}
    made = insert(connection, source_root).values(source_id=source_id, host=host, **values)
    connection.execute(made.on_conflict_do_update(index_elements=["source_id", "host"], set_=values))
    watching = sa.select(watch_state.c.host).where(watch_state.c.source_id == source_id)
    connection.execute(
        sa.delete(source_root).where(
            source_root.c.source_id == source_id,
            source_root.c.host != host,
            source_root.c.root == values["root"],
            source_root.c.seen_at < now - REMEMBERED,
            source_root.c.host.not_in(watching),
        )
    )


@dataclass(frozen=True, slots=True)
class RootHere:
    """A source as this host recorded it: ``root`` is a path of the file system, ``has_images`` tells of any host."""

    id: int
    name: str
    layout: str
    root: str
    has_images: bool


def roots_here(connection: Connection) -> list[RootHere]:
    """Every source that this host ever found, by name."""
    has_images = sa.exists().where(image.c.source_id == source.c.id)
    rows = connection.execute(
        sa.select(source.c.id, source.c.name, source.c.layout, source_root.c.root, has_images)
        .join(source_root, source_root.c.source_id == source.c.id)
        .where(sa.true() if has_one_host(connection) else source_root.c.host == host_of(connection))
        .order_by(source.c.name, source_root.c.seen_at)
    )
    latest = {row[0]: RootHere(int(row[0]), row[1], row[2], text_path(row[3]), bool(row[4])) for row in rows}
    return list(latest.values())


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A source as this host may read it: ``root`` as :func:`root_of` has it, a path of the file system.

    ``is_own`` tells that this host recorded images from that root.
    """

    id: int
    name: str
    root: str
    has_images: bool
    is_own: bool


def known(connection: Connection) -> list[KnownSource]:
    """Every recorded source, by name."""
    has_images = sa.exists().where(image.c.source_id == source.c.id)
    own = sa.exists().where(source_root.c.source_id == source.c.id, source_root.c.host == host_of(connection))
    is_own = sa.true() if has_one_host(connection) else own
    rows = connection.execute(
        sa.select(source.c.id, source.c.name, root_of(connection), has_images, is_own).order_by(source.c.name)
    )
    return [KnownSource(int(row[0]), row[1], text_path(row[2]), bool(row[3]), bool(row[4])) for row in rows]


def named(names: Collection[str]) -> sa.Select[Any]:
    """Select the ids of the sources of these names, for a condition."""
    return sa.select(source.c.id).where(source.c.name.in_(list(names)))


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A recorded image: its path below the root on disk, its size in bytes, its time of modification in ns."""

    path: str
    size: int
    mtime_ns: int


def sample(connection: Connection, source_id: int, count: int) -> list[RecordedFile]:
    """Up to ``count`` recorded images of a source: the latest ones, and the first by path."""
    columns = (image.c.path, image.c.size, image.c.mtime_ns)
    mine = sa.select(*columns).where(image.c.source_id == source_id)
    found: dict[str, RecordedFile] = {}
    for statement, limit in ((mine.order_by(image.c.id.desc()), count // 2), (mine.order_by(image.c.path), count)):
        for path, size, mtime_ns in connection.execute(statement.limit(limit)):
            if len(found) < count:
                found[path] = RecordedFile(text_path(path), size, -mtime_ns - 1 if mtime_ns < 0 else mtime_ns)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class RootOnHost:
    """Where a host finds a source, as a path of its file system, and when it last opened it."""

    host: str
    root: str
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """A recorded source. ``root`` is that of this host, else the latest of any; ``roots`` are those of all hosts."""

    id: int
    name: str
    layout: str
    plates: int
    images: int
    root: str
    watched_at: datetime | None
    watched_by: str | None
    roots: tuple[RootOnHost, ...]


def listed(connection: Connection) -> list[Listed]:
    """Every recorded source, by name."""
    everywhere: dict[int, list[RootOnHost]] = {}
    columns = (source_root.c.source_id, source_root.c.host, source_root.c.root, source_root.c.seen_at)
    for source_id, host, root, seen_at in connection.execute(sa.select(*columns).order_by(source_root.c.host)):
        everywhere.setdefault(source_id, []).append(RootOnHost(host, text_path(root), seen_at))
    counts = [
        sa.select(sa.func.count()).where(table.c.source_id == source.c.id).scalar_subquery() for table in (plate, image)
    ]
    rows = connection.execute(
        sa.select(
            source.c.id, source.c.name, source.c.layout, *counts, root_of(connection), watch_state.c.updated_at,
            watch_state.c.host,
        )
        .outerjoin(watch_state, watch_state.c.source_id == source.c.id)
        .order_by(source.c.name)
    )  # fmt: skip
    return [Listed(*row[:5], text_path(row[5]), row[6], row[7], tuple(everywhere.get(row[0], ()))) for row in rows]


@dataclass(frozen=True, slots=True)
class WatchingProcess:
    """A living process that watches a source."""

    host: str
    worker: str
    seen_at: datetime


def watcher(connection: Connection, source_id: int, now: datetime) -> WatchingProcess | None:
    """Find the process that watches the source now, on any host; None when its last report is older than ALIVE_S."""
    row = connection.execute(
        sa.select(watch_state.c.host, watch_state.c.worker, watch_state.c.updated_at).where(
            watch_state.c.source_id == source_id,
            watch_state.c.worker != "",
            watch_state.c.updated_at > now - timedelta(seconds=workers.ALIVE_S),
        )
    ).one_or_none()
    return None if row is None else WatchingProcess(*row)


def rename(connection: Connection, source_id: int, name: str) -> None:
    """Give a source another name. Its plates keep their sides of a data set; waiting labels of a LIMS follow it."""
    old = connection.execute(sa.select(source.c.name).where(source.c.id == source_id)).scalar_one()
    keep_sides(connection, plate.c.source_id == source_id, old)
    connection.execute(sa.update(source).where(source.c.id == source_id).values(name=name))
    follow_in_inbox(connection, old, name)


def keep_sides(connection: Connection, chosen: sa.ColumnElement[bool], name: str) -> None:
    """Let these plates, until now of source ``name``, keep the side of a data set that this name gives them."""
    connection.execute(sa.update(plate).where(chosen, plate.c.split_source.is_(None)).values(split_source=name))


def follow_in_inbox(connection: Connection, old: str, new: str) -> None:
    """Point labels that a LIMS wrote for the old name, and that wait for their plate, to the new one."""
    waiting = sa.and_(label_inbox.c.source == old, label_inbox.c.state == "waiting")
    connection.execute(sa.update(label_inbox).where(waiting).values(source=new))


SIDE_NAME: Final[sa.ColumnElement[Any]] = sa.func.coalesce(plate.c.split_source, source.c.name)
"""The name that decides a plate's side of a data set: that of the source under which it was recorded first."""

"""Registration of sources: a source is made or brought up to date, and its images are read again where that changes.

A source that another name is given to keeps its plates under the new one.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.catalog import findings, merging, plate_setups, source_changes
from marcod.database.engine import insert
from marcod.database.rows import parts
from marcod.database.schema import image, source
from marcod.errors import ConfigError
from marcod.store import sources

ACTOR: Final = "marcod"
"""Actor of a takeover of a source in the audit."""


def register_source(
    connection: Connection,
    name: str,
    root: str,
    layout: str,
    expected_drops: int | None,
    now: datetime,
    reading: str = "",
    former: int | None = None,
) -> int:
    """Create or update a source with its root on this host. Returns its id.

    ``reading`` is everything that decides what a path means; when it changes, every image of the source is read again
    at the next full scan. ``former`` is the id of the source that the same folder was until now: it takes this name.

    Raises:
        ConfigError: the layout of the source would change, and images of it were recorded.
    """
    values = {"expected_drops": expected_drops, "reading": reading}
    if former is not None:
        _take_over(connection, former, name, now)
    row = connection.execute(sa.select(source).where(source.c.name == name)).one_or_none()
    if row is None:
        made = insert(connection, source).values(name=name, layout=layout, created_at=now, **values)
        connection.execute(made.on_conflict_do_nothing())
        row = connection.execute(sa.select(source).where(source.c.name == name)).one()
    if row.layout != layout:
        require_layout(connection, name, layout)
        findings.clear(connection, int(row.id))
    connection.execute(sa.update(source).where(source.c.id == row.id).values(layout=layout, **values))
    sources.put_root(connection, int(row.id), root, now)
    if row.reading != reading:
        # Plates before images, as everybody holds them.
        plate_setups.follow_reading(connection, int(row.id), row.reading, reading)
        read_again(connection, int(row.id))
    return int(row.id)


def require_layout(connection: Connection, name: str, layout: str) -> None:
    """Check that a source can be read with a layout; one without images can be read with any.

    Raises:
        ConfigError: images of it were recorded with another layout.
    """
    images = sa.exists().where(image.c.source_id == source.c.id)
    query = sa.select(source.c.layout).where(source.c.name == name, source.c.layout != layout, images)
    if (recorded := connection.execute(query).scalar_one_or_none()) is not None:
        raise ConfigError(
            f"source {name!r} was recorded with layout {recorded} and has images; give another folder a new source "
            f"name; to read the same folder as {layout}, first run `marcod source forget {name}`"
        )


def _take_over(connection: Connection, former: int, name: str, now: datetime) -> None:
    target = connection.execute(sa.select(source.c.id).where(source.c.name == name)).scalar_one_or_none()
    if target is None:
        source_changes.rename(connection, former, name, actor=ACTOR, now=now)
    elif source_changes.contents(connection, former).plates:
        merging.merge(connection, former, target, actor=ACTOR, now=now)
    else:
        source_changes.forget(connection, former, actor=ACTOR, now=now)


def read_again(connection: Connection, source_id: int, image_ids: Collection[int] | None = None) -> None:
    """Let the next full scan read these images of a source, or all, again.

    They get an impossible time, from which the true one can be computed: see ``deliveries``.
    """
    its = sa.select(image.c.id).where(image.c.source_id == source_id, image.c.mtime_ns >= 0).order_by(image.c.id)
    chosen = [its] if image_ids is None else [its.where(image.c.id.in_(part)) for part in parts(sorted(image_ids))]
    for part in chosen:
        # By id, as everybody holds images; an update alone would take them as they lie.
        reading = sa.update(image).where(image.c.id.in_(part.with_for_update(key_share=True)))
        connection.execute(reading.values(mtime_ns=-image.c.mtime_ns - 1))

"""Row locks in the one order that every transaction keeps; see the package for the order and why.

PostgreSQL alone locks rows; on SQLite one transaction writes at a time.
"""

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import parts
from marcod.database.schema import drop, image, inspection, plate

SILENCE_LOCK: Final = 0x6D61_7263_6F66
"""PostgreSQL advisory lock of who writes scores of a silent version; a change of aliases holds the number before it."""


def hold(
    connection: Connection,
    *,
    plates: Iterable[int] = (),
    images: Iterable[int] = (),
    inspections: Iterable[int] = (),
    drops: Iterable[int] = (),
) -> list[int]:
    """Lock rows by id until the transaction ends. Returns the inspections that exist.

    Other transactions may refer to the rows meanwhile: two that both added images to one inspection would wait for each
    other. Jobs come between images and inspections: call twice where a transaction needs both.
    """
    _hold(connection, plate, plates)
    _hold(connection, image, images)
    existing = _hold(connection, inspection, inspections)
    _hold(connection, drop, drops)
    return existing


def begin_silent_writing(connection: Connection) -> None:
    """Let no silent version begin to speak until the transaction ends; to be called before asking which are silent.

    A promotion calls :func:`wait_for_silent_writing` and waits for those before it alone. A lock on the version's row
    would let later ones pass it for ever.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(SILENCE_LOCK)))


def wait_for_silent_writing(connection: Connection) -> None:
    """Wait for transactions that called :func:`begin_silent_writing`, and let others wait there until this one ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SILENCE_LOCK)))


def hold_more_images(connection: Connection, image_ids: Iterable[int]) -> None:
    """Lock images after those of the batch, out of order, so without waiting.

    Where another transaction has one of them, PostgreSQL fails this one and ``Database.write`` repeats it.
    """
    _hold(connection, image, image_ids, nowait=True)


def _hold(connection: Connection, table: sa.Table, ids: Iterable[int], *, nowait: bool = False) -> list[int]:
    held: list[int] = []
    for part in parts(sorted(set(ids))):
        wanted = sa.select(table.c.id).where(table.c.id.in_(part)).order_by(table.c.id)
        held += connection.execute(wanted.with_for_update(key_share=True, nowait=nowait)).scalars()
    return held

"""Marks that people set on drops besides a class, and the drops whose crystals were harvested."""

from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import drop, drop_mark


class MarkKind(StrEnum):
    """Kinds of marks that people set on drops, besides a class; ``unharvested`` takes ``harvested`` back."""

    NOTE = "note"
    HARVESTED = "harvested"
    UNHARVESTED = "unharvested"


HARVEST: Final = (MarkKind.HARVESTED, MarkKind.UNHARVESTED)
"""The kinds of which the last one says if a drop was harvested."""


def is_harvested(drop_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Return the condition that the crystals of a drop were harvested, as its last mark says."""
    its = sa.select(drop_mark.c.kind).where(drop_mark.c.drop_id == drop_id, drop_mark.c.kind.in_(HARVEST))
    last = its.order_by(drop_mark.c.marked_at.desc(), drop_mark.c.id.desc()).limit(1).scalar_subquery()
    return sa.func.coalesce(last, "") == str(MarkKind.HARVESTED)


def harvested_on(connection: Connection, plate_id: int) -> frozenset[int]:
    """Read the drops of a plate whose crystals were harvested."""
    its = sa.select(drop.c.id).where(drop.c.plate_id == plate_id, is_harvested(drop.c.id))
    return frozenset(connection.execute(its).scalars())

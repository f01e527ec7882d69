"""Conditions that the lists of the page share, and what one person may see of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import inspection_summary, source
from marcod.domain import composed, folded
from marcod.text import moment_of
from marcod.web.people import User

FEW: Final = 10_000
"""Rows that a filter may leave to be put in order by themselves; of more the list is walked in its own order."""


def visible(user: User) -> sa.ColumnElement[bool]:
    """Return the condition on ``plate`` under which a person sees a plate; today everybody sees all."""
    return sa.true()


SHOWN_INSPECTION: Final = sa.table("shown_inspection", sa.column("inspection_id"), sa.column("model_version_id"))
SHOWN_VERSION: Final = sa.table("shown_version", sa.column("model_version_id"), sa.column("is_champion", sa.Boolean()))
SHOWN_DROP: Final = sa.table("shown_drop", sa.column("drop_id"), sa.column("model_version_id"))
IS_SHOWN: Final = sa.and_(
    SHOWN_INSPECTION.c.inspection_id == inspection_summary.c.inspection_id,
    SHOWN_INSPECTION.c.model_version_id == inspection_summary.c.model_version_id,
)


def are_few(connection: Connection, found: sa.Select[Any], share: int = 1) -> bool:
    """Tell if a statement finds no more than :data:`FEW` rows, or that part of them, without reading more."""
    few = FEW // share
    some = found.limit(few + 1).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()) <= few


def contains(connection: Connection, columns: Sequence[sa.ColumnElement[Any]], text: str) -> sa.ColumnElement[bool]:
    """Return the condition that one of these columns, which are folded, holds a text in any case."""
    # Several times as fast as LIKE on SQLite, which folds again.
    find = sa.func.instr if connection.dialect.name == "sqlite" else sa.func.strpos
    wanted = folded(composed(text))
    return sa.or_(*(find(column, wanted) > 0 for column in columns))


def unindexed(connection: Connection, column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Return a column for a condition by which SQLite should choose no index, so that it walks a list in its order.

    PostgreSQL chooses by what it knows of the column's values.
    """
    return column + 0 if connection.dialect.name == "sqlite" else column


def text_of(query: Mapping[str, str], name: str) -> str:
    """Return a text of an address, at most 200 characters; what no database can hold counts as not given."""
    text = query.get(name, "").strip()[:200]
    return "" if "\0" in text else text


def since(text: str, now: datetime) -> datetime | None:
    """Return the moment of an age such as ``24h`` or of a date, None for everything else."""
    try:
        return moment_of(text, now)
    except (ValueError, OverflowError):
        return None


def source_named(connection: Connection, name: str) -> int:
    """Return the id of a source, 0 where none has this name."""
    return int(connection.execute(sa.select(source.c.id).where(source.c.name == name)).scalar() or 0)

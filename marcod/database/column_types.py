"""Shared parts of the tables: names of constraints, aware UTC times, and ids that both databases count."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index
from sqlalchemy.engine import Dialect

from marcod.domain import folded

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware UTC in and out. SQLite keeps it as sortable text without a zone, PostgreSQL as timestamptz."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not reach the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


BigId: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def key() -> Column[int]:
    """Make the primary key of a table."""
    return Column("id", BigId, primary_key=True, autoincrement=True)


def folded_from(name: str) -> Callable[[Any], str | None]:
    """Make the default of a column that holds another column's name in comparable form."""

    def default(context: Any) -> str | None:
        found = context.get_current_parameters().get(name)
        return None if found is None else folded(found)

    return default


def ref(name: str, target: str, **more: Any) -> Column[int]:
    """Make a reference to an existing row of another table."""
    return Column(name, BigId, ForeignKey(f"{target}.id"), nullable=False, **more)


def required(kind: Any, *names: str) -> list[Column[Any]]:
    """Make columns of one type that are never null."""
    return [Column(name, kind, nullable=False) for name in names]


def optional(kind: Any, *names: str) -> list[Column[Any]]:
    """Make columns of one type that may be null."""
    return [Column(name, kind) for name in names]


def index_where(condition: str, name: str, *columns: str, unique: bool = False) -> Index:
    """Make an index of the rows that meet a condition, on both databases."""
    where = sa.text(condition)
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)

"""Steps of the schema: which there are, and how the schema of a database stands to them.

Steps live in ``migrations/``, beside the package in a checkout and inside it in an installation. A step with
``additive = True`` leaves everything in its place that the marcod of the step before uses. The files are read, not run,
so that a command that only looks needs no Alembic.
"""

import ast
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import files
from marcod.database.engine import Database
from marcod.database.schema import schema_mark
from marcod.errors import SchemaError

MARKED: Final = "0005"
"""The step that made the mark of the oldest usable step; who knows none of its age cannot read it."""

VERSION_TABLE: Final = "alembic_version"
_version = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text))


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps from the oldest to the newest, by revision."""

    revisions: tuple[str, ...]
    additive: frozenset[str]

    @property
    def newest(self) -> str:
        """What a current database has."""
        return self.revisions[-1]

    def place(self, revision: str | None) -> int:
        """How many steps lead to this one, itself included; 0 for none or one that is not known."""
        return 0 if revision is None or revision not in self.revisions else self.revisions.index(revision) + 1

    def between(self, after: str | None, up_to: str) -> tuple[str, ...]:
        """The steps that lead from one to another; ``head`` is the newest."""
        return self.revisions[self.place(after) : len(self.revisions) if up_to == "head" else self.place(up_to)]

    def oldest_usable(self, current: str) -> str:
        """The step that a marcod must know to work on a database at ``current``."""
        since = self.between(MARKED, current)
        return next((step for step in reversed(since) if step not in self.additive), MARKED)


def folder() -> Path:
    """The folder of migrations: installed with the package, else beside it in a checkout."""
    return files.shipped("migrations")


@cache
def known(scripts: Path | None = None) -> Steps:
    """Return what this marcod knows.

    It is read once, for a running marcod keeps its own steps while a new one is installed.
    """
    files = [_assigned(file) for file in ((scripts or folder()) / "versions").glob("*.py")]
    after = {values["down_revision"]: str(values["revision"]) for values in files}
    ordered: list[str] = []
    last: object = None
    while (last := after.get(last)) is not None:
        ordered.append(str(last))
    if len(ordered) != len(files):
        raise SchemaError(f"the steps of the schema in {scripts or folder()} are no chain; install marcod again")
    additive = frozenset(str(values["revision"]) for values in files if values.get("additive") is True)
    return Steps(tuple(ordered), additive)


def _assigned(file: Path) -> dict[str, object]:
    """Constants that a script assigns at its top."""
    return {
        target.id: statement.value.value
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


class SchemaState(StrEnum):
    """Relation of the database's schema to this version of marcod.

    A compatible one is newer, and all that this version uses is still in its place.
    """

    EMPTY = "empty"
    CURRENT = "current"
    COMPATIBLE = "compatible"
    OLDER = "older"
    UNKNOWN = "unknown"


USABLE: Final = frozenset({SchemaState.CURRENT, SchemaState.COMPATIBLE})


def state(db: Database, scripts: Path | None = None) -> SchemaState:
    """Compare the database with the steps, without changing anything."""
    return db.read(state_of, scripts)


def state_of(connection: Connection, scripts: Path | None = None) -> SchemaState:
    """Like :func:`state`, of a connection."""
    current = revision_of(connection)
    if current is None:
        tables = sa.inspect(connection).get_table_names()
        return SchemaState.UNKNOWN if "image" in tables else SchemaState.EMPTY
    steps = known(scripts)
    if current == steps.newest:
        return SchemaState.CURRENT
    if steps.place(current):
        return SchemaState.OLDER
    return SchemaState.COMPATIBLE if steps.place(_oldest_usable(connection)) else SchemaState.UNKNOWN


def revision_of(connection: Connection) -> str | None:
    """Return the newest step that a database has, None without any."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar_one_or_none()


def _oldest_usable(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(schema_mark.name):
        return None
    return connection.execute(sa.select(schema_mark.c.oldest_revision)).scalar_one_or_none()


def require_usable(db: Database, scripts: Path | None = None) -> None:
    """Raise SchemaError, with the next step, unless this marcod can work on the schema as it is. Changes nothing."""
    found = state(db, scripts)
    if found is SchemaState.EMPTY:
        raise SchemaError(f"{db} is empty; `marcod run` or `marcod db upgrade` sets it up")
    if found is SchemaState.OLDER:
        raise SchemaError(f"the schema of {db} is older than this marcod; run `marcod db upgrade` first")
    if found is SchemaState.UNKNOWN:
        raise SchemaError(newer(db))


def newer(db: Database) -> str:
    """Say that a database was made by a marcod that this one cannot follow."""
    return f"the schema of {db} is newer than this marcod; install the marcod that made it"

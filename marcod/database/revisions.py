"""Steps of the schema: the list of them, and how the schema of a database relates to it.

Steps live in ``migrations/``, next to the package in a checkout and inside it in an installation. A step with
``additive = True`` keeps everything that the marcod of the step before uses. The first step is never additive.
The files are parsed, not run, so that a command that only reads needs no Alembic.
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

UNRELEASED: Final = frozenset(f"{number:04}" for number in range(1, 10))
"""Steps before the first release, which replaced them all; a database at one of them cannot be upgraded."""

VERSION_TABLE: Final = "alembic_version"
_version = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text))


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps from the oldest to the newest, by revision."""

    revisions: tuple[str, ...]
    additive: frozenset[str]

    @property
    def newest(self) -> str:
        """The step of a current database."""
        return self.revisions[-1]

    def place(self, revision: str | None) -> int:
        """Count the steps up to and including this one; 0 for None or an unknown one."""
        return 0 if revision is None or revision not in self.revisions else self.revisions.index(revision) + 1

    def between(self, after: str | None, up_to: str) -> tuple[str, ...]:
        """List the steps from one to another; ``head`` is the newest."""
        return self.revisions[self.place(after) : len(self.revisions) if up_to == "head" else self.place(up_to)]

    def oldest_usable(self, current: str) -> str:
        """Return the step that a marcod must know to work on a database at ``current``."""
        return next(step for step in reversed(self.between(None, current)) if step not in self.additive)


def folder() -> Path:
    """Return the folder of migrations: installed with the package, else next to it in a checkout."""
    return files.shipped("migrations")


@cache
def known(scripts: Path | None = None) -> Steps:
    """Return the steps that this marcod knows.

    They are read once, because a running marcod keeps its own steps while a new one is installed.
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
    """Read the constants that a script assigns at its top level."""
    return {
        target.id: statement.value.value
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


class SchemaState(StrEnum):
    """Relation of a database's schema to this version of marcod.

    A compatible one is newer, and keeps all that this version uses. An unreleased one is of a marcod before the first
    release.
    """

    EMPTY = "empty"
    CURRENT = "current"
    COMPATIBLE = "compatible"
    OLDER = "older"
    UNRELEASED = "unreleased"
    UNKNOWN = "unknown"


USABLE: Final = frozenset({SchemaState.CURRENT, SchemaState.COMPATIBLE})

_REFUSED: Final = {
    SchemaState.EMPTY: "{} is empty",
    SchemaState.OLDER: "the schema of {} is older than this marcod",
    SchemaState.UNRELEASED: "the schema of {} is of a marcod before the first release, which cannot be upgraded",
    SchemaState.UNKNOWN: "the schema of {} is newer than this marcod",
}
ADVICE: Final = {
    SchemaState.EMPTY: "`marcod run` or `marcod db upgrade` sets it up",
    SchemaState.OLDER: "run `marcod db upgrade` first",
    SchemaState.UNRELEASED: "name a new database in store.url; `marcod run` records and scores the images again",
    SchemaState.UNKNOWN: "install the marcod that made it",
}
"""The next step for a schema that this marcod cannot work on."""


def state(db: Database, scripts: Path | None = None) -> SchemaState:
    """Compare the database with the steps, without changing anything."""
    return db.read(state_of, scripts)


def state_of(connection: Connection, scripts: Path | None = None) -> SchemaState:
    """Compare like :func:`state`, on a connection."""
    current = revision_of(connection)
    if current is None:
        tables = sa.inspect(connection).get_table_names()
        return SchemaState.UNKNOWN if "image" in tables else SchemaState.EMPTY
    steps = known(scripts)
    if current == steps.newest:
        return SchemaState.CURRENT
    if steps.place(current):
        return SchemaState.OLDER
    if current in UNRELEASED:
        return SchemaState.UNRELEASED
    return SchemaState.COMPATIBLE if steps.place(_oldest_usable(connection)) else SchemaState.UNKNOWN


def revision_of(connection: Connection) -> str | None:
    """Return the newest step that a database has, None if it has none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar_one_or_none()


def _oldest_usable(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(schema_mark.name):
        return None
    return connection.execute(sa.select(schema_mark.c.oldest_revision)).scalar_one_or_none()


def require_usable(db: Database, scripts: Path | None = None) -> None:
    """Raise SchemaError, with the next step, unless this marcod can work on the schema as it is. Change nothing."""
    found = state(db, scripts)
    if found not in USABLE:
        raise refusal(found, db)


def refusal(found: SchemaState, db: Database) -> SchemaError:
    """Return the error for a schema that this marcod cannot work on: one sentence with the next step."""
    return SchemaError(f"{_REFUSED[found].format(db)}; {ADVICE[found]}")

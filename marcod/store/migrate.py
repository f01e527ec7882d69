"""Bringing the schema up to date: hides Alembic and promises that no process works on a schema it does not know.

Steps live in ``migrations/``, beside the package in a checkout and inside it in an installation. A step and its
version mark are one transaction on both databases.
"""

from enum import StrEnum
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from marcod.errors import SchemaError
from marcod.store import access, contract
from marcod.store.engine import Database

ADVISORY_LOCK: Final = 0x6D61_7263_6F64
"""PostgreSQL advisory lock held while migrating ("marcod" in ASCII), so that two hosts never migrate at once."""


class SchemaState(StrEnum):
    """How the database's schema stands to this version of marcod."""

    EMPTY = "empty"
    CURRENT = "current"
    OLDER = "older"
    UNKNOWN = "unknown"


def folder() -> Path:
    """The folder of migrations: installed with the package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def state(db: Database) -> SchemaState:
    """Compare the database with the newest step, without changing anything."""
    return db.read(_state)


def _state(connection: Connection) -> SchemaState:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        tables = sa.inspect(connection).get_table_names()
        return SchemaState.UNKNOWN if "image" in tables else SchemaState.EMPTY
    script = ScriptDirectory(str(folder()))
    if current == script.get_current_head():
        return SchemaState.CURRENT
    known = {step.revision for step in script.walk_revisions()}
    return SchemaState.OLDER if current in known else SchemaState.UNKNOWN


def require_current(db: Database) -> None:
    """Make the schema of an empty database; otherwise raise SchemaError unless it is current."""
    found = state(db)
    if found is SchemaState.EMPTY:
        upgrade(db)
    elif found is SchemaState.OLDER:
        raise SchemaError(f"the schema of {db} is older than this marcod; run `marcod db upgrade` first")
    elif found is SchemaState.UNKNOWN:
        raise SchemaError(f"the schema of {db} is newer than this marcod; install the marcod that made it")


def upgrade(db: Database, revision: str = "head") -> None:
    """Apply all steps up to ``revision``. Raises SchemaError when the schema is newer than this marcod."""
    db.write(lambda connection: _upgrade(connection, db, revision))


def _upgrade(connection: Connection, db: Database, revision: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    if _state(connection) is SchemaState.UNKNOWN:
        raise SchemaError(f"the schema of {db} is newer than this marcod; install the marcod that made it")
    # A view defined anew has lost who may read it.
    roles = access.grantees(connection)
    command.upgrade(_config(connection), revision)
    contract.comment(connection, contract.read(folder()))
    access.grant(connection, roles)


def downgrade(db: Database, revision: str) -> None:
    """Undo steps down to ``revision``; ``base`` undoes all of them and their data."""
    db.write(lambda connection: command.downgrade(_config(connection), revision))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

"""Upgrades and downgrades of the schema through Alembic.

Guarantees:
    - A step and its version mark are one transaction on both databases.
    - A step that only adds may be applied while workers of the schema before run. Any other step waits for their end.
    - A row of the database names the step that a marcod must know, so an older marcod needs no newer steps to learn it.

``scripts`` names another folder of steps than marcod's own, for tests of later steps.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

from marcod.database import revisions, views, workers
from marcod.database import roles as database_roles
from marcod.database.engine import Database
from marcod.database.revisions import SchemaState, folder, revision_of, state, state_of
from marcod.database.schema import schema_mark
from marcod.errors import SchemaError

ADVISORY_LOCK: Final = 0x6D61_7263_6F64
"""PostgreSQL advisory lock held while migrating ("marcod" in ASCII), so that two hosts never migrate at once."""

NAMED: Final = 10
"""How many workers a refusal names."""


def require_current(db: Database, scripts: Path | None = None) -> None:
    """Make the schema of an empty database; otherwise raise SchemaError unless this marcod can work on it."""
    if state(db, scripts) is SchemaState.EMPTY:
        upgrade(db, scripts=scripts)
    else:
        revisions.require_usable(db, scripts)


def upgrade(
    db: Database,
    revision: str = "head",
    *,
    now: datetime | None = None,
    force: bool = False,
    scripts: Path | None = None,
) -> SchemaState:
    """Apply all steps up to ``revision`` and return the state after them. A compatible schema stays as it is.

    ``now`` is the time of ``db`` by default.

    Raises:
        SchemaError: when the schema is newer than this marcod or from before the first release, and, unless forced,
            when a step that does more than add would break workers alive at ``now``.
    """
    return db.write(_upgrade, db, revision, now, force, scripts)


def _upgrade(
    connection: Connection, db: Database, revision: str, now: datetime | None, force: bool, scripts: Path | None
) -> SchemaState:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    found = state_of(connection, scripts)
    if found in (SchemaState.UNKNOWN, SchemaState.UNRELEASED):
        raise revisions.refusal(found, db)
    if found is SchemaState.COMPATIBLE:
        return found
    if not force:
        # The server's clock is known only after the first connection, so it is read inside the transaction.
        _refuse_while_needed(connection, revision, now or db.now(), scripts)
    # PostgreSQL drops the grants of a view that a step drops and creates again.
    roles = database_roles.grantees(connection)
    command.upgrade(_config(connection, scripts), revision)
    _mark(connection, scripts)
    views.comment(connection, views.read(scripts or folder()))
    database_roles.grant(connection, roles)
    return state_of(connection, scripts)


def _refuse_while_needed(connection: Connection, revision: str, now: datetime, scripts: Path | None) -> None:
    """Raise SchemaError when a step changes what running workers use."""
    known, current = revisions.known(scripts), revision_of(connection)
    breaking = [step for step in known.between(current, revision) if step not in known.additive]
    if current is None or not breaking:
        return
    old = [w for w in workers.needs(connection, now) if known.place(w.revision) < known.place(breaking[-1])]
    if not old:
        return
    named = ", ".join(f"{w.name} on {w.host}" for w in old[:NAMED])
    more = f" and {len(old) - NAMED} more" if len(old) > NAMED else ""
    raise SchemaError(
        f"step {breaking[-1]} of the schema changes what these running workers use: {named}{more}. Stop them"
        " (`systemctl stop marcod.target` on their hosts), run `marcod db upgrade` again, and start the new marcod;"
        f" one that was killed counts as running for {workers.ALIVE_S:.0f} s"
    )


def _mark(connection: Connection, scripts: Path | None) -> None:
    """Record the step that a marcod must know from now on."""
    current = revision_of(connection)
    if current is not None:
        oldest = revisions.known(scripts).oldest_usable(current)
        connection.execute(sa.update(schema_mark).values(oldest_revision=oldest))


def downgrade(db: Database, revision: str, scripts: Path | None = None) -> None:
    """Undo steps down to ``revision``; ``base`` undoes all of them and deletes their data."""
    db.write(_downgrade, revision, scripts)


def _downgrade(connection: Connection, revision: str, scripts: Path | None) -> None:
    command.downgrade(_config(connection, scripts), revision)
    _mark(connection, scripts)


def _config(connection: Connection, scripts: Path | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts or folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

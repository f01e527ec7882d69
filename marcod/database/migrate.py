"""Bringing the schema up to date: hides Alembic and promises that no process works on a schema it cannot use.

A step and its version mark are one transaction on both databases. A step that only adds may be applied while workers
of the schema before run, and they work on; any other step waits until they are stopped. Which step a worker must know
is a row of the database, so that an older marcod learns it without the steps it never saw.

``scripts`` names another folder of steps than marcod's own, as a test of steps to come has one.
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
from marcod.database.revisions import USABLE as USABLE
from marcod.database.revisions import SchemaState as SchemaState
from marcod.database.revisions import folder as folder
from marcod.database.revisions import revision_of as revision_of
from marcod.database.revisions import state as state
from marcod.database.revisions import state_of as state_of
from marcod.database.schema import schema_mark
from marcod.errors import SchemaError

ADVISORY_LOCK: Final = 0x6D61_7263_6F64
"""PostgreSQL advisory lock held while migrating ("marcod" in ASCII), so that two hosts never migrate at once."""

NAMED: Final = 10
"""Workers that a refusal names."""


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
    """Apply all steps up to ``revision``; a compatible schema is left as it is. Returns how the schema stands then.

    Raises SchemaError when the schema is newer than this marcod, and, unless forced, when a step does more than add
    while workers that do not know it are alive at ``now``, by default the time of ``db``.
    """

    def work(connection: Connection) -> SchemaState:
        # Asked within the transaction: the server's clock is known from the first connection on, and no earlier.
        return _upgrade(connection, db, revision, None if force else now or db.now(), scripts)

    return db.write(work)


def _upgrade(
    connection: Connection, db: Database, revision: str, alive_at: datetime | None, scripts: Path | None
) -> SchemaState:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    found = state_of(connection, scripts)
    if found is SchemaState.UNKNOWN:
        raise SchemaError(revisions.newer(db))
    if found is SchemaState.COMPATIBLE:
        return found
    if alive_at is not None:
        _refuse_while_needed(connection, revision, alive_at, scripts)
    # A view defined anew has lost who may read it.
    roles = database_roles.grantees(connection)
    command.upgrade(_config(connection, scripts), revision)
    _mark(connection, scripts)
    views.comment(connection, views.read(scripts or folder()))
    database_roles.grant(connection, roles)
    return state_of(connection, scripts)


def _refuse_while_needed(connection: Connection, revision: str, now: datetime, scripts: Path | None) -> None:
    """Raises SchemaError when a step takes from living workers what they use."""
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
    """Write down which step a marcod must know from now on."""
    current = revision_of(connection)
    if current is not None and sa.inspect(connection).has_table(schema_mark.name):
        connection.execute(
            sa.update(schema_mark).values(oldest_revision=revisions.known(scripts).oldest_usable(current))
        )


def downgrade(db: Database, revision: str, scripts: Path | None = None) -> None:
    """Undo steps down to ``revision``; ``base`` undoes all of them and their data."""

    def work(connection: Connection) -> None:
        command.downgrade(_config(connection, scripts), revision)
        _mark(connection, scripts)

    db.write(work)


def _config(connection: Connection, scripts: Path | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts or folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

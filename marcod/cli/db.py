"""`marcod db`: the database's schema, and who may do what in it."""

from datetime import UTC, datetime
from typing import Any, Final

import click

from marcod import text
from marcod.app import connected, looked_at
from marcod.cli import output, people
from marcod.cli.configured import configured, pass_settings
from marcod.cli.lazy import LazyGroup
from marcod.database import migrate
from marcod.database import roles as database_roles
from marcod.database.engine import Database
from marcod.errors import ConfigError, SchemaError
from marcod.settings import Settings
from marcod.store import audit_log, backfill


@click.group(
    cls=LazyGroup,
    lazy={
        "backup": (
            "marcod.cli.upkeep:backup",
            "Copy an SQLite database into FILE while marcod works on; "
            "the copy is checked and readable to its owner alone.",
        ),
        "restore": (
            "marcod.cli.upkeep:restore",
            "Put FILE, a copy made by `marcod db backup`, in the place of the SQLite database, "
            "which is kept beside it.",
        ),
        "thin": (
            "marcod.cli.upkeep:thin",
            "Remove scores that the champion's own replaced, and old audit rows, "
            "as `retention` in the configuration says.",
        ),
    },
)
def db() -> None:
    """Check, upgrade, copy and thin the database, and make its roles."""


_SENTENCE: Final = {state: f"the schema of {{}} is {state}" for state in migrate.SchemaState} | {
    migrate.SchemaState.COMPATIBLE: "the schema of {} is newer than this marcod, which can work on it all the same",
}


@db.command()
@click.option("--force", is_flag=True, help="Although workers run that cannot work on the new schema; they will fail")
@pass_settings
def upgrade(settings: Settings, force: bool) -> None:
    """Bring the schema up to date, and fill in what an older one did not keep; does nothing when all is there.

    Refuses while workers run that need what a step changes. May be stopped and begun again. Roles made by
    `marcod db roles` keep their rights.
    """
    with connected(settings) as database, output.stages() as report:
        found = migrate.upgrade(database, force=force)
        filled = backfill.run(database, datetime.now(UTC), report)
    output.echo(_SENTENCE[found].format(database))
    if filled.drops or filled.inspections:
        labelled = text.count(filled.inspections, "labelled inspection")
        output.echo(f"{text.count(filled.drops, 'drop')} worked out, {labelled} counted again")


@db.command()
@click.option("--deep", is_flag=True, help="Recount summaries, drops and hits from images, scores and labels")
@click.option(
    "--plate", "plates", multiple=True, metavar="PLATE", help="With --deep: this plate alone; may be repeated"
)
@click.option("--source", help="With --deep: plates of this source alone")
@click.option("--fix", is_flag=True, help="With --deep: keep what was recounted; the audit says what differed")
@output.as_json
@click.pass_context
def check(
    ctx: click.Context, deep: bool, plates: tuple[str, ...], source: str | None, fix: bool, json_output: bool
) -> None:
    """Say how the schema stands to this marcod; exit code 1 unless it can be worked on, 3 unless all is filled in.

    With --deep every row that follows from others is recounted, in short portions beside a running service; exit
    code 3 where one differs and was not mended.
    """
    if not deep and (plates or source or fix):
        raise click.UsageError("--plate, --source and --fix go with --deep")
    _check_schema(ctx, json_output=json_output and not deep, quiet=deep)
    if deep:
        from marcod.cli import upkeep

        upkeep.check_deep(ctx, configured(ctx).settings, plates, source, fix=fix, json_output=json_output)


def _check_schema(ctx: click.Context, *, json_output: bool, quiet: bool) -> None:
    with looked_at(configured(ctx).settings) as database:
        state = migrate.state(database)
        unfinished = state is migrate.SchemaState.CURRENT and database.read(backfill.unfinished)
    if json_output:
        output.print_json({"database": str(database), "schema": state, "unfinished": unfinished})
    elif not quiet or state not in migrate.USABLE:
        output.echo(_SENTENCE[state].format(database), err=quiet)
    if state is migrate.SchemaState.UNKNOWN:
        raise SchemaError("install the marcod that made this schema")
    if state not in migrate.USABLE:
        raise SchemaError("run `marcod db upgrade`")
    if unfinished and not quiet:
        output.echo("drops over time are not all worked out; run `marcod db upgrade` to finish", err=True)
        ctx.exit(output.ATTENTION)


@db.command()
@click.option("--lims", default="marcod_lims", show_default=True, help="Role that reads, and fills the inbox")
@click.option("--app", default="marcod_app", show_default=True, help="Role with all that `marcod run` needs")
@output.as_json
@pass_settings
def roles(settings: Settings, lims: str, app: str, json_output: bool) -> None:
    """Make the roles of a LIMS and of the daemon on PostgreSQL, or set their rights anew.

    Nobody can log in as such a role: `grant marcod_lims to somebody` gives it to a user. Run it as the user who owns
    marcod's tables and may create roles. What PostgreSQL lets everybody do in a database is taken away: creating
    temporary tables and, as a superuser, large objects.
    """
    named = Database(settings.store.url.get_secret_value(), read_only=True)
    if named.is_sqlite:
        raise ConfigError(
            "SQLite has no roles; who may read the file may read it all, so let a LIMS open it read-only:"
            f' sqlite3 "file:{named.url.database}?mode=ro"'
        )

    def work(connection: Any) -> database_roles.Made:
        made = database_roles.make_roles(connection, lims, app)
        detail: dict[str, object] = {"lims": lims, "app": app, "taken_from_everybody": list(made.taken)}
        audit_log.write(connection, people.actor(), "roles", lims, detail, datetime.now(UTC))
        return made

    with connected(settings) as database:
        migrate.require_current(database)
        made = database.write(work)
    output.print_json(made) if json_output else _tell(made)


def _tell(made: database_roles.Made) -> None:
    for role in made.created:
        output.echo(f"made role {role}")
    output.echo(f"{made.lims} reads {', '.join(made.views)}")
    output.echo(f"{made.lims} reads {text.count(len(made.tables), 'table')} too, for the commands that only read")
    output.echo(f"{made.lims} inserts into {database_roles.INBOX}; it changes nothing else")
    output.echo(f"{made.app} reads and changes the rows of {text.count(len(made.tables), 'table')}; no schema")
    for right in made.taken:
        output.echo(f"taken from everybody: {right}")
    for right in made.left:
        output.echo(f"everybody still has: {right}; run this as a superuser to take it away")

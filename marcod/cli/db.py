"""`marcod db`: the schema, copies, retention, recounts and roles of the database."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from marcod import files, text
from marcod.app import connected, looked_at, open_app
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import configured, pass_settings
from marcod.database import migrate, revisions
from marcod.database import roles as database_roles
from marcod.database.engine import Database
from marcod.errors import ConfigError, SchemaError
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import audit_log
from marcod.upkeep import backup as backups
from marcod.upkeep import recounting, retention

DIFFERENCES: Final = 50
"""Differences that are printed one by one."""


@click.group()
def db() -> None:
    """Check, upgrade, copy and thin the database, and make its roles."""


_SENTENCE: Final = {state: f"the schema of {{}} is {state}" for state in revisions.SchemaState} | {
    revisions.SchemaState.UNRELEASED: "the schema of {} is of a marcod before the first release",
    revisions.SchemaState.COMPATIBLE: "the schema of {} is newer than this marcod, which can work on it all the same",
}


@db.command()
@click.option("--force", is_flag=True, help="Although workers run that cannot work on the new schema; they will fail")
@pass_settings
def upgrade(settings: Settings, force: bool) -> None:
    """Bring the schema up to date; does nothing when it is.

    Refuses while workers run that need what a step changes. Roles made by `marcod db roles` keep their rights.
    """
    with connected(settings) as database:
        found = migrate.upgrade(database, force=force)
    output.echo(_SENTENCE[found].format(database))


@db.command()
@click.option("--deep", is_flag=True, help="Recount summaries, drops and hits from images, scores and labels")
@click.option(
    "--plate", "plates", multiple=True, metavar="PLATE", help="With --deep: this plate alone; may be repeated"
)
@click.option("--source", help="With --deep: plates of this source alone")
@click.option("--fix", is_flag=True, help="With --deep: keep what was recounted; the audit says what differed")
@options.as_json
@click.pass_context
def check(
    ctx: click.Context, deep: bool, plates: tuple[str, ...], source: str | None, fix: bool, json_output: bool
) -> None:
    """Compare the schema with this marcod; exit code 1 unless it can be worked on.

    With --deep every row that follows from others is recounted, in short portions while the service runs; exit
    code 3 where one differs and was not mended.
    """
    if not deep and (plates or source or fix):
        raise click.UsageError("--plate, --source and --fix go with --deep")
    _check_schema(configured(ctx).settings, json_output=json_output and not deep, quiet=deep)
    if deep:
        _check_deep(ctx, configured(ctx).settings, plates, source, fix=fix, json_output=json_output)


def _check_schema(settings: Settings, *, json_output: bool, quiet: bool) -> None:
    with looked_at(settings) as database:
        state = revisions.state(database)
    if json_output:
        # Programs read "unfinished"; an upgrade leaves nothing unfinished.
        output.print_json({"database": str(database), "schema": state, "unfinished": False})
    elif not quiet or state not in revisions.USABLE:
        output.echo(_SENTENCE[state].format(database), err=quiet)
    if state not in revisions.USABLE:
        raise SchemaError(revisions.ADVICE[state])


@db.command()
@click.option("--lims", default="marcod_lims", show_default=True, help="Role that reads, and fills the inbox")
@click.option("--app", default="marcod_app", show_default=True, help="Role with all that `marcod run` needs")
@options.as_json
@pass_settings
def roles(settings: Settings, lims: str, app: str, json_output: bool) -> None:
    """Make the roles of a LIMS and of the daemon on PostgreSQL, or set their rights again.

    Nobody can log in as such a role: `grant marcod_lims to somebody` gives it to a user. Run it as the user who owns
    marcod's tables and may create roles. Rights that PostgreSQL gives to everybody in a database are revoked: creating
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
        audit_log.write(connection, options.actor(), "roles", lims, detail, datetime.now(UTC))
        return made

    with connected(settings) as database:
        migrate.require_current(database)
        made = database.write(work)
    output.print_json(made) if json_output else _tell(made)


def _tell(made: database_roles.Made) -> None:
    for role in made.created:
        output.echo(f"made role {role}")
    output.echo(f"{made.lims} reads {', '.join(made.views)}")
    readable = text.count(len(made.tables) - len(made.hidden), "table")
    output.echo(f"{made.lims} reads {readable} too, for the commands that only read; not {' and '.join(made.hidden)}")
    output.echo(f"{made.lims} inserts into {database_roles.INBOX}; it changes nothing else")
    output.echo(f"{made.app} reads and changes the rows of {text.count(len(made.tables), 'table')}; no schema")
    for right in made.taken:
        output.echo(f"taken from everybody: {right}")
    for right in made.left:
        output.echo(f"everybody still has: {right}; run this as a superuser to revoke it")


@db.command()
@click.argument("file", type=options.OutFile())
@click.option("--force", is_flag=True, help="Overwrite FILE, once the new copy is whole")
@options.as_json
@pass_settings
def backup(settings: Settings, file: Path, force: bool, json_output: bool) -> None:
    """Copy an SQLite database into FILE while marcod works on; the copy is checked and readable to its owner alone.

    PostgreSQL copies itself; the refusal says how. Model bundles and the training folder are files of their own.
    """
    files.refuse_inside(file, (source.root for source in settings.sources.values()))
    database = Database(settings.store.url.get_secret_value(), read_only=True)
    with bars.stages() as report:
        made = backups.copy(database, file, overwrite=force, report=partial(report, "pages copied"))
    output.print_json(made) if json_output else output.echo(f"{made.path}: {text.count(made.bytes, 'byte')}, checked")


@db.command()
@click.argument("file", type=options.FILE)
@click.option("--force", is_flag=True, help="The present database is damaged, and no worker runs")
@click.option("--yes", is_flag=True, help="Do not ask")
@options.as_json
@pass_settings
def restore(settings: Settings, file: Path, force: bool, yes: bool, json_output: bool) -> None:
    """Put FILE, a copy made by `marcod db backup`, in the place of the SQLite database, which is kept next to it.

    Stop marcod first. Files that came after the copy was made are found and scored again by the full scan with which
    `marcod run` begins; labels, answers and promotions since then are in the kept database alone.
    """
    options.check_there(file, "a copy that `marcod db backup` made")
    database = Database(settings.store.url.get_secret_value())
    path = backups.path_of(database)
    if not yes:
        click.confirm(f"Replace {path} by {file}?", abort=True, err=True)
    with bars.stages() as report:
        done = backups.restore(
            database, file, now=datetime.now(UTC), force=force, report=partial(report, "pages copied")
        )
    if json_output:
        output.print_json(done)
        return
    output.echo(f"{done.path} is what {file} held")
    if done.kept is not None:
        output.echo(f"the database of before is {done.kept}; labels given since the copy are only there")
    if done.schema not in revisions.USABLE:
        output.echo("its schema is older than this marcod: run `marcod db upgrade`")
    output.echo("start marcod: its first full scan finds what came since the copy and scores it again")


@db.command()
@click.option("--dry-run", is_flag=True, help="Only count")
@options.as_json
@pass_settings
def thin(settings: Settings, dry_run: bool, json_output: bool) -> None:
    """Remove scores that the champion's own replaced, and old audit rows, as `retention` in the configuration says.

    The daemon does the same in small portions. No view but the score history changes; images are never touched.
    """
    chosen = settings.retention
    if chosen.scores_days is None and chosen.audit_days is None:
        raise ConfigError("nothing is to be thinned: set retention.scores_days or retention.audit_days, in days")
    now = datetime.now(UTC)
    with connected(settings) as database, bars.stages() as report:
        migrate.require_current(database)
        done = retention.run(database, chosen, now, dry=dry_run, report=partial(report, "scores looked at"))
        counts = {"scores": done.scores, "contents": done.contents, "audit": done.audit}
        if done.rows and not dry_run:
            detail: dict[str, object] = dict(counts)
            database.write(audit_log.write, options.actor(), "thin", "retention", detail, now)
    if json_output:
        output.print_json({"dry_run": dry_run, **counts})
        return
    output.echo(
        f"{'would remove' if dry_run else 'removed'} {text.count(done.scores, 'score')} of former model versions,"
        f" {done.contents} of former contents of files, {text.count(done.audit, 'audit row')}"
    )


def _check_deep(
    ctx: click.Context, settings: Settings, plates: Sequence[str], source: str | None, *, fix: bool, json_output: bool
) -> None:
    """Recount plates and print what differs. Ends with exit code 3 where something does and is not mended."""
    with open_app(settings, brief=True) as ready:
        chosen = _chosen(ready.db, plates, source)
        found = _recount(ready.db, chosen, fix=fix)
    if json_output:
        output.print_json({"plates": len(chosen), "differences": found, "fixed": fix and bool(found)})
    else:
        _print_differences(len(chosen), found, fix=fix)
    if found and not fix:
        ctx.exit(output.ATTENTION)


def _chosen(db: Database, plates: Sequence[str], source: str | None) -> list[int]:
    if not plates:
        return db.read(recounting.plate_ids, source_name=source)
    lists = [db.read(reports.find_plates, name, source) for name in plates]
    return sorted({plate.id for found in lists for plate in found})


def _recount(db: Database, plate_ids: Sequence[int], *, fix: bool) -> list[recounting.RecountDifference]:
    found = []
    with bars.progress("plates recounted", len(plate_ids)) as report:
        for number, plate_id in enumerate(plate_ids, 1):
            for portion in db.read(recounting.portions, plate_id=plate_id):
                found += db.write(recounting.recount, portion=portion, now=db.now(), fix=fix, actor=options.actor())
            report(number)
    return found


def _print_differences(plates: int, found: Sequence[recounting.RecountDifference], *, fix: bool) -> None:
    looked = f"{text.count(plates, 'plate')} recounted"
    if not found:
        output.echo(f"{looked}; every row is as it should be")
        return
    output.echo_first(map(str, found), DIFFERENCES, "; --json lists all")
    rows = text.count(len(found), "difference")
    output.echo(f"{looked}; {rows}, mended" if fix else f"{looked}; {rows}; --fix mends them")

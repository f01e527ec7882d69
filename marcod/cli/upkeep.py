"""`marcod db backup`, `restore` and `thin`: what keeps a database that runs for years."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click

from marcod import app, text
from marcod.cli import output, people
from marcod.cli.configured import pass_settings
from marcod.database import migrate
from marcod.database.engine import Database
from marcod.errors import ConfigError
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import audit_log
from marcod.upkeep import backup as backups
from marcod.upkeep import recounting, retention

DIFFERENCES: Final = 50
"""Differences that are told one by one."""

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("file", type=output.OutFile())
@click.option("--force", is_flag=True, help="Overwrite FILE, once the new copy is whole")
@output.as_json
@pass_settings
def backup(settings: Settings, file: Path, force: bool, json_output: bool) -> None:
    """Copy an SQLite database into FILE while marcod works on; the copy is checked and readable to its owner alone.

    PostgreSQL copies itself; the refusal says how. Model bundles and the training folder are files of their own.
    """
    output.check_place(file, (source.root for source in settings.sources.values()))
    database = Database(settings.store.url.get_secret_value(), read_only=True)
    with output.stages() as report:
        made = backups.copy(database, file, overwrite=force, report=partial(report, "pages copied"))
    output.print_json(made) if json_output else output.echo(f"{made.path}: {text.count(made.bytes, 'byte')}, checked")


@click.command()
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="The present database is damaged, and no worker runs")
@click.option("--yes", is_flag=True, help="Do not ask")
@output.as_json
@pass_settings
def restore(settings: Settings, file: Path, force: bool, yes: bool, json_output: bool) -> None:
    """Put FILE, a copy made by `marcod db backup`, in the place of the SQLite database, which is kept beside it.

    Stop marcod first. Files that came after the copy was made are found and scored again by the full scan with which
    `marcod run` begins; labels, answers and promotions since then are in the kept database alone.
    """
    output.check_there(file, "a copy that `marcod db backup` made")
    database = Database(settings.store.url.get_secret_value())
    path = backups.path_of(database)
    if not yes:
        click.confirm(f"Replace {path} by {file}?", abort=True, err=True)
    with output.stages() as report:
        done = backups.restore(
            database, file, now=datetime.now(UTC), force=force, report=partial(report, "pages copied")
        )
    if json_output:
        output.print_json(done)
        return
    output.echo(f"{done.path} is what {file} held")
    if done.kept is not None:
        output.echo(f"the database of before is {done.kept}; labels given since the copy are only there")
    if done.schema not in migrate.USABLE:
        output.echo("its schema is older than this marcod: run `marcod db upgrade`")
    output.echo("start marcod: its first full scan finds what came since the copy and scores it again")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count")
@output.as_json
@pass_settings
def thin(settings: Settings, dry_run: bool, json_output: bool) -> None:
    """Remove scores that the champion's own replaced, and old audit rows, as `retention` in the configuration says.

    The daemon does the same by and by. No view but the score history changes; images are never touched.
    """
    chosen = settings.retention
    if chosen.scores_days is None and chosen.audit_days is None:
        raise ConfigError("nothing is to be thinned: set retention.scores_days or retention.audit_days, in days")
    now = datetime.now(UTC)
    with app.connected(settings) as database, output.stages() as report:
        migrate.require_current(database)
        done = retention.run(database, chosen, now, dry=dry_run, report=partial(report, "scores looked at"))
        counts = {"scores": done.scores, "contents": done.contents, "audit": done.audit}
        if done.rows and not dry_run:
            detail: dict[str, object] = dict(counts)
            database.write(audit_log.write, people.actor(), "thin", "retention", detail, now)
    if json_output:
        output.print_json({"dry_run": dry_run, **counts})
        return
    output.echo(
        f"{'would remove' if dry_run else 'removed'} {text.count(done.scores, 'score')} of former model versions,"
        f" {done.contents} of former contents of files, {text.count(done.audit, 'audit row')}"
    )


def check_deep(
    ctx: click.Context, settings: Settings, plates: Sequence[str], source: str | None, *, fix: bool, json_output: bool
) -> None:
    """Recount plates and tell what differs. Ends with exit code 3 where something does and is not mended."""
    with app.open_app(settings, brief=True) as ready:
        chosen = _chosen(ready.db, plates, source)
        found = _recount(ready.db, chosen, fix=fix)
    if json_output:
        output.print_json({"plates": len(chosen), "differences": found, "fixed": fix and bool(found)})
    else:
        _tell_differences(len(chosen), found, fix=fix)
    if found and not fix:
        ctx.exit(output.ATTENTION)


def _chosen(db: Database, plates: Sequence[str], source: str | None) -> list[int]:
    if not plates:
        return db.read(partial(recounting.plate_ids, source_name=source))
    lists = [db.read(partial(reports.find_plates, text=name, source_name=source)) for name in plates]
    return sorted({plate.id for found in lists for plate in found})


def _recount(db: Database, plate_ids: Sequence[int], *, fix: bool) -> list[recounting.Difference]:
    found = []
    with output.progress("plates recounted", len(plate_ids)) as report:
        for number, plate_id in enumerate(plate_ids, 1):
            for portion in db.read(partial(recounting.portions, plate_id=plate_id)):
                work = partial(recounting.recount, portion=portion, now=db.now(), fix=fix, actor=people.actor())
                found += db.write(work)
            report(number)
    return found


def _tell_differences(plates: int, found: Sequence[recounting.Difference], *, fix: bool) -> None:
    looked = f"{text.count(plates, 'plate')} recounted"
    if not found:
        output.echo(f"{looked}; every row is as it should be")
        return
    for difference in found[:DIFFERENCES]:
        output.echo(output.printable(str(difference)))
    if len(found) > DIFFERENCES:
        output.echo(f"and {len(found) - DIFFERENCES} more; --json lists all")
    rows = text.count(len(found), "difference")
    output.echo(f"{looked}; {rows}, mended" if fix else f"{looked}; {rows}; --fix mends them")

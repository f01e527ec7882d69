"""`marcod plate import`: what a lab's own table says of its plates."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import click

from marcod import app, text
from marcod.catalog import rereading
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.errors import MarcodError, NotFoundError
from marcod.plates import metadata, metadata_csv, reports
from marcod.plates.metadata import MetadataError, MetadataPlan, PlateRecord
from marcod.plates.metadata_csv import Table, WrongLinesError
from marcod.settings import Settings
from marcod.watch.ingest import open_sources

SHOWN = 20
"""Wrong lines and warnings that are printed."""


@click.command("import")
@click.argument("table", metavar="CSV", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--source", help="The source of lines that name none [default: that of the plate]")
@options.columns_as(metadata_csv.FIELDS, "What a column says; repeatable")
@click.option("--dry-run", is_flag=True, help="Check everything and change nothing")
@options.as_json
@pass_settings
def import_(
    settings: Settings,
    table: Path,
    source: str | None,
    columns: Mapping[str, str],
    dry_run: bool,
    json_output: bool,
) -> None:
    """Take barcode, format, project and screen of plates from a CSV table, before or after their images arrive.

    Columns are found by name: plate (its key within its source), source, barcode, project, screen, format, such as 96x2
    or 8x12x2, or rows, columns and drops, and reservoir, the subwell without a drop or none. An empty cell leaves what
    is known. Where wells or reservoirs are others now, the images of the plate are read again.
    """
    options.check_there(table, "a table of plates")
    data = _read(table)
    with app.open_app(settings) as ready:
        seen = ready.db.read(metadata.sources)
        only = sorted({*seen, *settings.sources})
        try:
            place = source or (only[0] if len(only) == 1 else None)
            read, plan = _planned(ready, settings, partial(metadata_csv.read, data, columns, place))
            if not dry_run:
                _register(ready, settings, plan.missing)
                now = datetime.now(UTC)
                plan = ready.db.write(metadata.import_metadata, read.records, options.actor(), now)
        except MetadataError as error:
            raise _refused(table, error, json_output=json_output) from error
        if not dry_run:
            _catch_up(ready)
    _print(plan, read.unused, dry_run=dry_run, json_output=json_output)


def _planned(
    ready: app.App, settings: Settings, read: Callable[[metadata_csv.Known], Table]
) -> tuple[Table, MetadataPlan]:
    """Read a table and plan what it changes. Raises MetadataError for all that is wrong."""

    @cache
    def known(name: str) -> tuple[tuple[str, str], ...]:
        try:
            found = ready.db.read(reports.find_plates, name)
        except NotFoundError:
            return ()
        return tuple((plate.source, plate.key) for plate in found)

    def plan(lines: Sequence[PlateRecord]) -> MetadataPlan:
        return ready.db.read(metadata.plan, lines, settings.sources)

    try:
        table = read(known)
    except WrongLinesError as wrong:
        try:
            plan(wrong.records)
        except MetadataError as more:
            raise MetadataError([*wrong.problems, *more.problems]) from more
        raise
    return table, plan(table.records)


def _read(table: Path) -> bytes:
    try:
        with click.open_file(str(table), "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise MarcodError(f"{table} cannot be read: {error.strerror}") from error


def _register(ready: app.App, settings: Settings, missing: tuple[str, ...]) -> None:
    """Make the rows of sources that are configured and that no scan has seen yet, as the daemon would."""
    if missing:
        chosen = settings.model_copy(update={"sources": {name: settings.sources[name] for name in missing}})
        open_sources(ready.db, chosen, datetime.now(UTC), settings.sources)


def _catch_up(ready: app.App) -> None:
    _repeat("images read again", lambda: ready.db.write(rereading.catch_up, ready.db.now()))
    _repeat("inspections counted again", lambda: ready.db.write(metadata.catch_up, datetime.now(UTC)))


def _repeat(what: str, part: Callable[[], int]) -> None:
    """Do parts of a work until one does nothing, with progress where there is any."""
    if not (total := part()):
        return
    with bars.progress(what, None) as done:
        done(total)
        while counted := part():
            total += counted
            done(total)


def _refused(table: Path, error: MetadataError, *, json_output: bool) -> MarcodError:
    if json_output:
        output.print_json({"problems": error.problems})
    output.echo_first(error.problems, SHOWN, err=True)
    return MarcodError(f"{table}: nothing was imported, correct the lines named above")


def _print(plan: MetadataPlan, unused: tuple[str, ...], *, dry_run: bool, json_output: bool) -> None:
    if json_output:
        output.print_json({"dry_run": dry_run, "unused_columns": unused, **_record(plan)})
        return
    new = sum(change.new for change in plan.changes)
    kept = "; nothing is written" if dry_run else ""
    output.echo(f"{text.count(new, 'new plate')}, {len(plan.changes) - new} changed, {plan.unchanged} unchanged{kept}")
    if unused:
        output.echo(
            text.printable(f"columns without a meaning here: {', '.join(unused)}; --map COLUMN=FIELD gives one")
        )
    output.echo_first((f"warning: {warning}" for warning in plan.warnings), SHOWN, err=True)


def _record(plan: MetadataPlan) -> dict[str, object]:
    return {
        "new": sum(change.new for change in plan.changes),
        "changed": sum(not change.new for change in plan.changes),
        "unchanged": plan.unchanged,
        "warnings": plan.warnings,
        "changes": plan.changes,
    }

"""`marcod plate`: plates, their maps, and exports."""

from pathlib import Path

import click

from marcod import daemon, plates, registry
from marcod.cli import output
from marcod.errors import MarcodError
from marcod.settings import Settings
from marcod.store import reports
from marcod.store.engine import Database


@click.group()
def plate() -> None:
    """List, show and export plates."""


@plate.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@output.as_json
@click.pass_obj
def list_(settings: Settings, limit: int, json_output: bool) -> None:
    """List inspections, the latest first."""
    with daemon.opened(settings) as ready:
        rows = ready.db.read(lambda connection: reports.summaries(connection, limit=limit))
    if json_output:
        output.print_json(rows)
        return
    output.console().print(output.table(f"{len(rows)} inspections", COLUMNS, [_row(r) for r in rows]))
    if any(r.model_synthetic for r in rows):
        output.console().print(output.SYNTHETIC_NOTICE, style="yellow")


COLUMNS = (
    "plate",
    "inspection",
    "source",
    "hits",
    "crystals",
    "precipitate",
    "clear",
    "other",
    "seen",
    "scored",
    "failed",
    "state",
    "model",
)


def _row(r: reports.Summary) -> tuple[object, ...]:
    return (
        r.barcode or r.plate_key,
        r.inspection_key,
        r.source,
        r.hits,
        r.n_crystals,
        r.n_precipitate,
        r.n_clear,
        r.n_other,
        r.seen,
        r.scored,
        r.failed,
        output.state_of(r),
        f"{r.model}:{r.model_version}",
    )


def choosing(command: output.Command) -> output.Command:
    """The options by which one inspection of one plate is chosen."""
    for option in (
        click.option("--model", "model_text", metavar="NAME:VERSION", help="As this model version saw it"),
        click.option("--inspection", metavar="KEY_OR_NUMBER", help="Which inspection [default: the latest]"),
        click.option("--source", help="The plate of this source, when several have one of that name"),
        click.argument("plate_text", metavar="KEY_OR_BARCODE"),
    ):
        command = option(command)
    return command


def load(
    db: Database, plate_text: str, source: str | None, inspection: str | None, model_text: str | None
) -> plates.PlateMap:
    """The plate map that :func:`choosing` asks for. Raises NotFoundError or ConfigError."""
    version = None
    if model_text is not None:
        version = registry.Registry(db).find(model_text)
    return plates.load(db, plate_text, source=source, inspection=inspection, model=version)


@plate.command()
@choosing
@output.as_json
@click.pass_obj
def show(
    settings: Settings,
    plate_text: str,
    source: str | None,
    inspection: str | None,
    model_text: str | None,
    json_output: bool,
) -> None:
    """Show a plate as a coloured map with its summary."""
    with daemon.opened(settings) as ready:
        shown = load(ready.db, plate_text, source, inspection, model_text)
    if json_output:
        output.print_json({"summary": shown.summary, "drops": list(shown.records())})
        return
    console = output.console()
    output.print_plate(console, shown)
    if shown.version.synthetic:
        console.print(output.SYNTHETIC_NOTICE, style="yellow")


@plate.command()
@choosing
@click.option("--format", "format_", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@click.option("--output", "-o", "target", type=click.Path(path_type=Path, dir_okay=False), help="File [default: print]")
@click.pass_obj
def export(
    settings: Settings,
    plate_text: str,
    source: str | None,
    inspection: str | None,
    model_text: str | None,
    format_: str,
    target: Path | None,
) -> None:
    """Write one row a drop, as CSV or JSON."""
    with daemon.opened(settings) as ready:
        shown = load(ready.db, plate_text, source, inspection, model_text)
    text = shown.csv() if format_ == "csv" else output.json_text(list(shown.records())) + "\n"
    if target is None:
        click.echo(text, nl=False)
        return
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MarcodError(f"{target} cannot be written: {error.strerror}") from error
    click.echo(f"{len(shown.drops)} drops written to {target}")

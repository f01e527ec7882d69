"""`marcod plate`: plates, their maps, and exports."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from marcod import app, files, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.lazy import LazyGroup
from marcod.cli.common.options import Choice
from marcod.database.engine import Database
from marcod.domain import hit_rule
from marcod.plates import reports
from marcod.settings import Settings

if TYPE_CHECKING:
    from marcod.plates.history import PlateHistory
    from marcod.plates.plate_map import PlateMap


@click.group(
    cls=LazyGroup,
    lazy={
        "plate_heatmap:heatmap": (
            "Draw where the network looks in the drop of WELL, as a heat map over the grey image (SmoothGrad)."
        ),
        "plate_import:import": (
            "Take barcode, format, project and screen of plates from a CSV table, before or after their images arrive."
        ),
    },
)
def plate() -> None:
    """List, show and export plates."""


@plate.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def list_(settings: Settings, limit: int, json_output: bool) -> None:
    """List inspections, the latest first."""
    with app.reading(settings) as ready:
        rows = ready.db.read(reports.summaries, limit=limit)
        total = len(rows) if len(rows) < limit else ready.db.read(reports.count_summaries)
    if json_output:
        output.print_json(rows)
        return
    _print(rows, total)
    output.warn_of_synthetic(scored=any(r.model_synthetic and r.scored for r in rows))


def _print(rows: list[reports.Summary], total: int) -> None:
    rules = {hit_rule(r.crystal_threshold) for r in rows}
    rule = f"; hits: {rules.pop()}" if len(rules) == 1 else ""
    title = listings.counted(len(rows), total, "inspection", f"{rule}; classes: the likeliest")
    spare = (("model",), CLASSES, ("source",), ("failed",), (THRESHOLD,))
    listings.show(title, COLUMNS, map(_row, rows), spare=spare, without=(THRESHOLD,) if rule else ())


THRESHOLD = "crystals\n>="
CLASSES = ("precipitate", "clear", "other", "crystals")
COLUMNS = ("plate", "inspection", "hits", THRESHOLD, "drops", *CLASSES, "failed", "state", "source", "model")


def _row(r: reports.Summary) -> tuple[object, ...]:
    plate, model = r.barcode or r.plate_key, f"{r.model}:{r.model_version}"
    classes = (r.n_precipitate, r.n_clear, r.n_other, r.n_crystals)
    hits = (r.hits, r.crystal_threshold, r.seen)
    return (plate, r.inspection_key, *hits, *classes, r.failed, output.completeness(r), r.source, model)


choosing: Final = options.together(
    click.argument("plate_text", metavar="KEY_OR_BARCODE"),
    click.option("--source", help="The plate of this source, when several have one of that name"),
    click.option("--inspection", metavar="KEY_OR_NUMBER", help="Which inspection [default: the latest]"),
    click.option("--model", "model_text", metavar="NAME:VERSION", help="As this model version saw it"),
)
"""Arguments and options that choose one inspection of one plate."""


def load(db: Database, *, plate_text: str, model_text: str | None, **chosen: str | None) -> "PlateMap":
    """Load the plate map chosen by the options of :data:`choosing`. Raises NotFoundError or ConfigError."""
    from marcod.model.registry import Registry
    from marcod.plates import plate_map

    version = None if model_text is None else Registry(db).find(model_text)
    return plate_map.load(db, plate_text, model=version, **chosen)


@plate.command()
@choosing
@click.option("--history", "with_history", is_flag=True, help="Its drops through all inspections: those ever a hit")
@click.option("--all-drops", is_flag=True, help="With --history: every drop")
@options.as_json
@pass_settings
def show(settings: Settings, /, with_history: bool, all_drops: bool, json_output: bool, **chosen: Any) -> None:
    """Show a plate as a coloured map with its drops counted, or its drops through its inspections.

    A hit (X) is a drop to look at: its crystal probability reaches the model's threshold, or a person labelled it
    Crystals. The other drops are shown by class: a person's label, else the likeliest of the four.
    """
    from marcod.cli.common import plate_maps
    from marcod.plates import plate_map

    if all_drops and not with_history:
        raise click.UsageError("--all-drops goes with --history")
    if with_history and chosen["inspection"] is not None:
        raise click.UsageError("--history shows all inspections; leave --inspection out")
    with app.reading(settings) as ready:
        shown = load(ready.db, **chosen)
        past = plate_map.history_of(ready.db, shown) if with_history else None
    if json_output:
        output.print_json(_record(shown) if past is None else _past(shown, past))
        return
    console = output.console()
    if past is None:
        plate_maps.print_plate(console, shown)
    else:
        plate_maps.print_history(console, shown, past, all_drops=all_drops)
    output.warn_of_synthetic(scored=shown.synthetic)


def _record(shown: "PlateMap") -> dict[str, Any]:
    return {"summary": shown.summary, "papers": shown.metadata, "drops": list(shown.records())}


def _past(shown: "PlateMap", past: "PlateHistory") -> dict[str, Any]:
    """Return a plate's history for JSON."""
    from marcod.plates import plate_map

    summary = shown.summary
    return {
        "source": summary.source,
        "plate_key": summary.plate_key,
        "barcode": summary.barcode,
        "project": shown.metadata.project,
        "screen": shown.metadata.screen,
        "model": str(past.version),
        "model_synthetic": past.version.synthetic,
        "inspections": past.inspections,
        "drops": list(plate_map.history_records(past)),
    }


@plate.command()
@choosing
@click.option("--format", "format_", type=Choice(["csv", "json", "html"]), default="csv", show_default=True)
@click.option(
    "--out", "--output", "-o", "target", type=options.OutFile(dash=True),
    help="File, or - to print [default: print; html makes PLATE-INSPECTION.html here]",
)  # fmt: skip
@pass_settings
def export(settings: Settings, /, format_: str, target: Path | None, **chosen: Any) -> None:
    """Write one row a drop as CSV or JSON, or a sheet with images to look at and to print as HTML."""
    if target is None and format_ == "html":
        options.check_writable(Path("sheet.html"))
    with app.reading(settings) as ready:
        shown = load(ready.db, **chosen)
        roots, closed = options.source_roots(settings, ready), options.protected_folders(settings, ready)
    content, name = _exported(shown, format_, roots)
    if target is None and name is not None:
        target = Path(name)
    if target is None or str(target) == "-":
        click.echo(content, nl=False)
    else:
        files.save(target, content, closed)
        output.echo(f"{text.count(len(shown.drops), 'drop')} written to {text.printable(str(target))}")
    output.warn_of_synthetic(scored=shown.synthetic, to_errors=True)


def _exported(shown: "PlateMap", format_: str, roots: dict[str, Path]) -> tuple[str, str | None]:
    """Return the text, and the name of its file where it is not for a terminal."""
    if format_ == "csv":
        return shown.csv(), None
    if format_ == "json":
        return output.json_text(list(shown.records())) + "\n", None
    from marcod.plates import html_report  # loads the templates' engine, which no other answer needs

    with bars.progress("images", len(shown.drops)) as done:
        content = html_report.plate_sheet(shown, html_report.ImageRoots(roots), datetime.now(UTC), done)
    return content, html_report.file_name(shown)

"""`marcod hits`: the crystals over all plates."""

import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from marcod import app, files, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.domain import hit_rule
from marcod.errors import NotFoundError
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import known_names

_COLUMNS = tuple(field.name for field in dataclasses.fields(reports.Hit))
LISTED, IMAGED, MOST = 25, 500, 100_000
"""Hits that are printed, and written with and without images, without ``--limit``."""

MEANING = """
p(crystals): the highest of all inspections; class: the likeliest now, or a person's label"""


@click.command()
@options.since("Only hits found since, such as 24h or 2026-05-01")
@click.option("--new", "new_only", is_flag=True, help="Without those that a former model had found already")
@click.option(
    "--harvested/--not-harvested", default=None, help="Only those of which people say that they were harvested, or not"
)
@click.option("--project", help="Only plates of this project")
@click.option("--source", help="Only plates of this source")
@click.option(
    "--limit", type=click.IntRange(1, MOST),
    help=f"At most this many  [default: {LISTED}; to a file {MOST}, with images {IMAGED}]",
)  # fmt: skip
@click.option(
    "--export", "target", type=options.OutFile(".csv", ".json", ".html"), metavar="FILE",
    help="Write them to FILE.csv, FILE.json or, with images, FILE.html",
)  # fmt: skip
@options.as_json
@pass_settings
def hits(
    settings: Settings,
    since: datetime | None,
    new_only: bool,
    harvested: bool | None,
    project: str | None,
    source: str | None,
    limit: int | None,
    target: Path | None,
    json_output: bool,
) -> None:
    """List the hits over all plates, best first.

    A hit is a drop to look at: the champion's crystal probability reaches its threshold, or a person labelled the drop
    Crystals; a drop that a person labelled otherwise is not one. The class of a drop, a person's label or else the
    likeliest of the four, may be another than Crystals. The cause of a hit is `new` (a new image), `model` (another
    model on an image that the former one had seen) or `confirmed` (a former model had found it too).
    """
    most = limit or _most(target)
    with app.reading(settings) as ready:
        chosen = {"new": new_only, "project": project, "source_name": source, "harvested": harvested}
        found, total = ready.db.read(partial(_read, since, most, **chosen))
        roots, closed = options.source_roots(settings, ready), options.protected_folders(settings, ready)
        listed = found if target is None and not json_output else []
        once = ready.db.read(reports.inspected_once, listed)
        if not found and not json_output and target is None:
            ready.db.read(_require_known, source, project)
    if target is not None:
        files.save(target, _text(target, found, roots, _chosen(since, new_only, project, source, harvested)), closed)
        if total > len(found):
            output.echo(f"{len(found):,} of {text.count(total, 'hit')} written; --limit writes more", err=True)
    if json_output:
        output.print_json(found)
        return
    if target is not None:
        output.echo(f"{text.count(len(found), 'hit')} written to {text.printable(str(target))}")
    else:
        output.console().print(hits_table(found, total, once))
    output.warn_of_synthetic(scored=any(hit.model_synthetic for hit in found))


def _read(since: datetime | None, most: int, connection: Any, **chosen: Any) -> tuple[list[reports.Hit], int]:
    """Read the best hits, and how many there are."""
    found = reports.hits(connection, since, most + 1, **chosen)
    total = reports.count_hits(connection, since, **chosen) if len(found) > most else len(found)
    return found[:most], total


def _require_known(connection: Any, source: str | None, project: str | None) -> None:
    """Raise NotFoundError for a source or a project that no plate has."""
    if source is not None:
        known_names.find_source(connection, source)
    if project is not None and (offered := known_names.projects(connection, project)) is not None:
        raise NotFoundError(f"no plate belongs to a project {project!r}; {offered}")


def hits_table(found: list[reports.Hit], total: int, once: Collection[tuple[str, str]]) -> listings.Listing:
    """Hits over all plates, of ``total`` ones; ``once`` are source and key of plates with one inspection."""
    rules = {hit_rule(h.threshold) for h in found}
    rule = f" ({rules.pop()})" if len(rules) == 1 else ""
    columns = ("p(crystals)", "threshold", "plate", "drop", "first in", "cause", "trend", "class", "project", "source")
    rows = [
        (
            "" if h.p_crystals is None else f"{h.p_crystals:.3f}",
            f"{h.threshold:.4g}",
            h.barcode or h.plate_key,
            f"{h.well}.{h.drop_number}",
            h.first_hit_inspection_key,
            h.cause,
            "-" if (h.source, h.plate_key) in once else h.trend,
            h.label if h.label_person is None else f"{h.label} ({h.label_person})",
            h.project,
            h.source,
        )
        for h in found
    ]
    title = listings.counted(len(found), total, "hit", f"{rule}, best first") + (MEANING if found else "")
    spare = (("project",), ("cause",), ("source",), ("trend",))
    return listings.table(title, columns, rows, spare=spare, without=("threshold",) if rule else ())


def _most(target: Path | None) -> int:
    """Return the number of hits without ``--limit``."""
    if target is None:
        return LISTED
    return IMAGED if target.suffix.lower() == ".html" else MOST


def _text(target: Path, found: list[reports.Hit], roots: dict[str, Path], chosen: str) -> str:
    kind = target.suffix.lower()
    if kind == ".csv":
        from marcod.plates.plate_map import csv_text

        return csv_text(_COLUMNS, (dataclasses.asdict(hit) for hit in found))
    if kind == ".json":
        return output.json_text(found) + "\n"
    from marcod.plates import html_report  # loads the templates' engine, which no other answer needs

    with bars.progress("images", len(found)) as done:
        return html_report.hits_sheet(found, html_report.ImageRoots(roots), chosen, datetime.now(UTC), done)


def _chosen(
    since: datetime | None, new_only: bool, project: str | None, source: str | None, harvested: bool | None
) -> str:
    """Describe the chosen hits; empty for all."""
    parts = [
        "without those that a former model had found" if new_only else "",
        "" if project is None else f"of project {project}",
        "" if source is None else f"of source {source}",
        {True: "harvested", False: "not harvested", None: ""}[harvested],
        "" if since is None else f"found since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
    ]
    return ", ".join(part for part in parts if part)

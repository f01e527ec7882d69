"""`marcod label`: people's labels of drops, one by one, from files, and from the LIMS."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click

from marcod import app, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.lazy import LazyGroup
from marcod.cli.common.options import Choice
from marcod.errors import NotFoundError
from marcod.labels import files, vocabularies
from marcod.labels import inbox as store_inbox
from marcod.labels.recorder import DropReference
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import votes

SHOWN_PROBLEMS = 20


@click.group(
    cls=LazyGroup,
    lazy={
        "label_suspects:suspects": (
            "List labels that look wrong, the most doubtful first, and how often each person's labels are doubted."
        ),
    },
)
def label() -> None:
    """Label drops, import labels, and list them."""


@label.command()
@options.naming_a_drop
@click.argument("label_text", metavar="LABEL")
@click.option("--person", help="Who says so [default: you]")
@click.option("--vocabulary", help="Vocabulary of LABEL [default: labels.vocabulary]")
@pass_settings
def add(settings: Settings, /, label_text: str, person: str | None, vocabulary: str | None, **named: Any) -> None:
    """Label one drop: LABEL is Clear, Crystals, Other or Precipitate, or VOCABULARY:LABEL such as hwi:90."""
    drop, tables = DropReference(**named), files.tables_of(settings)
    who, chosen = person or options.actor(), vocabulary or settings.labels.vocabulary
    with app.open_app(settings, brief=True) as ready:
        given = files.add(ready.db, tables, drop, label_text, who, datetime.now(UTC), vocabulary=chosen)
    output.echo(f"{options.drop_of(named)} is {given.label or 'no longer labelled'}, says {given.person}")


@label.command()
@options.naming_a_drop
@click.option("--person", help="Who says so [default: you]")
@pass_settings
def withdraw(settings: Settings, /, person: str | None, **named: Any) -> None:
    """Take back what a person says of one drop at one inspection; the model's score counts again."""
    who = person or options.actor()
    with app.open_app(settings, brief=True) as ready:
        count = files.withdraw(ready.db, DropReference(**named), who, datetime.now(UTC))
    if count == 0:
        raise NotFoundError(
            f"{who} says nothing of {options.drop_of(named)} there; "
            f"`marcod label list --plate {named['plate']}` shows who says what"
        )
    output.echo(f"{text.count(count, 'label')} of {who} withdrawn")


@label.command("import")
@click.argument("place", metavar="FILE_OR_FOLDER", type=options.PLACE)
@click.option("--format", "format_", type=Choice(files.FORMATS), default="auto", show_default=True)
@click.option("--source", help="Plates and images of this source; its zone is that of times without one")
@click.option("--person", help="Who says so, where the file does not tell [default: you]")
@click.option("--vocabulary", help="Vocabulary of the labels [default: the format's own, for CSV labels.vocabulary]")
@options.columns_as(files.FIELDS, "What a column of a CSV is")
@click.option("--dry-run", is_flag=True, help="Only tell what would be taken")
@options.as_json
@pass_settings
def import_(
    settings: Settings,
    place: Path,
    format_: str,
    source: str | None,
    person: str | None,
    vocabulary: str | None,
    columns: Mapping[str, str],
    dry_run: bool,
    json_output: bool,
) -> None:
    """Take labels in from a CSV, a Rock Maker export, .mso files or a folder of them. Twice is the same as once.

    Exits with 3 when lines were left: what is wrong with them is listed, the rest is taken.
    """
    options.check_there(place, "a file or a folder of label files")
    zone = ZoneInfo(settings.sources[source].timezone) if source in settings.sources else UTC
    choices = files.Choices(format_, person or options.actor(), source, vocabulary, columns, zone)
    with app.open_app(settings) as ready, bars.stages() as report:
        done = files.import_labels(
            ready.db,
            place,
            files.tables_of(settings),
            choices,
            default=settings.labels.vocabulary,
            now=datetime.now(UTC),
            dry_run=dry_run,
            progress=partial(report, "labels"),
        )
    output.print_json(asdict(done)) if json_output else _print_import(done, dry_run)
    output.end(attention=bool(done.unmapped or done.problems))


def _print_import(done: files.ImportedLabels, dry_run: bool) -> None:
    verb = "would be taken" if dry_run else "taken"
    where = f"{text.count(done.rows, 'line')} in {text.count(done.files, 'file')}"
    output.echo(f"{where}: {text.count(done.new, 'label')} {verb}, {done.known} known before")
    for sentence, count in sorted(done.unmapped.items(), key=lambda item: -item[1]):
        output.echo(f"{text.count(count, 'time')} unmapped: {sentence}; then import again")
    lines = (f"{p.file}{f', line {p.line}' if p.line else ''}: {p.reason}" for p in done.problems)
    output.echo_first(lines, SHOWN_PROBLEMS, "; --json lists them all")
    if any(problem.may_come for problem in done.problems):
        output.echo("what has not arrived yet can be imported again later")


@label.command("list")
@click.option("--plate", metavar="KEY_OR_BARCODE", help="Only of this plate")
@click.option("--source", help="The plate of this source")
@options.since("Only labels recorded since, such as 24h")
@click.option("--person", help="Only this person's")
@click.option("--disputed", is_flag=True, help="Only what persons disagree on now")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1_000_000), help="At most this many")
@options.as_json
@pass_settings
def list_(
    settings: Settings,
    plate: str | None,
    source: str | None,
    since: datetime | None,
    person: str | None,
    disputed: bool,
    limit: int,
    json_output: bool,
) -> None:
    """List what was said, the latest recorded first; a star marks what counts now."""
    with app.reading(settings) as ready:
        plates = None if plate is None else [each.id for each in ready.db.read(reports.find_plates, plate, source)]
        chosen: dict[str, Any] = {"plate_ids": plates, "since": since, "person": person, "disputed": disputed}
        rows = ready.db.read(votes.listed, **chosen, limit=limit)
        total, counting = ready.db.read(votes.count_listed, **chosen)
    if json_output:
        output.print_json(rows)
        return
    columns = ("", "plate", "well", "drop", "inspection", "label", "as written", "person", "when (UTC)", "from")
    spare = (("from",), ("as written",), ("when (UTC)",))
    title = text.count(counting, "label")
    if not len(rows) == total == counting:
        # What counts no more is listed too: former labels of the same person, and withdrawals.
        title += " that count" if counting != 1 else " that counts"
        title += f"; {listings.counted(len(rows), total, 'entry', ', the latest first', plural='entries')}"
    listings.show(title, columns, [_cells(row) for row in rows], spare=spare)


def _cells(row: votes.LabelEntry) -> tuple[object, ...]:
    return (
        "!" if row.disputed else "*" if row.counts else "",
        row.barcode or row.plate_key,
        row.well,
        row.drop_number,
        row.inspection_key,
        row.label or "withdrawn",
        f"{row.vocabulary}:{row.original}",
        row.person,
        row.labelled_at.strftime("%Y-%m-%d %H:%M"),
        row.origin,
    )


@label.command()
@click.option("--retry", is_flag=True, help="Try all refused rows again now, such as after a vocabulary changed")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def inbox(settings: Settings, retry: bool, limit: int, json_output: bool) -> None:
    """Show what the LIMS wrote and marcod could not take yet, with the reason."""
    if retry:
        with app.open_app(settings) as ready:
            ready.db.write(store_inbox.retry)
            files.resolve_inbox(ready.db, settings, datetime.now(UTC))
    with app.reading(settings) as ready:
        counts = ready.db.read(store_inbox.counts)
        states = (store_inbox.InboxState.REFUSED, store_inbox.InboxState.WAITING)
        rows = ready.db.read(store_inbox.listed, states, limit)
    if json_output:
        output.print_json({"counts": counts, "rows": rows})
        return
    columns = ("row", "state", "plate", "well", "drop", "inspection", "label", "person", "reason")
    cells = [
        (r.inbox_id, r.state, r.plate, r.well, r.drop_number, r.inspection, _short(r.label), _short(r.person), r.reason)
        for r in rows
    ]
    said = ", ".join(f"{n} {state}" for state, n in counts.items()) or "nothing came by the inbox yet"
    listings.show(said, columns, cells, spare=(("person",), ("state",)), prose=True)


def _short(given: str | None) -> str | None:
    return given if given is None or len(given) <= 40 else f"{given[:37]}..."


@label.command("vocabularies")
@click.argument("name", required=False)
@click.option("--toml", is_flag=True, help="Print the shipped tables as a file, to take from what a lab changes")
@options.as_json
@pass_settings
def vocabularies_(settings: Settings, name: str | None, toml: bool, json_output: bool) -> None:
    """Show the vocabularies, or every label of one, with the lab's own changes."""
    if toml:
        click.echo(vocabularies.DEFAULTS.read_text(encoding="utf-8"), nl=False)
        return
    tables = files.tables_of(settings)
    chosen = list(tables) if name is None else [tables.named(name)]
    if json_output:
        output.print_json({t.name: {e.code: e.label or vocabularies.UNMAPPED for e in t.words} for t in chosen})
        return
    if name is None:
        overview = [(t.name, len(t.entries), sum(e.label is None for e in t.words), t.description) for t in chosen]
        listings.show("", ("vocabulary", "labels", "unmapped", "what"), overview, prose=True)
        return
    entries = [(e.code, e.name, e.label or vocabularies.UNMAPPED) for e in chosen[0].words]
    listings.show(chosen[0].description, ("label", "name", "class"), entries)

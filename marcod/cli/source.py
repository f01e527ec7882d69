"""`marcod source`: what is recorded of each imager's folder, and mending it: another name, merging, forgetting."""

import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

import click

from marcod import app, files, text
from marcod.catalog import merging, source_changes
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.database.engine import Database
from marcod.errors import ConfigError, StoreError
from marcod.settings import Settings
from marcod.store import known_names, sources, votes
from marcod.text import count as counted

DRY = click.option("--dry-run", is_flag=True, help="Only count what would happen")
YES = click.option("--yes", is_flag=True, help="Do not ask")
EVERY_LABEL = 10_000_000


@click.group()
def source() -> None:
    """Show the recorded sources, and rename, merge or forget them; no image file is touched."""


@source.command("list")
@options.as_json
@pass_settings
def list_(settings: Settings, json_output: bool) -> None:
    """List every recorded source: its layout, how much is recorded, where it lies and when it was watched last."""
    with app.reading(settings) as ready:
        found = ready.db.read(sources.listed)
    if json_output:
        output.print_json(found)
        return
    rows = [(one.name, one.layout, one.plates, one.images, _watched(one), one.root) for one in found]
    columns = ("source", "layout", "plates", "images", "watched (UTC)", "root")
    listings.show(counted(len(found), "source"), columns, rows)


@source.command()
@click.argument("name")
@options.as_json
@pass_settings
def show(settings: Settings, name: str, json_output: bool) -> None:
    """Show one source: what is recorded, and where each host finds its files."""
    with app.reading(settings) as ready:
        source_id = ready.db.read(known_names.find_source, name)
        (found,) = [one for one in ready.db.read(sources.listed) if one.id == source_id]
        held = ready.db.read(source_changes.contents, source_id)
    if json_output:
        output.print_json({"source": found, "contents": held})
        return
    configured = "configured here" if name in settings.sources else "not configured here"
    output.echo(f"{text.printable(name)}: layout {found.layout}, {configured}")
    output.echo(_amount(held))
    output.echo(f"watched last: {_watched(found) or 'never'}")
    rows = [(root.host, root.root, f"{root.seen_at:%Y-%m-%d %H:%M}") for root in found.roots]
    listings.show("Roots", ("host", "root", "opened (UTC)"), rows)


def _watched(one: sources.Listed) -> str:
    return "" if one.watched_at is None else f"{one.watched_at:%Y-%m-%d %H:%M} {one.watched_by}"


def _amount(held: source_changes.Contents) -> str:
    return ", ".join(counted(getattr(held, f"{noun}s"), noun) for noun in ("plate", "image", "score", "label"))


@source.command()
@click.argument("old")
@click.argument("new")
@DRY
@YES
@options.as_json
@pass_settings
def rename(settings: Settings, old: str, new: str, dry_run: bool, yes: bool, json_output: bool) -> None:
    """Give source OLD the name NEW. Its plates, scores and labels stay, and so do their sides of a data set."""
    with _opened(settings, dry_run) as ready:
        source_id, now = ready.db.read(known_names.find_source, old), ready.db.now()
        ready.db.read(source_changes.require_free, source_id, new)
        ready.db.read(source_changes.require_unwatched, source_id, now)
        held = ready.db.read(source_changes.contents, source_id)
        if not dry_run:
            _ask(yes, f"Rename source {old} to {new} ({_amount(held)})?")
            ready.db.write(source_changes.rename, source_id, new, actor=options.actor(), now=now)
    if json_output:
        output.print_json({"dry_run": dry_run, "old": old, "new": new, "contents": held})
        return
    output.echo(f"source {old} {'would be' if dry_run else 'is'} {new}: {_amount(held)}")
    if old in settings.sources:
        output.echo(f"the configuration calls it {old}: write [sources.{new}] there before marcod starts again")


@source.command()
@click.argument("origin", metavar="FROM")
@click.argument("into")
@DRY
@YES
@options.as_json
@pass_settings
def merge(settings: Settings, origin: str, into: str, dry_run: bool, yes: bool, json_output: bool) -> None:
    """Put everything of source FROM into source INTO, and remove FROM.

    For a folder that was recorded under two names. The same path is the same image: its scores and labels are kept
    once. Plates, drops and inspections are joined by their keys; hits and completed plates are not announced again.
    """
    with _opened(settings, dry_run) as ready:
        one, other = (ready.db.read(known_names.find_source, name) for name in (origin, into))
        if one == other:
            raise ConfigError(f"{origin} and {into} are one source; name two")
        now = ready.db.now()
        for each in (one, other):
            ready.db.read(source_changes.require_unwatched, each, now)
        planned = ready.db.read(source_changes.plan, one, other)
        if not dry_run:
            _ask(yes, f"Put {_amount(planned.moved)} of {origin} into {into}? {_same(planned)}.")
            with bars.stages() as report:
                joined = partial(report, "plates joined")
                now, actor = ready.db.now(), options.actor()
                planned = ready.db.write(merging.merge, one, other, actor=actor, now=now, report=joined)
    if json_output:
        output.print_json({"dry_run": dry_run, "from": origin, "into": into, "plan": planned})
        return
    output.echo(f"{_amount(planned.moved)} of {origin} {'would be' if dry_run else 'are'} in {into}; {_same(planned)}")
    if origin in settings.sources:
        output.echo(f"the configuration has both: remove [sources.{origin}] there before marcod starts again")


def _opened(settings: Settings, dry_run: bool) -> AbstractContextManager[app.App]:
    """Open the database to be changed; one who only counts need not be allowed to."""
    return app.reading(settings) if dry_run else app.open_app(settings)


def _same(planned: source_changes.MergePlan) -> str:
    nouns = ("plate", "image", "score")
    return "in both: " + ", ".join(counted(getattr(planned, f"same_{noun}s"), noun) for noun in nouns)


@source.command()
@click.argument("name")
@click.option("--with-labels", is_flag=True, help="Remove labels as well, which people gave")
@click.option(
    "--labels-to",
    type=options.OutFile(),
    metavar="FILE",
    help="First write the labels that count into FILE, a CSV that `marcod label import` reads",
)
@DRY
@YES
@options.as_json
@pass_settings
def forget(
    settings: Settings,
    name: str,
    with_labels: bool,
    labels_to: Path | None,
    dry_run: bool,
    yes: bool,
    json_output: bool,
) -> None:
    """Remove source NAME with all that was recorded of it. Image files stay; a later scan records them again."""
    with _opened(settings, dry_run) as ready:
        source_id, now = ready.db.read(known_names.find_source, name), ready.db.now()
        ready.db.read(source_changes.require_unwatched, source_id, now)
        held = ready.db.read(source_changes.contents, source_id)
        if not dry_run:
            if held.labels and not (with_labels or labels_to):
                raise StoreError(
                    f"source {name} has {counted(held.labels, 'label')}, which people gave; write them to a "
                    "file first with --labels-to FILE, or remove them with --with-labels"
                )
            _ask(yes, f"Remove source {name} with {_amount(held)}?", needed=True)
            if labels_to is not None:
                files.save(labels_to, _table_of_labels(ready.db, name), options.protected_folders(settings, ready))
            with bars.stages() as report:
                removed = partial(report, "plates removed")
                now, actor = ready.db.now(), options.actor()
                ready.db.write(source_changes.forget, source_id, actor=actor, now=now, report=removed)
    if json_output:
        output.print_json({"dry_run": dry_run, "source": name, "contents": held})
        return
    output.echo(f"source {name} {'would be' if dry_run else 'is'} removed: {_amount(held)}")
    if name in settings.sources and not dry_run:
        output.echo(f"the configuration still has [sources.{name}]: marcod records it again when it starts")


LABEL_COLUMNS: Final = ("source", "plate", "well", "drop", "inspection", "path", "label", "person", "time")


def _table_of_labels(db: Database, name: str) -> str:
    """Return the current labels of a source as a table that `marcod label import` reads."""
    from marcod.plates import plate_map

    found = reversed(db.read(votes.listed, source_name=name, limit=EVERY_LABEL))
    rows = (
        (
            name, said.plate_key, said.well, said.drop_number, said.inspection_key, said.path or "", said.label,
            said.person, said.labelled_at.isoformat(),
        )
        for said in found
        if said.counts
    )  # fmt: skip
    return plate_map.csv_text(LABEL_COLUMNS, (dict(zip(LABEL_COLUMNS, row, strict=True)) for row in rows))


def _ask(yes: bool, question: str, *, needed: bool = False) -> None:
    """Ask on a terminal. Elsewhere an answer that is ``needed`` must be given as --yes."""
    if yes:
        return
    if sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
    elif needed:
        raise ConfigError(f"{question} There is no terminal to ask on: give --yes")

"""`marcod review`: what people should look at, their answers, and what a random audit says of the model."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from marcod import app, text
from marcod.app import App
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.domain import DropClass
from marcod.errors import MarcodError
from marcod.files import refuse_inside
from marcod.labels import files
from marcod.labels.recorder import DropReference
from marcod.review import desk, folder
from marcod.review.desk import AuditReport
from marcod.review.queue import ReviewItem, Stream
from marcod.settings import Settings

KEYS: Final = {
    "x": DropClass.CRYSTALS,
    "p": DropClass.PRECIPITATE,
    "c": DropClass.CLEAR,
    "o": DropClass.OTHER,
}
NOTHING: Final = "nothing waits for {}"
SKIP: Final = "s"
UNDO: Final = "u"
QUIT: Final = "q"
OPENER: Final = "xdg-open"
"""Program that shows a file in the viewer that a person has chosen for its kind."""

_PERSON: Final = click.option("--person", help="Who looks [default: you]")


@click.group()
def review() -> None:
    """Look at the drops from which most is learned, and measure what the model misses."""


@review.command("next")
@_PERSON
@click.option("--open", "opens", is_flag=True, help=f"Show each image in your viewer, by {OPENER}")
@options.as_json
@pass_settings
def next_(settings: Settings, person: str | None, opens: bool, json_output: bool) -> None:
    """Show what to look at next. On a terminal a key answers: x crystals, p precipitate, c clear, o other.

    s skips, u takes the last answer back, q ends; ended at any moment, the session goes on where it was. Elsewhere one
    item is printed, with the path of its image.
    """
    who = person or options.actor()
    with app.open_app(settings, brief=True) as ready:
        if sys.stdin.isatty() and sys.stdout.isatty() and not json_output:
            _session(ready, settings, who, opens=opens)
            return
        item = desk.next_item(ready.db, settings.review, who, datetime.now(UTC))
        roots = options.source_roots(settings, ready)
    if json_output:
        output.print_json(None if item is None else _record(item, roots))
    else:
        output.echo(NOTHING.format(who) if item is None else _text(item, roots))
    if item is not None and opens:
        _open(item, roots)


def _open(item: ReviewItem, roots: Mapping[str, Path]) -> None:
    """Show the image in the person's viewer. Raises MarcodError without a program for it."""
    command = [OPENER, str(folder.image_file(item, roots))]
    quiet = subprocess.DEVNULL
    try:
        # The viewer stays open while the next ones are shown, so its end is not awaited.
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError as error:
        raise MarcodError(
            f"{OPENER} cannot be started ({error.strerror}); leave --open out and open the path"
        ) from error


def _session(ready: App, settings: Settings, person: str, *, opens: bool) -> None:
    """Ask until nothing waits or the person ends it."""
    done: list[tuple[ReviewItem, DropClass | None]] = []
    roots = options.source_roots(settings, ready)
    desk.fill(ready.db, settings.review, datetime.now(UTC))
    while (item := desk.next_item(ready.db, settings.review, person, datetime.now(UTC))) is not None:
        output.echo(_text(item, roots))
        if opens:
            _open(item, roots)
        with _given_back(ready, item, person):
            key = _key()
            if key == QUIT:
                break
            if key != UNDO:
                done.append((item, KEYS.get(key)))
                _keep(ready, *done[-1], person)
                continue
        _take_back(ready, done, person)
    output.echo(f"{len(done)} answered or skipped" + (f"; {NOTHING.format(person)}" if item is None else ""))


def _keep(ready: App, item: ReviewItem, label: DropClass | None, person: str) -> None:
    """Keep an answer, or with None a skip."""
    now = datetime.now(UTC)
    if label is None:
        desk.skip(ready.db, item, person, now)
    else:
        desk.answer(ready.db, item, label, person, now)
        # The model's class can no longer sway the person's answer.
        thought = _scores(desk.one(ready.db, item.item_id))
        output.echo(f"{label}; {item.model}: {thought}\n" if thought else f"{label}\n")


def _take_back(ready: App, done: list[tuple[ReviewItem, DropClass | None]], person: str) -> None:
    """Undo the last answer of the session, which is asked again next."""
    if not done:
        output.echo("nothing to take back in this session; `marcod label withdraw` takes back an earlier label\n")
        return
    item, label = done.pop()
    undone = desk.undo(ready.db, item, label, person, datetime.now(UTC))
    outcome = "is taken back" if undone else "was changed since and stays"
    output.echo(f"{label or 'the skip'} of {text.printable(_place(item))} {outcome}\n")


@contextmanager
def _given_back(ready: App, item: ReviewItem, person: str) -> Iterator[None]:
    """Whatever ends the session, an item without an answer is free for others at once."""
    try:
        yield
    finally:
        desk.release(ready.db, [item], person)


PROMPT: Final = "x crystals, p precipitate, c clear, o other, s skip, u undo, q quit: "


def _key() -> str:
    """Wait for a key that has a meaning; for any other one, print those that do."""
    click.echo(PROMPT, nl=False)
    while True:
        # Typed fast, several come at once.
        for key in click.getchar().lower():
            if key in (*KEYS, SKIP, UNDO, QUIT):
                click.echo(key)
                return key
            if key.isprintable() and not key.isspace():
                click.echo(f"{key} is not one of the keys\n{PROMPT}", nl=False)


def _place(item: ReviewItem) -> str:
    return f"{item.well}.{item.drop_number} of {item.barcode or item.plate_key}, inspection {item.inspection_key}"


def _scores(item: ReviewItem) -> str:
    names = ("crystals", "precipitate", "clear", "other")
    values = ((name, getattr(item, f"p_{name}")) for name in names)
    return ", ".join(f"{name} {p:.2f}" for name, p in values if p is not None)


def _text(item: ReviewItem, roots: Mapping[str, Path]) -> str:
    lines = [
        f"item {item.item_id} ({item.stream}): {_place(item)}, {item.source}",
        f"  {folder.image_file(item, roots)}",
        f"  {item.reason}",
    ]
    if scores := _scores(item):
        lines.append(f"  {item.model}: {scores}")
    return "\n".join(text.printable(line) for line in lines)


def _record(item: ReviewItem, roots: Mapping[str, Path]) -> dict[str, object]:
    return {**asdict(item), "root": roots.get(item.source, item.root), "file": folder.image_file(item, roots)}


@review.command()
@click.option("--stream", type=Choice([str(s) for s in Stream]), help="List only this stream")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@click.option("--new-audit", is_flag=True, help="Draw another random audit now")
@options.as_json
@pass_settings
def queue(settings: Settings, stream: str | None, limit: int, new_audit: bool, json_output: bool) -> None:
    """Fill the queue and list what waits: near the threshold, in disagreement, drawn at random, put there by hand."""
    now = datetime.now(UTC)
    streams = list(Stream) if stream is None else [Stream(stream)]
    with app.open_app(settings) as ready:
        filled = desk.fill(ready.db, settings.review, now, new_audit=new_audit)
        counts, items = desk.overview(ready.db, now, streams, limit)
        roots = options.source_roots(settings, ready)
    if json_output:
        output.print_json({"filled": filled, "counts": counts, "items": [_record(item, roots) for item in items]})
        return
    totals = [(s, n.open, n.shown, n.answered, n.skipped, filled.new[s]) for s, n in counts.items()]
    listings.show("Review", ("stream", "open", "being looked at", "answered", "skipped", "new"), totals)
    rows = [(i.item_id, i.stream, _place(i), i.person, i.reason) for i in items]
    heads = ("item", "stream", "drop", "person", "reason")
    if rows:
        output.echo()
        title = listings.counted(len(rows), sum(counts[each].open for each in streams), "open item")
        listings.show(title, heads, rows, spare=(("person",), ("stream",)), prose=True)


@review.command()
@options.naming_a_drop
@click.option("--reason", help="Why somebody should look")
@pass_settings
def add(settings: Settings, /, reason: str | None, **named: Any) -> None:
    """Put a drop into the queue by hand, before all others; one that was answered before is asked again."""
    why = reason or f"{options.actor()} asks for a look."
    with app.open_app(settings, brief=True) as ready:
        new = desk.ask(ready.db, DropReference(**named), why, datetime.now(UTC))
    output.echo(f"{options.drop_of(named)} {'waits' if new else 'was waiting already'} for a look")


@review.command()
@options.as_json
@pass_settings
def recall(settings: Settings, json_output: bool) -> None:
    """Estimate how many of the crystals the champion finds at its threshold, from the random audits."""
    with app.reading(settings) as ready:
        found = desk.report(ready.db)
    if json_output:
        output.print_json(found)
        return
    output.echo(found.sentence)
    if found.strata:
        _print_strata(found)


def _print_strata(found: AuditReport) -> None:
    waiting = f", {found.waiting} answered before their turn" if found.waiting else ""
    drops = text.count(found.population, "drop")
    output.say(
        output.console(),
        f"An audit of {drops} on {found.drawn_at:%Y-%m-%d}, {found.flagged} of them hits at its threshold: "
        f"{found.answered} of {found.drawn} drawn ones answered, {found.skipped} skipped, "
        f"{found.open} open{waiting}; "
        f"crystals in {found.crystals_flagged} of the hits and {found.crystals_unflagged} of the others",
    )
    columns = ("p(crystals)", "hits", "drops", "drawn", "answered", "crystals")
    rows = [
        (f"{t.low:.4f} to {t.high:.4f}", "yes" if t.flagged else "no", t.population, t.sample, t.answered, t.crystals)
        for t in found.strata
        if t.population
    ]
    listings.show("", columns, rows)


@review.command()
@click.argument("target", metavar="FOLDER", type=options.PLACE)
@_PERSON
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 5000), help="At most this many drops")
@options.as_json
@pass_settings
def export(settings: Settings, target: Path, person: str | None, limit: int, json_output: bool) -> None:
    """Make a new folder with images and review.csv to fill in; its drops are kept for the person for a week.

    Exits with 3 when images could not be read; they stay in the queue.
    """
    if not target.exists():
        options.check_writable(target)
    with app.open_app(settings) as ready, bars.progress("copying", None) as done:
        refuse_inside(target, options.protected_folders(settings, ready))
        made = folder.export(
            ready.db,
            settings.review,
            target.absolute(),
            person or options.actor(),
            datetime.now(UTC),
            limit=limit,
            roots=options.source_roots(settings, ready),
            done=done,
        )
    if json_output:
        output.print_json(made)
    else:
        output.echo(f"{text.count(made.items, 'drop')} to look at; fill in the column label of {made.csv}")
        for problem in made.problems:
            output.echo(text.printable(problem))
    output.end(attention=bool(made.problems))


@review.command("import")
@click.argument("place", metavar="FOLDER_OR_CSV", type=options.PLACE)
@click.option("--person", help="Who says so, where the file does not tell [default: you]")
@click.option("--vocabulary", help="Vocabulary of the labels [default: labels.vocabulary]")
@options.as_json
@pass_settings
def import_(settings: Settings, place: Path, person: str | None, vocabulary: str | None, json_output: bool) -> None:
    """Take the answers of a filled review.csv in. Twice is the same as once; with a wrong line nothing is taken."""
    options.check_there(place, "a folder that `marcod review export` made, or its review.csv")
    with app.open_app(settings) as ready:
        who, chosen = person or options.actor(), vocabulary or settings.labels.vocabulary
        tables, now = files.tables_of(settings), datetime.now(UTC)
        done = folder.import_answers(ready.db, place, tables, who, now, vocabulary=chosen)
    if json_output:
        output.print_json(done)
        return
    taken = text.count(done.new, "answer")
    output.echo(f"{taken} taken, {done.skipped} skipped, {done.known} known before, {done.empty} still open")

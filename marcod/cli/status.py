"""`marcod status`: queue, models, workers and sources on one screen, and what of it needs a person."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.database import probe, revisions
from marcod.database.engine import PERSON, Database
from marcod.errors import StoreError
from marcod.health import checks, snapshot, words
from marcod.health.finding import Severity
from marcod.health.snapshot import StatusSnapshot
from marcod.settings import Settings

EVERY_S: Final = 2.0
"""Pause between two looks of ``--watch``."""

WELL, ODD, BAD = "green", "yellow", "bold red"

STYLES: Final = {Severity.ATTENTION: ODD, Severity.BROKEN: BAD}


@click.command()
@click.option("--watch", is_flag=True, help="Look again every two seconds until Ctrl-C")
@options.as_json
@pass_settings
def status(settings: Settings, watch: bool, json_output: bool) -> None:
    """Show on one screen how everything stands: queue, model, workers, sources, drift, notifications, training.

    Answers from the database alone, so it may be asked anywhere and at any time. The exit code is 0 whatever it shows;
    `marcod doctor` is the one whose exit code tells.
    """
    if watch and json_output:
        raise click.UsageError("--watch is for people; programs ask again for --json")
    if watch:
        _watch(settings.store.url.get_secret_value())
        return
    with app.reading(settings) as ready:
        seen = _look(ready.db)
    if json_output:
        output.print_json(_record(seen))
    else:
        console = output.console()
        console.print(_screen(seen, str(ready.db)), soft_wrap=not console.is_terminal)


def _look(db: Database) -> StatusSnapshot:
    now = db.now()
    return db.read(snapshot.take_snapshot, now)


def _watch(url: str) -> None:
    """Refresh the screen until a signal comes, also while the database does not answer."""
    probe.require_file(url)
    db = Database(url, patience=PERSON, read_only=True)
    seen: StatusSnapshot | None = None
    checked, away_at = False, None
    with closing(db), app.stop_event_on_signals() as stop, _display() as show:
        while True:
            try:
                if not checked:
                    db.reach()
                    revisions.require_usable(db)
                    checked = True
                seen, away_at = _look(db), None
                show(_screen(seen, str(db)))
            except StoreError as error:
                away_at = away_at or db.now()
                show(_away(error, away_at, None if seen is None else _screen(seen, str(db))))
            if stop.wait(EVERY_S):
                return


@contextmanager
def _display() -> Iterator[Callable[[RenderableType], None]]:
    """Yield a function that shows a screen: over the last one on a terminal, below it elsewhere."""
    console = output.console()
    if not console.is_terminal:
        yield console.print
        return
    # Where a screen is drawn over the last one, lines that are too long would be cut.
    console.soft_wrap = False
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        yield lambda shown: live.update(shown, refresh=True)


def _away(error: StoreError, since: datetime, last: RenderableType | None) -> RenderableType:
    said = Text(f"since {since:%H:%M:%S} UTC, asking again: {text.printable(str(error))}", style=BAD)
    return said if last is None else Group(said, Text("as it stood before:"), last)


def _record(seen: StatusSnapshot) -> dict[str, Any]:
    """Return the status for JSON, without the token of a training run, which is a secret."""
    values = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
    values["training"] = None if seen.training is None else output.without_token(seen.training)
    return values | {"attention": [trouble.sentence for trouble in checks.troubles(seen)]}


def _screen(seen: StatusSnapshot, database: str) -> RenderableType:
    found = checks.troubles(seen)
    head = Text(f"marcod at {seen.taken_at:%Y-%m-%d %H:%M:%S} UTC, {text.printable(database)}", style="bold")
    severity, phrase = words.verdict(seen, found)
    verdict = Text(text.printable(phrase), style=WELL if severity is None else STYLES[severity])
    lines: list[RenderableType] = [
        Text(f"  {text.printable(one.sentence)}", style=STYLES[one.check.verdict]) for one in found
    ]
    tables = [made for made, rows in ((_sources(seen), seen.sources), (_workers(seen), seen.workers)) if rows]
    return Group(head, verdict, *lines, Text(), _facts(seen), *(Group(Text(), table) for table in tables))


def _facts(seen: StatusSnapshot) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, said in words.facts(seen):
        grid.add_row(Text(name, style="bold"), Text(text.printable(said)))
    return grid


def _sources(seen: StatusSnapshot) -> listings.Listing:
    found, watched = checks.troubles(seen), {state.source for state in seen.watched}
    severities = [words.standing(name, seen, found) for name in seen.sources]
    styles = [
        "dim" if name not in watched else WELL if severity is None else STYLES[severity]
        for name, severity in zip(seen.sources, severities, strict=True)
    ]
    spare = (("whole scan",), ("host",), ("found by",), ("settling",), ("root",))
    return listings.table("Sources", words.SOURCE_COLUMNS, words.sources(seen), styles=styles, spare=spare)


def _workers(seen: StatusSnapshot) -> listings.Listing:
    spare = (("version",), ("process",))
    return listings.table("Workers", words.WORKER_COLUMNS, words.workers(seen), spare=spare)

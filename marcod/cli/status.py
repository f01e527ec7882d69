"""`marcod status`: queue, models, workers and sources on one screen, and what of it needs a person."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
from marcod.health import checks, snapshot
from marcod.health.checks import Trouble, age, ago, is_watched
from marcod.health.finding import Severity
from marcod.health.snapshot import Jobs, Outbox, Serving, StatusSnapshot
from marcod.settings import Settings
from marcod.training.run_rows import Run
from marcod.watch.status import SourceStatus

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
    verdict = Text("needs attention", style=STYLES[found[0].check.verdict]) if found else _all_well(seen)
    lines: list[RenderableType] = [
        Text(f"  {text.printable(one.sentence)}", style=STYLES[one.check.verdict]) for one in found
    ]
    tables = [made(seen) for made, rows in ((_sources, seen.sources), (_workers, seen.workers)) if rows]
    return Group(head, verdict, *lines, Text(), _facts(seen), *(Group(Text(), table) for table in tables))


def _all_well(seen: StatusSnapshot) -> Text:
    if awaited := checks.awaited(seen):
        return Text(f"starting; nothing is known yet of {text.printable(', '.join(awaited))}", style=ODD)
    return Text("all is well", style=WELL)


def _facts(seen: StatusSnapshot) -> Table:
    grid = Table.grid(padding=(0, 2))
    now = seen.taken_at
    lines = [("queue", _jobs(seen.new, "new", now))]
    if seen.rescore != Jobs(0, 0, 0, None):
        lines.append(("", _jobs(seen.rescore, "to be scored again", now)))
    lines += [("scores", f"{seen.last_minute:,} in the last minute, the last one {ago(seen.last_scored_at, now)}")]
    lines += [(alias, _version(v)) for alias, v in (("champion", seen.champion), ("challenger", seen.challenger)) if v]
    lines += [("training", _run(seen.training, now))] if seen.training else []
    lines += [("layouts", f"{one.source}: {one.text}") for one in seen.findings if not one.attention]
    drifting = ", ".join(f"{alarm.signal} of {alarm.source}" for alarm in seen.alarms)
    lines.append(("drift", drifting or "no alarm"))
    lines += [("notify", f"{target}: {_box(box, now)}") for target, box in seen.outbox.items()]
    lines += [("", f"{text.count(seen.untold, 'event')} not handed on yet")] if seen.untold and seen.outbox else []
    for name, said in lines:
        grid.add_row(Text(name, style="bold"), Text(text.printable(said)))
    return grid


def _jobs(jobs: Jobs, kind: str, now: datetime) -> str:
    longest = "" if jobs.oldest_at is None else f" (longest {age(jobs.oldest_at, now)})"
    return f"{jobs.waiting:,} {kind}{longest}, {jobs.leased:,} being scored, {jobs.retrying:,} waiting for another try"


def _version(serving: Serving) -> str:
    made = ", trained on rendered drops alone" if serving.synthetic else ""
    return f"{serving.model} since {serving.since:%Y-%m-%d %H:%M} UTC{made}"


def _run(run: Run, now: datetime) -> str:
    if run.ended_at is None:
        return f"run {run.id} {run.state} since {age(run.started_at, now)}{f', {run.step}' if run.step else ''}"
    return f"run {run.id} {run.state}{f' {run.candidate}' if run.candidate else ''}, {ago(run.ended_at, now)}"


def _box(box: Outbox, now: datetime) -> str:
    oldest = "" if box.oldest_at is None else f", the oldest for {age(box.oldest_at, now)}"
    return f"{box.unsent:,} wait{oldest}, {box.given_up:,} given up"


def _sources(seen: StatusSnapshot) -> listings.Listing:
    now, states = seen.taken_at, {state.source: state for state in seen.watched}
    columns = ("source", "root", "found by", "host", "last scan", "whole scan", "settling", "incomplete", "failed")
    rows = [(name, *_watching(states.get(name), now), seen.quarantined.get(name, 0)) for name in seen.sources]
    found = checks.troubles(seen)
    styles = [_style(states.get(name), seen, found) for name in seen.sources]
    spare = (("whole scan",), ("host",), ("found by",), ("settling",), ("root",))
    return listings.table("Sources", columns, rows, styles=styles, spare=spare)


def _watching(state: SourceStatus | None, now: datetime) -> tuple[object, ...]:
    """From the root to what is on its way."""
    if state is None:
        return ("-", "nobody", *["-"] * 5)
    root = "there" if state.root_there else "OFFLINE"
    scan, whole = ago(state.walked_at, now), ago(state.walked_whole_at, now)
    if not is_watched(state, now):
        return (f"was {root}", "nobody", state.host, scan, whole, "-", "-")
    if state.walking:
        scan = f"now, {text.count(state.walked_files, 'file')}"
    how = "events" if state.observing else "scans"
    return (root, how, state.host, scan, whole, f"{state.pending:,}", f"{state.waiting:,}")


def _style(state: SourceStatus | None, seen: StatusSnapshot, found: Sequence[Trouble]) -> str:
    if state is None:
        return "dim"
    verdicts = {trouble.check.verdict for trouble in found if trouble.source == state.source}
    odd = state.source in seen.quarantined or any(alarm.source == state.source for alarm in seen.alarms)
    return BAD if Severity.BROKEN in verdicts else ODD if verdicts or odd else WELL


def _workers(seen: StatusSnapshot) -> listings.Listing:
    now = seen.taken_at
    columns = ("host", "process", "roles", "runs for", "seen", "version")
    rows = [
        (w.host, str(w.pid), w.roles, age(w.started_at, now), ago(w.seen_at, now), w.marcod_version)
        for w in seen.workers
    ]
    return listings.table("Workers", columns, rows, spare=(("version",), ("process",)))

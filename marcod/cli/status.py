"""`marcod status`: how everything stands, on one screen, and what of it needs a person."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from marcod import app, text
from marcod.cli import output
from marcod.cli.configured import pass_settings
from marcod.database import probe, revisions
from marcod.database.engine import PERSON, Database
from marcod.errors import StoreError
from marcod.health import snapshot
from marcod.health.snapshot import Jobs, Outbox, Serving, Snapshot
from marcod.settings import Settings
from marcod.store import versions
from marcod.training.run_rows import Run
from marcod.watch.status import State

EVERY_S: Final = 2.0
"""Pause between two looks of ``--watch``."""

LONG_QUEUED: Final = timedelta(minutes=30)
"""A new image that could have been scored so long ago has nobody who scores it, or too few."""

SILENT: Final = timedelta(minutes=1)
"""A watcher writes every ten seconds how it stands."""

HANGING: Final = timedelta(minutes=5)
"""A watcher does something, or looks whether there is something to do, twice a second."""

UNSCANNED: Final = timedelta(hours=1)
"""Without a scan that ended well, nor one under way."""

UNTOLD: Final = timedelta(hours=1)

MOST_CAUSES: Final = 5
"""Causes that hold images up of which the screen tells."""

WELL, ODD, BAD = "green", "yellow", "bold red"

Trouble = tuple[str, str]
"""What needs a person, after how bad it is: ``ODD`` or ``BAD``."""


@click.command()
@click.option("--watch", is_flag=True, help="Look again every two seconds until Ctrl-C")
@output.as_json
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


def _look(db: Database) -> Snapshot:
    now = db.now()
    return db.read(snapshot.take_snapshot, now)


def _watch(url: str) -> None:
    """Show it again and again until a signal comes, also while the database is away."""
    from marcod import service

    probe.require_file(url)
    db = Database(url, patience=PERSON, read_only=True)
    seen: Snapshot | None = None
    checked, away_at = False, None
    with closing(db), service.stopped_by_signals() as stop, _display() as show:
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
    """Yields what shows a screen: over the last one on a terminal, below it elsewhere."""
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
    said = Text(f"since {since:%H:%M:%S} UTC, asking again: {output.printable(str(error))}", style=BAD)
    return said if last is None else Group(said, Text("as it stood before:"), last)


def _record(seen: Snapshot) -> dict[str, Any]:
    """For programs; the key of a training run is nobody's business."""
    values = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
    values["training"] = None if seen.training is None else output.without_token(seen.training)
    values["alarms"] = [dataclasses.asdict(alarm) | {"day": alarm.day.isoformat()} for alarm in seen.alarms]
    return values | {"attention": [text for _, text in troubles(seen)]}


def troubles(seen: Snapshot) -> list[Trouble]:
    """What needs a person, the worst first."""
    found = [*_unserved(seen), *_neglected(seen)]
    awaited = _awaited(seen)
    for source in seen.watched:
        if source.source not in awaited:
            found += [(style, f"source {source.source}: {text}") for style, text in _unwatched(source, seen.taken_at)]
    found += [(ODD, f"source {one.source}: {one.text}; {one.advice}") for one in seen.findings if one.attention]
    return sorted(found, key=lambda trouble: trouble[0] != BAD)


def _unserved(seen: Snapshot) -> Iterator[Trouble]:
    """Why images may not be scored."""
    alive, now = snapshot.roles(seen.workers), seen.taken_at
    if seen.champion is None:
        yield BAD, "no model is champion; `marcod model promote NAME:VERSION` makes one"
    elif seen.scored_by_synthetic:
        yield ODD, f"{seen.champion.model} was {versions.RENDERED_ALONE}; {versions.REAL_MODEL}"
    if not seen.workers:
        yield BAD, "no marcod runs; `marcod run` starts one"
    elif "score" not in alive and seen.new.waiting:
        yield BAD, "images wait and no process has the role score"
    elif seen.new.oldest_at is not None and now - seen.new.oldest_at > LONG_QUEUED:
        yield BAD, f"a new image waits for {_age(seen.new.oldest_at, now)}; scoring is too slow or fails, see the log"
    if seen.workers and "schedule" not in alive:
        yield ODD, "no process has the role schedule: no plate is completed, no drift is seen, nobody is told"
    for held_up in seen.held_up[:MOST_CAUSES]:
        yield BAD, f"{text.count(held_up.images, 'image waits', 'images wait')}: {output.printable(held_up.error)}"
    if seen.failed:
        yield ODD, f"{text.count(seen.failed, 'image')} in quarantine; `marcod queue failed` says why"
    if seen.gone:
        yield ODD, f"{text.count(seen.gone, 'image')} went before anything scored them; `marcod queue gone` lists them"


def _neglected(seen: Snapshot) -> Iterator[Trouble]:
    """What goes wrong beside the scoring."""
    now = seen.taken_at
    for alarm in seen.alarms:
        yield ODD, f"{output.printable(alarm.detail)}; see `marcod drift`"
    for target, box in seen.outbox.items():
        if box.oldest_at is not None and now - box.oldest_at > UNTOLD:
            yield BAD, f"{target} is not told what happened {_age(box.oldest_at, now)} ago"
        if box.given_up:
            given_up = text.count(box.given_up, "notification")
            yield ODD, f"{given_up} for {target} given up within {snapshot.TOLD.days} days"
    if seen.training is not None and seen.training.state in ("failed", "abandoned"):
        run = seen.training
        yield ODD, f"training run {run.id} {run.state}; `marcod train show {run.id}` says why"


def _awaited(seen: Snapshot) -> list[str]:
    """Sources of which a process that began to watch less than :data:`SILENT` ago may still say something."""
    starting = any("watch" in w.roles.split(",") and seen.taken_at - w.started_at < SILENT for w in seen.workers)
    watched = {state.source for state in seen.watched if _is_watched(state, seen.taken_at)}
    return [name for name in seen.sources if name not in watched] if starting else []


def _is_watched(source: State, now: datetime) -> bool:
    """Tell if a process watches a source: one that ended in order took its name away."""
    return bool(source.worker) and source.updated_at is not None and now - source.updated_at <= SILENT


def _unwatched(source: State, now: datetime) -> Iterator[Trouble]:
    if not _is_watched(source, now):
        yield BAD, f"nobody watches it; the last word came {_ago(source.updated_at, now)}"
        return
    if not source.root_there:
        yield BAD, "its root is away"
    elif source.round_at is not None and now - source.round_at > HANGING:
        yield BAD, f"the watching hangs, its last sign of life came {_ago(source.round_at, now)}; is the share hung?"
    elif not source.walking and (source.walked_at is None or now - source.walked_at > UNSCANNED):
        yield BAD, f"the last scan that ended well was {_ago(source.walked_at, now)}"
    if source.unreadable:
        yield ODD, f"{text.count(source.unreadable, 'folder')} cannot be listed"
    if source.trouble:
        yield ODD, output.printable(source.trouble)


def _screen(seen: Snapshot, database: str) -> RenderableType:
    found = troubles(seen)
    head = Text(f"marcod at {seen.taken_at:%Y-%m-%d %H:%M:%S} UTC, {output.printable(database)}", style="bold")
    verdict = Text("needs attention", style=found[0][0]) if found else _all_well(seen)
    lines: list[RenderableType] = [Text(f"  {output.printable(said)}", style=style) for style, said in found]
    tables = [made(seen) for made, rows in ((_sources, seen.sources), (_workers, seen.workers)) if rows]
    return Group(head, verdict, *lines, Text(), _facts(seen), *(Group(Text(), table) for table in tables))


def _all_well(seen: Snapshot) -> Text:
    if awaited := _awaited(seen):
        return Text(f"starting; nothing is known yet of {output.printable(', '.join(awaited))}", style=ODD)
    return Text("all is well", style=WELL)


def _facts(seen: Snapshot) -> Table:
    grid = Table.grid(padding=(0, 2))
    now = seen.taken_at
    lines = [("queue", _jobs(seen.new, "new", now))]
    if seen.rescore != Jobs(0, 0, 0, None):
        lines.append(("", _jobs(seen.rescore, "to be scored again", now)))
    lines += [("scores", f"{seen.last_minute:,} in the last minute, the last one {_ago(seen.last_scored_at, now)}")]
    lines += [(alias, _version(v)) for alias, v in (("champion", seen.champion), ("challenger", seen.challenger)) if v]
    lines += [("training", _run(seen.training, now))] if seen.training else []
    lines += [("layouts", f"{one.source}: {one.text}") for one in seen.findings if not one.attention]
    drifting = ", ".join(f"{alarm.signal} of {alarm.source}" for alarm in seen.alarms)
    lines.append(("drift", drifting or "no alarm"))
    lines += [("notify", f"{target}: {_box(box, now)}") for target, box in seen.outbox.items()]
    lines += [("", f"{text.count(seen.untold, 'event')} not handed on yet")] if seen.untold and seen.outbox else []
    for name, said in lines:
        grid.add_row(Text(name, style="bold"), Text(output.printable(said)))
    return grid


def _jobs(jobs: Jobs, kind: str, now: datetime) -> str:
    longest = "" if jobs.oldest_at is None else f" (longest {_age(jobs.oldest_at, now)})"
    return f"{jobs.waiting:,} {kind}{longest}, {jobs.leased:,} being scored, {jobs.retrying:,} waiting for another try"


def _version(serving: Serving) -> str:
    made = ", trained on rendered drops alone" if serving.synthetic else ""
    return f"{serving.model} since {serving.since:%Y-%m-%d %H:%M} UTC{made}"


def _run(run: Run, now: datetime) -> str:
    if run.ended_at is None:
        return f"run {run.id} {run.state} since {_age(run.started_at, now)}{f', {run.step}' if run.step else ''}"
    return f"run {run.id} {run.state}{f' {run.candidate}' if run.candidate else ''}, {_ago(run.ended_at, now)}"


def _box(box: Outbox, now: datetime) -> str:
    oldest = "" if box.oldest_at is None else f", the oldest for {_age(box.oldest_at, now)}"
    return f"{box.unsent:,} wait{oldest}, {box.given_up:,} given up"


def _sources(seen: Snapshot) -> output.Listing:
    now, states = seen.taken_at, {state.source: state for state in seen.watched}
    columns = ("source", "root", "found by", "host", "last scan", "whole scan", "settling", "incomplete", "failed")
    rows = [(name, *_watching(states.get(name), now), seen.quarantined.get(name, 0)) for name in seen.sources]
    styles = [_style(states.get(name), seen) for name in seen.sources]
    spare = (("whole scan",), ("host",), ("found by",), ("settling",), ("root",))
    return output.table("Sources", columns, rows, styles=styles, spare=spare)


def _watching(state: State | None, now: datetime) -> tuple[object, ...]:
    """From the root to what is on its way."""
    if state is None:
        return ("-", "nobody", *["-"] * 5)
    root = "there" if state.root_there else "AWAY"
    scan, whole = _ago(state.walked_at, now), _ago(state.walked_whole_at, now)
    if not _is_watched(state, now):
        return (f"was {root}", "nobody", state.host, scan, whole, "-", "-")
    if state.walking:
        scan = f"now, {text.count(state.walked_files, 'file')}"
    how = "events" if state.observing else "scans"
    return (root, how, state.host, scan, whole, f"{state.pending:,}", f"{state.waiting:,}")


def _style(state: State | None, seen: Snapshot) -> str:
    if state is None:
        return "dim"
    found = [style for style, _ in _unwatched(state, seen.taken_at)]
    odd = state.source in seen.quarantined or any(alarm.source == state.source for alarm in seen.alarms)
    odd = odd or any(one.attention for one in seen.findings if one.source == state.source)
    return BAD if BAD in found else ODD if found or odd else WELL


def _workers(seen: Snapshot) -> output.Listing:
    now = seen.taken_at
    columns = ("host", "process", "roles", "runs for", "seen", "version")
    rows = [
        (w.host, str(w.pid), w.roles, _age(w.started_at, now), _ago(w.seen_at, now), w.marcod_version)
        for w in seen.workers
    ]
    return output.table("Workers", columns, rows, spare=(("version",), ("process",)))


_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def _age(at: datetime, now: datetime) -> str:
    seconds = max(0, int((now - at).total_seconds()))
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= 2 * size or size == 1)
    return f"{seconds // size} {unit}"


def _ago(at: datetime | None, now: datetime) -> str:
    return "never" if at is None else f"{_age(at, now)} ago"

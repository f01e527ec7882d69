"""`marcod rescore`: score again, with another version or what the champion has not seen, behind everything new."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event

import click

from marcod import app, text
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.score import drain
from marcod.database import workers
from marcod.errors import MarcodError
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import backlog, known_names, queue, versions

POLL_S = 1.0
COUNT_SHARE = 0.05
"""Counting a million jobs takes a moment; at most this share of the time is spent on it."""

Report = Callable[[str, int, int], None]


@click.command()
@click.option("--plate", "plates", multiple=True, metavar="KEY_OR_BARCODE", help="This plate; may be given again")
@click.option("--all", "everything", is_flag=True, help="Every image")
@options.since("Images that arrived since, such as 24h or 2026-05-01")
@click.option("--source", help="Only this source's plates")
@click.option("--model", "model_text", metavar="NAME:VERSION", help="Model version or alias [default: the champion]")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done")
@options.as_json
@pass_settings
def rescore(
    settings: Settings,
    plates: tuple[str, ...],
    everything: bool,
    since: datetime | None,
    source: str | None,
    model_text: str | None,
    wait: bool,
    json_output: bool,
) -> None:
    """Score again what a model version has not scored yet, behind all new images. Old scores stay.

    Give one of --plate, --all and --since. A repeated call queues nothing twice and goes on where an interrupted one
    was. With --all and --since, --wait lasts until nothing waits to be scored again by that version.
    """
    if (bool(plates), everything, since is not None).count(True) != 1:
        raise click.UsageError("give exactly one of --plate, --all and --since")
    with app.open_app(settings) as ready, app.stop_event_on_signals() as stop:
        asked = _asked(ready, plates, since, source)
        version = _version(ready, model_text)
        with bars.stages() as report:
            queued = _queue(ready, asked, version, stop, report)
            if stop.is_set():
                images = text.count(queued, "image")
                raise MarcodError(f"stopped with {images} queued, which stay so; the same call queues the rest")
            left = _unfinished(ready, asked, version)
            if wait and left:
                left = _finish(settings, ready, asked, version, stop, report)
        new = ready.db.read(backlog.new)
        there = ready.db.read(queue.has_images, asked.archive, asked.ids)
    if json_output:
        output.print_json(
            {"plates": asked.plates, "model": str(version), "queued": queued, "left": left, "new_before": new}
        )
    elif there:
        _print(asked, version, queued, left, new)
    else:
        what = f"of {asked} " if asked.archive is None else ""
        output.echo(f"no image {what}has arrived that could be scored; `marcod scan` takes in what lies there")
    if wait and left:
        images = text.count(left, "image")
        raise MarcodError(f"{images} could not be scored yet and stay queued; `marcod queue status` tells more")


def _version(ready: app.App, named: str | None) -> versions.Version:
    if named is None:
        return ready.db.read(versions.champion)
    return ready.registry.resolve_registered(named, ready.db.now())


@dataclass(frozen=True, slots=True)
class _Asked:
    """The images to score again: of some plates, or of the archive."""

    plates: Sequence[reports.Plate]
    archive: queue.Archive | None

    @property
    def ids(self) -> list[int]:
        return [plate.id for plate in self.plates]

    def __str__(self) -> str:
        if self.archive is not None:
            return "all that was asked for"
        keys = dict.fromkeys(plate.barcode or plate.key for plate in self.plates)
        return f"{'plate' if len(keys) == 1 else 'plates'} {', '.join(keys)}"


def _asked(ready: app.App, plates: Sequence[str], since: datetime | None, source: str | None) -> _Asked:
    if plates:
        lists = [ready.db.read(reports.find_plates, name, source) for name in plates]
        return _Asked(list({plate.id: plate for found in lists for plate in found}.values()), None)
    source_id = ready.db.read(known_names.find_source, source) if source is not None else None
    return _Asked((), queue.Archive(since, source_id))


def _queue(ready: app.App, asked: _Asked, version: versions.Version, stop: Event, report: Report) -> int:
    """Queue what was asked for. Returns how many images were not waiting yet."""
    now = ready.db.now()
    archive = asked.archive
    if archive is None:
        return ready.db.write(queue.enqueue_rescore, version.id, now, asked.ids)
    total = ready.db.read(queue.count_inspections, archive)
    queued, looked_at, last = 0, 0, 0

    def part() -> queue.ArchivePart | None:
        return ready.db.write(queue.enqueue_archive, version.id, archive, last, now)

    while not stop.is_set() and (done := part()) is not None:
        queued, looked_at, last = queued + done.queued, looked_at + done.inspections, done.last
        report("inspections looked at", looked_at, max(total, looked_at))
    return queued


def _unfinished(ready: app.App, asked: _Asked, version: versions.Version) -> int:
    if asked.archive is None:
        return ready.db.read(reports.unfinished, version.id, asked.ids)
    return ready.db.read(queue.count_unfinished, version.id)


def _finish(
    settings: Settings, ready: app.App, asked: _Asked, version: versions.Version, stop: Event, report: Report
) -> int:
    """Watch other processes do it, and do here what they leave. Returns how many images are still to do."""
    left, pause_s = _counted(ready, asked, version)
    total = left

    def show(done: int) -> None:
        report(f"images scored by {version}{_behind(ready.db.read(backlog.new))}", min(done, total), total)

    while left and not stop.is_set() and _others_score(ready):
        show(total - left)
        stop.wait(pause_s)
        left, pause_s = _counted(ready, asked, version)
        total = max(total, left)
    if left and not stop.is_set():
        here = total - left
        drain(settings, ready, stop, lambda done: show(here + done))
        left = _unfinished(ready, asked, version)
    show(total - left)
    return left


def _counted(ready: app.App, asked: _Asked, version: versions.Version) -> tuple[int, float]:
    """Return the number of images left, and the seconds to wait before counting them again."""
    start = time.monotonic()
    left = _unfinished(ready, asked, version)
    return left, max(POLL_S, (time.monotonic() - start) / COUNT_SHARE)


def _others_score(ready: app.App) -> bool:
    alive = ready.db.read(workers.alive, ready.db.now())
    return any("score" in worker.roles.split(",") for worker in alive)


def _behind(new: int) -> str:
    """Describe the work that comes first."""
    return f", behind {text.count(new, 'new image')}" if new else ""


def _print(asked: _Asked, version: versions.Version, queued: int, left: int, new: int) -> None:
    if not queued and not left:
        output.echo(f"{version} has scored {asked} already")
    else:
        images = text.count(queued, "image")
        output.echo(f"{images} of {asked} queued for {version}, {left} still to do{_behind(new) if left else ''}")

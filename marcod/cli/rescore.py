"""`marcod rescore`: score again, with another version or what the champion has not seen, behind everything new."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from threading import Event

import click
from click.core import ParameterSource

from marcod import app, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.score import drain
from marcod.database import workers
from marcod.errors import MarcodError
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store import backlog, campaigns, known_names, queue, versions
from marcod.store.campaigns import State

POLL_S = 1.0
COUNT_SHARE = 0.05
"""Counting a million jobs takes a moment; at most this share of the time is spent on it."""

Report = Callable[[str, int, int], None]


@click.group(invoke_without_command=True)
@click.option("--plate", "plates", multiple=True, metavar="KEY_OR_BARCODE", help="This plate; may be given again")
@click.option("--all", "everything", is_flag=True, help="Every image")
@options.since("Images that arrived since, such as 24h or 2026-05-01")
@click.option("--source", help="Only this source's plates")
@click.option("--model", "model_text", metavar="NAME:VERSION", help="Model version or alias [default: the champion]")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done")
@options.as_json
@click.pass_context
def rescore(
    context: click.Context,
    plates: tuple[str, ...],
    everything: bool,
    since: datetime | None,
    source: str | None,
    model_text: str | None,
    wait: bool,
    json_output: bool,
) -> None:
    """Score again what a model version has not scored yet, behind all new images. Old scores stay.

    Give one of --plate, --all and --since. A repeated call with --all or --plate queues nothing twice and goes on where
    an interrupted one was; one with --since such as 24h means another moment. With --all and --since, --wait lasts
    until nothing waits to be scored again by that version, but for other rescores that are paused.
    """
    if (named := context.invoked_subcommand) is not None:
        sources = map(context.get_parameter_source, context.params)
        if ParameterSource.COMMANDLINE in sources:
            raise click.UsageError(f"options come after {named}, and only its own: `marcod rescore {named} --help`")
        return
    if (bool(plates), everything, since is not None).count(True) != 1:
        raise click.UsageError("give exactly one of --plate, --all and --since")
    _rescore(plates, since, source, model_text, wait=wait, json_output=json_output)


@pass_settings
def _rescore(
    settings: Settings,
    plates: tuple[str, ...],
    since: datetime | None,
    source: str | None,
    model_text: str | None,
    *,
    wait: bool,
    json_output: bool,
) -> None:
    with app.open_app(settings) as ready, app.stop_event_on_signals() as stop:
        asked = _asked(ready, plates, since, source)
        version = _version(ready, model_text)
        with bars.stages() as report:
            queued, number = _queue(ready, asked, version, stop, report)
            work = _Work(asked, version, number)
            left = _unfinished(ready, work)
            if wait and left:
                left = _finish(settings, ready, work, stop, report)
        new = ready.db.read(backlog.new)
        there = ready.db.read(campaigns.has_images, asked.archive, asked.ids)
        running = _campaign(ready, work)
        if wait and number is not None and (running is None or running.state is State.CANCELLED):
            # With a version that was removed without a score its rescores are gone too.
            raise MarcodError(f"rescore {number} was cancelled; its scores stay, and the same call does the rest")
        if running is not None and running.ended_at is not None:
            running = None
    if json_output:
        output.print_json(
            {"plates": asked.plates, "model": str(version), "queued": queued, "left": left, "new_before": new}
            | {"campaign": None if running is None else running.id}
        )
    elif there:
        _print(asked, version, queued, left, new, running)
    else:
        what = f"of {asked} " if asked.archive is None else ""
        output.echo(f"no image {what}has arrived that could be scored; `marcod scan` takes in what lies there")
    if wait and left:
        if running is not None and running.state is State.PAUSED:
            raise MarcodError(f"rescore {running.id} is paused; `marcod rescore resume {running.id}` lets it go on")
        images = text.count(left, "image")
        raise MarcodError(f"{images} could not be scored yet and stay queued; `marcod queue status` tells more")


@rescore.command("list")
@click.option("--every", is_flag=True, help="Also those that have ended")
@options.as_json
@pass_settings
def list_(settings: Settings, every: bool, json_output: bool) -> None:
    """List rescores of archives: what is done, the rate of the last minutes, and the time left."""
    with app.reading(settings) as ready:
        found = ready.db.read(campaigns.listed, ready.db.now(), every=every)
    if json_output:
        output.print_json([_plain(one) for one in found])
        return
    if not found:
        output.echo("no archive is being scored again; `marcod rescore --all --model NAME:VERSION` begins that")
        return
    columns = ("rescore", "model", "of", "state", "images", "done", "left", "images/s", "time left", "held up by")
    listings.show("Rescores", columns, [_row(one) for one in found], spare=(("held up by",), ("of",)))


def _plain(one: campaigns.Campaign) -> dict[str, object]:
    return asdict(one) | {"left": one.left, "left_s": one.left_s}


def _row(one: campaigns.Campaign) -> tuple[object, ...]:
    of = one.source or "all"
    if one.since is not None:
        of += f" since {one.since:%Y-%m-%d %H:%M} UTC"
    pace = "-" if one.images_per_s is None else f"{one.images_per_s:,.1f}"
    left = "-" if one.left_s is None else _lasting(one.left_s)
    done = one.images - one.left if one.ended_at is None else one.done
    rest = "-" if one.state is State.CANCELLED else f"{one.left:,}"
    return (one.id, one.model, of, one.state, f"{one.images:,}", f"{done:,}", rest, pace, left, one.error or "")


def _lasting(seconds: float) -> str:
    from marcod.health.checks import age

    start = datetime.fromtimestamp(0, UTC)
    return age(start, start + timedelta(seconds=seconds))


@rescore.command()
@click.argument("number", type=int)
@pass_settings
def pause(settings: Settings, number: int) -> None:
    """Let workers take nothing more of a rescore; they finish what they hold."""
    _change(settings, campaigns.pause, number)
    output.echo(f"rescore {number} is paused; `marcod rescore resume {number}` lets it go on")


@rescore.command()
@click.argument("number", type=int)
@pass_settings
def resume(settings: Settings, number: int) -> None:
    """Let workers go on with a rescore that was paused."""
    _change(settings, campaigns.resume, number)
    output.echo(f"rescore {number} goes on")


@rescore.command()
@click.argument("number", type=int)
@pass_settings
def cancel(settings: Settings, number: int) -> None:
    """End a rescore. The scores that it made stay, and calling it again does the rest."""
    _change(settings, campaigns.cancel, number)
    output.echo(f"rescore {number} is cancelled; its scores stay")


def _change(settings: Settings, act: Callable[..., None], number: int) -> None:
    with app.open_app(settings) as ready:
        ready.db.write(act, number, options.actor(), ready.db.now())


def _version(ready: app.App, named: str | None) -> versions.Version:
    if named is None:
        return ready.db.read(versions.champion)
    return ready.registry.resolve_registered(named, ready.db.now())


@dataclass(frozen=True, slots=True)
class _Asked:
    """The images to score again: of some plates, or of the archive."""

    plates: Sequence[reports.Plate]
    archive: campaigns.Archive | None

    @property
    def ids(self) -> list[int]:
        return [plate.id for plate in self.plates]

    def __str__(self) -> str:
        if self.archive is not None:
            return "the archive"
        keys = dict.fromkeys(plate.barcode or plate.key for plate in self.plates)
        return f"{'plate' if len(keys) == 1 else 'plates'} {', '.join(keys)}"


@dataclass(frozen=True, slots=True)
class _Work:
    """Images that were asked for, the version that scores them, and the number of their campaign, if they have one."""

    asked: _Asked
    version: versions.Version
    campaign: int | None


def _asked(ready: app.App, plates: Sequence[str], since: datetime | None, source: str | None) -> _Asked:
    if plates:
        lists = [ready.db.read(reports.find_plates, name, source) for name in plates]
        return _Asked(list({plate.id: plate for found in lists for plate in found}.values()), None)
    source_id = ready.db.read(known_names.find_source, source) if source is not None else None
    return _Asked((), campaigns.Archive(since, source_id))


def _queue(
    ready: app.App, asked: _Asked, version: versions.Version, stop: Event, report: Report
) -> tuple[int, int | None]:
    """Queue what was asked for. Returns how many images were not waiting yet, and the number of their campaign."""
    now = ready.db.now()
    archive = asked.archive
    if archive is None:
        return ready.db.write(queue.enqueue_rescore, version.id, now, asked.ids), None
    if (number := ready.db.read(campaigns.alike, version.id, archive)) is not None:
        return 0, number
    owed = _survey(ready, archive, version, stop, report)
    if stop.is_set():
        raise MarcodError("stopped before anything was queued")
    if owed:
        number = ready.db.write(campaigns.begin, version.id, archive, owed, options.actor(), now)
    return sum(one.images for one in owed), number


def _survey(
    ready: app.App, archive: campaigns.Archive, version: versions.Version, stop: Event, report: Report
) -> list[campaigns.Owed]:
    """Count what the version owes in each inspection."""
    total = ready.db.read(campaigns.count_inspections, archive)
    owed: list[campaigns.Owed] = []
    looked_at = last = 0
    while not stop.is_set() and (part := ready.db.read(campaigns.survey, version.id, archive, last)) is not None:
        owed += part.owed
        looked_at, last = looked_at + part.inspections, part.last
        report("inspections looked at", looked_at, max(total, looked_at))
    return owed


def _campaign(ready: app.App, work: _Work) -> campaigns.Campaign | None:
    """Return the campaign as it is now, also where it has ended."""
    if work.campaign is None:
        return None
    found = ready.db.read(campaigns.listed, ready.db.now(), every=True, version_id=work.version.id)
    return next((one for one in found if one.id == work.campaign), None)


def _unfinished(ready: app.App, work: _Work) -> int:
    """Count the images to wait for: those that others have paused are not."""
    version_id = work.version.id
    if work.asked.archive is None:
        return ready.db.read(reports.unfinished, version_id, work.asked.ids)
    found = ready.db.read(campaigns.listed, ready.db.now(), version_id=version_id)
    of_campaigns = sum(one.left for one in found if one.id == work.campaign or one.state is not State.PAUSED)
    return ready.db.read(queue.count_unfinished, version_id) + of_campaigns


def _finish(settings: Settings, ready: app.App, work: _Work, stop: Event, report: Report) -> int:
    """Watch other processes do it, and do here what they leave. Returns how many images are still to do."""
    left, pause_s = _counted(ready, work)
    total = left

    def show(done: int) -> None:
        report(f"images scored by {work.version}{_behind(ready.db.read(backlog.new))}", min(done, total), total)

    def goes_on() -> bool:
        running = _campaign(ready, work)
        return not stop.is_set() and (running is None or running.state not in (State.PAUSED, State.CANCELLED))

    while left and goes_on() and _others_score(ready):
        show(total - left)
        stop.wait(pause_s)
        left, pause_s = _counted(ready, work)
        total = max(total, left)
    if left and goes_on():
        here = total - left
        drain(settings, ready, stop, lambda done: show(here + done))
        left = _unfinished(ready, work)
    show(total - left)
    return left


def _counted(ready: app.App, work: _Work) -> tuple[int, float]:
    """Return the number of images left, and the seconds to wait before counting them again."""
    start = time.monotonic()
    left = _unfinished(ready, work)
    return left, max(POLL_S, (time.monotonic() - start) / COUNT_SHARE)


def _others_score(ready: app.App) -> bool:
    alive = ready.db.read(workers.alive, ready.db.now())
    return any("score" in worker.roles.split(",") for worker in alive)


def _behind(new: int) -> str:
    """Describe the work that comes first."""
    return f", behind {text.count(new, 'new image')}" if new else ""


def _print(
    asked: _Asked, version: versions.Version, queued: int, left: int, new: int, running: campaigns.Campaign | None
) -> None:
    if not queued and not left:
        output.echo(f"{version} has scored {asked} already")
    else:
        images = text.count(queued, "image")
        output.echo(f"{images} of {asked} queued for {version}, {left} still to do{_behind(new) if left else ''}")
    if running is not None:
        output.echo(f"it is rescore {running.id}; `marcod rescore list` shows how far it is")

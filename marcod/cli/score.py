"""`marcod score` and `marcod rescore`: work on the queue by hand."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from marcod import daemon, registry
from marcod.cli import output
from marcod.errors import MarcodError
from marcod.settings import Settings
from marcod.store import queue, reports, versions, workers

if TYPE_CHECKING:
    from marcod.score import BatchReport, Tally

POLL_S = 1.0


@click.command()
@output.as_json
@click.pass_obj
def score(settings: Settings, json_output: bool) -> None:
    """Score everything that waits in the queue, then end."""
    with daemon.opened(settings) as ready:
        waiting = ready.db.read(lambda connection: queue.status(connection, datetime.now(UTC))).waiting
        with output.progress("scoring", waiting) as done:
            tally = _drain(settings, ready, done)
        daemon.tend(ready.db, settings)
        status = ready.db.read(lambda connection: queue.status(connection, datetime.now(UTC)))
    if json_output:
        output.print_json({"tally": tally, "queue": status})
        return
    click.echo(f"{tally.scored} scored, {tally.failed} failed, of these {tally.quarantined} quarantined")
    if status.retrying:
        click.echo(f"{status.retrying} wait for another try; run `marcod score` again later, or `marcod queue failed`")


def _drain(settings: Settings, ready: daemon.Ready, done: Callable[[int], None]) -> "Tally":
    from marcod.score import Scorer, Tally

    total = Tally()

    def report(batch: "BatchReport") -> None:
        nonlocal total
        total = total.plus(batch)
        done(total.scored + total.failed)

    scorer = Scorer(
        ready.db,
        lambda version: ready.registry.load(version, settings.score.batch_size),
        settings.score,
        worker=daemon.worker_name(),
        roots=daemon.roots(settings),
        on_batch=report,
    )
    with daemon.stopped_by_signals() as stop:
        return scorer.drain(stop)


@click.command()
@click.option("--plate", "plate_text", required=True, metavar="KEY_OR_BARCODE", help="The plate to score again")
@click.option("--source", help="Only this source's plate, when several have one of that name")
@click.option("--model", "model_text", metavar="NAME:VERSION", help="Model version [default: the champion]")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until the plate is scored")
@output.as_json
@click.pass_obj
def rescore(
    settings: Settings, plate_text: str, source: str | None, model_text: str | None, wait: bool, json_output: bool
) -> None:
    """Score a plate with another model version, or what the champion has not seen of it. Old scores stay."""
    now = datetime.now(UTC)
    with daemon.opened(settings) as ready:
        plates = ready.db.read(lambda connection: reports.find_plates(connection, plate_text, source))
        if model_text is None:
            version = ready.db.read(versions.champion)
        else:
            version = ready.registry.register(*registry.parse(model_text), now)
        ids = [plate.id for plate in plates]
        queued = ready.db.write(lambda connection: queue.enqueue_rescore(connection, version.id, now, ids))
        left = ready.db.read(lambda connection: reports.unfinished(connection, version.id, ids))
        if wait and left:
            left = _finish_plate(settings, ready, version, ids, left)
    if json_output:
        output.print_json({"plates": plates, "model": str(version), "queued": queued, "left": left})
    elif not queued and not left:
        click.echo(f"{version} has scored every image of plate {plate_text} already")
    else:
        click.echo(f"{queued} images of plate {plate_text} queued for {version}, {left} still to do")
    if wait and left:
        raise MarcodError(f"{left} images could not be scored yet; `marcod queue status` tells more")


def _finish_plate(
    settings: Settings, ready: daemon.Ready, version: versions.Version, plate_ids: list[int], left: int
) -> int:
    """Watch other processes do it, and do here what they leave. Returns how many images are still to do."""
    total = left

    def unfinished() -> int:
        return ready.db.read(lambda connection: reports.unfinished(connection, version.id, plate_ids))

    with output.progress(f"{version}", total) as done:
        with daemon.stopped_by_signals() as stop:
            while (left := unfinished()) and _others_score(ready) and not stop.is_set():
                done(total - left)
                stop.wait(POLL_S)
        if left and not stop.is_set():
            _drain(settings, ready, done)
    return unfinished()


def _others_score(ready: daemon.Ready) -> bool:
    alive = ready.db.read(lambda connection: workers.alive(connection, datetime.now(UTC)))
    return any("score" in worker.roles.split(",") for worker in alive)

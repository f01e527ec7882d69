"""`marcod score`: work off the queue by hand."""

from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

import click

from marcod import app
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.service.periodic import housekeeping
from marcod.settings import Settings
from marcod.settings.environment import one_thread_an_operation
from marcod.store import backlog, sources, versions

if TYPE_CHECKING:
    from marcod.scoring.outcomes import BatchReport, ScoreTotals


@click.command()
@options.as_json
@pass_settings
def score(settings: Settings, json_output: bool) -> None:
    """Score everything that waits in the queue, then end."""
    with app.open_app(settings) as ready:
        waiting = ready.db.read(backlog.status, ready.db.now()).waiting
        with bars.progress("scoring", waiting) as done, app.stop_event_on_signals() as stop:
            tally = drain(settings, ready, stop, done)
        housekeeping(ready.db, settings)
        status = ready.db.read(backlog.status, ready.db.now())
        champion = ready.db.read(versions.champion)
        recorded = ready.db.read(sources.roots)
    if json_output:
        output.print_json({"tally": tally, "queue": status})
    else:
        _print(tally, status)
        if not recorded:
            output.echo(
                "no image is recorded yet; `marcod setup FOLDER` configures a source, `marcod scan` reads its images"
            )
    output.warn_of_synthetic(scored=champion.synthetic and tally.scored > 0, to_errors=json_output)


def _print(tally: "ScoreTotals", status: backlog.QueueStatus) -> None:
    output.echo(f"{tally.scored} scored, {tally.failed} failed, of these {tally.quarantined} quarantined")
    if status.retrying:
        output.echo(f"{status.retrying} wait for another try; run `marcod score` again later, or `marcod queue failed`")


def drain(settings: Settings, ready: app.App, stop: Event, done: Callable[[int], None]) -> "ScoreTotals":
    """Score what waits until nothing does or ``stop`` is set; ``done`` is called with how many images so far."""
    one_thread_an_operation()
    from marcod.scoring.outcomes import ScoreTotals
    from marcod.scoring.scorer import Scorer

    total = ScoreTotals()

    def report(batch: "BatchReport") -> None:
        nonlocal total
        total = total.plus(batch)
        done(total.scored + total.failed)

    scorer = Scorer(
        ready.db,
        lambda version: ready.registry.load(version, settings.score.most_images),
        settings.score,
        worker=app.worker_name(),
        roots=app.roots(settings),
        on_batch=report,
    )
    return scorer.drain(stop)

"""`marcod score`: work off the queue by hand, or as a job of a cluster."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Final

import click

from marcod import app, telemetry
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.service.periodic import housekeeping
from marcod.service.presence import present
from marcod.settings import Settings
from marcod.settings.environment import one_thread_an_operation
from marcod.store import backlog, sources, versions

if TYPE_CHECKING:
    from marcod.scoring.outcomes import BatchReport, ScoreTotals
    from marcod.scoring.scorer import Scorer

log = telemetry.logger(__name__)

WORK_LEFT: Final = 75
"""Exit code where the time was up, or a signal came, and work is left: EX_TEMPFAIL, try again."""

STOP_S: Final = 20.0
"""After a signal, a batch that is not finished by then is given back. Slurm and Kubernetes kill after 30 s."""


@click.command()
@click.option("--until-empty", is_flag=True, help="Score what comes meanwhile too, until nothing is left")
@click.option(
    "--idle", "idle_s", type=click.FloatRange(0), metavar="S", help="With --until-empty: wait S seconds for more"
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="End between two batches after N minutes",
)
@options.as_json
@pass_settings
def score(
    settings: Settings, until_empty: bool, idle_s: float | None, max_minutes: float | None, json_output: bool
) -> None:
    """Score everything that waits in the queue, then end.

    The exit code is 0 when nothing is left to do, and 75 when the time was up or a signal came before.
    """
    if idle_s is not None and not until_empty:
        raise click.UsageError("--idle belongs to --until-empty")
    with app.stop_event_on_signals() as stop, _time_limit(max_minutes, stop) as limit:
        with app.open_app(settings) as ready:
            turn = _Turn(settings, ready, stop, (idle_s or 0.0) if until_empty else None)
            tally = turn.run()
            left = stop.is_set() and not turn.is_done
            # Nobody may have the time to wait for what is read from the whole queue.
            status = None if stop.is_set() else ready.db.read(backlog.status, ready.db.now())
            champion = ready.db.read(versions.champion)
            recorded = stop.is_set() or bool(ready.db.read(sources.roots))
        for name, reason in turn.left_to_others.items():
            output.echo(f"source {name} is left to other hosts: {reason}", err=True)
        ended = "empty" if not left else "time" if limit.is_set() else "signal"
    if json_output:
        output.print_json({"tally": tally, "queue": status, "ended": ended})
    else:
        _print(tally, status, ended)
        if not recorded:
            output.echo(
                "no image is recorded yet; `marcod setup FOLDER` configures a source, `marcod scan` reads its images"
            )
    output.warn_of_synthetic(scored=champion.synthetic and tally.scored > 0, to_errors=json_output)
    if left:
        click.get_current_context().exit(WORK_LEFT)


@contextmanager
def _time_limit(minutes: float | None, stop: Event) -> Iterator[Event]:
    """Set ``stop`` after so many minutes. Yields an event that is set then, too."""
    over = Event()

    def end() -> None:
        over.set()
        stop.set()

    timer = threading.Timer((minutes or 0.0) * 60.0, end)
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _print(tally: "ScoreTotals", status: backlog.QueueStatus | None, ended: str) -> None:
    output.echo(f"{tally.scored} scored, {tally.failed} failed, of these {tally.quarantined} quarantined")
    if ended != "empty":
        cause = "the time is up" if ended == "time" else "stopped by a signal"
        output.echo(f"{cause}, work is left: the exit code is {WORK_LEFT}")
    if status is not None and status.retrying:
        output.echo(f"{status.retrying} wait for another try; run `marcod score` again later, or `marcod queue failed`")
    if status is not None and status.rescore_left:
        output.echo(f"{status.rescore_left} images of rescores are left; `marcod rescore list` shows them")


@dataclass
class _Turn:
    """One turn of scoring: with ``idle_s`` until nothing is left for so long, else what waits now."""

    settings: Settings
    ready: app.App
    stop: Event
    idle_s: float | None
    is_done: bool = field(default=False, init=False)
    left_to_others: Mapping[str, str] = field(default_factory=dict, init=False)

    def run(self) -> "ScoreTotals":
        """Score, as a worker among others."""
        db, worker = self.ready.db, app.worker_name()
        # A worker that waits for more images cannot say how many there will be.
        waiting = None if self.idle_s is not None else db.read(backlog.status, db.now()).to_score
        with bars.progress("scoring", waiting) as done:
            scorer = _scorer(self.settings, self.ready, worker, done)
            here = present(db, worker, "score", lambda: scorer.left_to_others)
            with here, _given_back_in_time(scorer, self.stop):
                tally = scorer.drain(self.stop) if self.idle_s is None else scorer.until_empty(self.stop, self.idle_s)
            self.left_to_others = scorer.left_to_others
            self.is_done = not self.stop.is_set() or scorer.is_done()
        if not self.stop.is_set():
            housekeeping(db, self.settings)
        return tally


@contextmanager
def _given_back_in_time(scorer: "Scorer", stop: Event) -> Iterator[None]:
    """Give back a batch that is not finished :data:`STOP_S` after ``stop``, and end the process."""
    finished = Event()

    def watch() -> None:
        stop.wait()
        if finished.wait(STOP_S):
            return
        log.warning("a batch lasts too long to be finished, it is given back")
        scorer.abandon()
        os._exit(WORK_LEFT)

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def drain(settings: Settings, ready: app.App, stop: Event, done: Callable[[int], None]) -> "ScoreTotals":
    """Score what waits until nothing does or ``stop`` is set; ``done`` is called with how many images so far."""
    return _scorer(settings, ready, app.worker_name(), done).drain(stop)


def _scorer(settings: Settings, ready: app.App, worker: str, done: Callable[[int], None]) -> "Scorer":
    one_thread_an_operation()
    from marcod.scoring.outcomes import ScoreTotals
    from marcod.scoring.scorer import Scorer

    total = ScoreTotals()

    def report(batch: "BatchReport") -> None:
        nonlocal total
        total = total.plus(batch)
        done(total.scored + total.failed)

    return Scorer(
        ready.db,
        lambda version: ready.registry.load(version, settings.score.most_images),
        settings.score,
        worker=worker,
        roots=app.roots(settings),
        on_batch=report,
    )

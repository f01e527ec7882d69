"""`marcod queue`: the images that wait, failed or are gone, and trying again."""

from functools import partial

import click

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.database import workers
from marcod.errors import NotFoundError
from marcod.settings import Settings
from marcod.store import backlog


@click.group()
def queue() -> None:
    """Show the queue, retry failed images, and accept that images are gone."""


@queue.command()
@options.as_json
@pass_settings
def status(settings: Settings, json_output: bool) -> None:
    """Count jobs by state and list the workers that are alive."""
    with app.reading(settings) as ready:
        now = ready.db.now()
        counts = ready.db.read(backlog.status, now)
        alive = ready.db.read(workers.alive, now)
    if json_output:
        output.print_json({"queue": counts, "workers": alive})
        return
    output.echo(
        f"{counts.waiting} waiting, {counts.leased} being scored, {counts.retrying} waiting for another try, "
        f"{counts.failed} failed"
    )
    if counts.oldest_enqueued_at is not None:
        age_s = (now - counts.oldest_enqueued_at).total_seconds()
        output.echo(f"the oldest waits since {counts.oldest_enqueued_at:%Y-%m-%d %H:%M:%S} UTC ({age_s:.0f} s)")
    if counts.rescore_left:
        output.echo(f"{text.count(counts.rescore_left, 'image')} of rescores behind them; see `marcod rescore list`")
    rows = [(w.name, w.roles, w.started_at.strftime("%Y-%m-%d %H:%M"), w.marcod_version) for w in alive]
    if rows:
        listings.show("Workers", ("name", "roles", "since (UTC)", "version"), rows, spare=(("version",),))
    else:
        output.echo("no worker is running; `marcod run` starts one, `marcod score` works off the queue once")


@queue.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def failed(settings: Settings, limit: int, json_output: bool) -> None:
    """List quarantined images with their errors, the latest first."""
    with app.reading(settings) as ready:
        now = ready.db.now()
        rows = ready.db.read(backlog.quarantined, limit)
        total = len(rows) if len(rows) < limit else ready.db.read(backlog.status, now).failed
    if json_output:
        output.print_json(rows)
        return
    columns = ("image", "source", "path", "attempts", "error")
    cells = [(r.image_id, r.source, r.path, r.attempts, r.error) for r in rows]
    title = listings.counted(len(rows), total, "failed image")
    listings.show(title, columns, cells, spare=(("attempts",), ("source",)), prose=True)
    if rows:
        output.echo("`marcod queue retry` puts them all back, `marcod queue retry IMAGE...` some")


@queue.command()
@click.argument("images", nargs=-1, type=int)
@pass_settings
def retry(settings: Settings, images: tuple[int, ...]) -> None:
    """Put failed images back into the queue: IMAGES by number, or all."""
    from marcod.store import results

    with app.open_app(settings, brief=True) as ready:
        now = ready.db.now()
        count = ready.db.write_portions(partial(results.retry_failed, now=now, image_ids=images or None))
    if images and not count:
        raise NotFoundError("none of these images is in quarantine; `marcod queue failed` lists those that are")
    output.echo(f"{text.count(count, 'image is', 'images are')} back in the queue")


@queue.command()
@click.option("--all", "every", is_flag=True, help="Also images with a score, and those accepted as gone")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def gone(settings: Settings, every: bool, limit: int, json_output: bool) -> None:
    """List images whose files are gone before anything scored them, the latest first.

    A score given before goes on counting. A file that comes back is scored.
    """
    with app.reading(settings) as ready:
        rows = ready.db.read(backlog.gone, limit, every=every)
    if json_output:
        output.print_json(rows)
        return
    columns = ("image", "source", "path", "gone (UTC)", "state")
    cells = [(r.image_id, r.source, r.path, f"{r.gone_at:%Y-%m-%d %H:%M}", _state(r)) for r in rows]
    title = text.count(len(rows), "image whose file is gone", "images whose files are gone")
    listings.show(title, columns, cells, spare=(("gone (UTC)",), ("source",)), prose=True)
    if any(not (r.scored or r.accepted) for r in rows):
        output.echo("`marcod queue accept IMAGE...` accepts that some are gone, `--all` that all are")


def _state(row: backlog.Gone) -> str:
    if row.scored:
        return "its score counts"
    return "accepted" if row.accepted else "never scored"


@queue.command()
@click.argument("images", nargs=-1, type=int)
@click.option("--all", "every", is_flag=True, help="Every image that `marcod queue gone` lists")
@pass_settings
def accept(settings: Settings, images: tuple[int, ...], every: bool) -> None:
    """Accept that images are gone that nothing ever scored: IMAGES by number, or --all.

    `status`, `doctor` and the metrics leave them out from then on. `score.accept_gone = true` accepts all by itself.
    """
    if bool(images) == every:
        raise click.UsageError("name images, or --all for every one that `marcod queue gone` lists")
    with app.open_app(settings, brief=True) as ready:
        work = partial(backlog.accept_gone, image_ids=images or None, actor=options.actor(), now=ready.db.now())
        count = ready.db.write_portions(work)
    if images and not count:
        raise NotFoundError("none of these images is gone unscored; `marcod queue gone` lists those that are")
    output.echo(f"{text.count(count, 'image is', 'images are')} accepted as gone")

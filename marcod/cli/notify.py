"""`marcod notify`: the targets, undelivered messages, and tests."""

from datetime import UTC, datetime

import click

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.errors import MarcodError
from marcod.notify import notifier as notifications
from marcod.settings import NotifySettings, Settings
from marcod.store import outbox
from marcod.store.outbox import MessageStatus, TargetStatus


@click.group()
def notify() -> None:
    """Show and test notifications by webhook and e-mail."""


@notify.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0, 10_000), help="Messages listed")
@options.as_json
@pass_settings
def list_(settings: Settings, limit: int, json_output: bool) -> None:
    """List the targets with how they stand, and the latest messages.

    The exit code is 3 while a message is given up or waits for a target that is not configured.
    """
    with app.reading(settings) as ready:
        standings = ready.db.read(outbox.target_statuses)
        sendings = ready.db.read(outbox.message_statuses, limit)
    unused = {name: TargetStatus(name, 0, 0, 0, 0, None, None) for name in settings.notify}
    known = unused | {standing.target: standing for standing in standings}
    shown = [(name, settings.notify.get(name), standing) for name, standing in sorted(known.items())]
    if json_output:
        output.print_json({"targets": [_record(*row) for row in shown], "messages": sendings})
    else:
        _print(shown, sendings)
    output.end(attention=any(s.failed or (target is None and (s.waiting or s.retrying)) for _, target, s in shown))


def _record(name: str, target: NotifySettings | None, standing: TargetStatus) -> dict[str, object]:
    about = {"way": _way(target), "events": list(target.events) if target else []}
    counts = {key: getattr(standing, key) for key in ("waiting", "retrying", "failed", "sent", "last_sent_at", "error")}
    return {"target": name} | about | counts


def _way(target: NotifySettings | None) -> str:
    """Never the url, which may hold a secret."""
    if target is None:
        return "not configured"
    return "webhook" if target.url is not None else "e-mail"


def _print(shown: list[tuple[str, NotifySettings | None, TargetStatus]], sendings: list[MessageStatus]) -> None:
    if not shown:
        output.echo("no target is configured; add a [notify.NAME] table with `url` or `to`")
        return
    rows = [
        (name, _way(target), s.sent, s.waiting, s.retrying, s.failed, _time(s.last_sent_at), s.error)
        for name, target, s in shown
    ]
    columns = ("target", "way", "sent", "waiting", "retrying", "failed", "last (UTC)", "trouble")
    listings.show("Targets, in events", columns, rows, spare=(("last (UTC)",), ("way",)), prose=True)
    if sendings:
        lines = [(s.message, s.target, s.events, s.attempts, _state(s), s.error) for s in sendings]
        heads = ("message", "target", "events", "tries", "state (UTC)", "said")
        listings.show("Latest messages", heads, lines, spare=(("tries",),), prose=True)
    if any(standing.failed for _, _, standing in shown):
        output.echo("`marcod notify retry` sends what failed again")


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def _state(sending: MessageStatus) -> str:
    if sending.sent_at is not None:
        return f"sent {_time(sending.sent_at)}"
    if sending.failed_at is not None:
        return f"given up {_time(sending.failed_at)}"
    return f"again at {_time(sending.next_at)}"


@notify.command()
@click.argument("name")
@pass_settings
def test(settings: Settings, name: str) -> None:
    """Send a test to the target NAME now and say what came of it."""
    outcome = notifications.test(settings, name, datetime.now(UTC))
    if not outcome.sent:
        raise MarcodError(f"{name}: {outcome.error}")
    output.echo(f"{name}: sent" + (f", but {outcome.error}" if outcome.error else ""))


@notify.command()
@click.argument("name", required=False)
@pass_settings
def retry(settings: Settings, name: str | None) -> None:
    """Have what failed or waits for another try sent at once: of the target NAME, or of all."""
    if name is not None and name not in settings.notify:
        raise notifications.unknown_target(settings, name)
    with app.open_app(settings, brief=True) as ready:
        count = ready.db.write(outbox.retry, datetime.now(UTC), name)
    output.echo(f"{text.count(count, 'event is', 'events are')} to be sent again")

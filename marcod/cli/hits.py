"""`marcod hits`: the crystals over all plates."""

import re
from datetime import UTC, datetime, timedelta

import click

from marcod import daemon
from marcod.cli import output
from marcod.settings import Settings
from marcod.store import reports

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _since(_ctx: click.Context, _param: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    try:
        if match:
            return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter("give an age such as 90m, 24h, 7d, 2w, or a date such as 2026-05-01") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.command()
@click.option("--since", callback=_since, metavar="AGE|DATE", help="Only hits found since, such as 24h or 2026-05-01")
@click.option("--limit", default=25, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@output.as_json
@click.pass_obj
def hits(settings: Settings, since: datetime | None, limit: int, json_output: bool) -> None:
    """List the drops in which the champion saw crystals, over all plates, best first."""
    with daemon.opened(settings) as ready:
        found = ready.db.read(lambda connection: reports.hits(connection, since, limit))
        champion = ready.registry.ensure_champion(datetime.now(UTC))
    if json_output:
        output.print_json(found)
        return
    output.console().print(output.hits_table(found))
    if champion.synthetic:
        output.console().print(output.SYNTHETIC_NOTICE, style="yellow")

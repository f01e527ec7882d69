"""`marcod hits`: the crystals over all plates."""

from datetime import UTC, datetime

import click

from marcod import daemon
from marcod.cli import output
from marcod.cli import since as since_option
from marcod.settings import Settings
from marcod.store import reports


@click.command()
@click.option(
    "--since", callback=since_option.parse, metavar="AGE|DATE", help="Only hits found since, such as 24h or 2026-05-01"
)
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

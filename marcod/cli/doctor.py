"""`marcod doctor`: is everything well, and what to do where it is not."""

from collections import Counter
from typing import Final

import click
from rich.text import Text

from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import configured
from marcod.health import doctor as examination
from marcod.health.doctor import HealthFinding, Severity
from marcod.settings import loading

STYLES: Final = {Severity.OK: "green", Severity.ATTENTION: "yellow", Severity.BROKEN: "bold red"}
MARKS: Final = {Severity.OK: "ok", Severity.ATTENTION: "look", Severity.BROKEN: "BROKEN"}


@click.command()
@click.option("--no-device", is_flag=True, help="Leave out loading the model and its test batch, which take seconds")
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, no_device: bool, json_output: bool) -> None:
    """Examine configuration, database, sources, models, device, clock, disks and limits; changes nothing.

    Exit code 0 when all is well, 3 when something needs attention.
    """
    chosen = configured(ctx)
    origins = loading.origins(chosen.file, chosen.overrides)
    found = []
    for finding in examination.examine(chosen.settings, origins, device=not no_device):
        found.append(finding)
        if not json_output:
            _tell(finding, new_area=len(found) < 2 or found[-2].area != finding.area)
    counts = Counter(finding.verdict for finding in found)
    if json_output:
        output.print_json({"findings": found, "counts": {verdict: counts[verdict] for verdict in Severity}})
    else:
        output.echo(_verdict(counts))
    ctx.exit(0 if counts[Severity.OK] == len(found) else output.ATTENTION)


def _tell(finding: HealthFinding, *, new_area: bool) -> None:
    if new_area:
        output.echo(finding.area, style="bold")
    mark = Text(f"{MARKS[finding.verdict]:>6}", STYLES[finding.verdict])
    listings.show("", ("", ""), [(mark, f"{finding.subject}: {finding.text}")], prose=True)
    if finding.advice and finding.verdict is not Severity.OK:
        listings.show("", ("", ""), [(Text(" " * len(mark)), finding.advice)], prose=True, styles=("dim",))


def _verdict(counts: "Counter[Severity]") -> str:
    if not counts[Severity.ATTENTION] and not counts[Severity.BROKEN]:
        return "all is well"
    return f"{counts[Severity.BROKEN]} broken, {counts[Severity.ATTENTION]} to look at, {counts[Severity.OK]} well"

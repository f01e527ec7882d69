"""`marcod demo`: see it work, with nothing configured."""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from marcod import plates
from marcod.cli import hits, maps, output
from marcod.store import reports
from marcod.store.engine import Database

if TYPE_CHECKING:
    from marcod.demo import Outcome, Step

BEST = 10


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make everything [default: a new temporary folder, which stays]",
)
def demo(folder: Path | None) -> None:
    """Let synthetic plates of three imagers arrive, score them with the real daemon, and show the results."""
    from marcod import demo as demonstration

    where = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="marcod-demo-"))
    console = output.console()
    console.print(f"Synthetic exports of a Rock Imager, a Minstrel and HWI arrive in {where}\n", style="bold")
    with _Bars() as on_step:
        outcome = demonstration.run(where, on_step)
    db = Database(demonstration.database_url(where))
    _show_plates(db)
    _show_hits(db)
    db.close()
    console.print(
        f"\n{outcome.images} images of {outcome.images + outcome.other_files} files scored in {outcome.seconds:.0f} s; "
        f"from file to score {outcome.median_s:.1f} s (median), {outcome.percentile_95_s:.1f} s (95th percentile), "
        "of which 1 s is waiting for the file to stand still."
    )
    output.warn_of_synthetic(scored=True)
    _show_next_steps(outcome)


class _Bars:
    """Two bars on a terminal; a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._console = output.console(to_errors=True)
        columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._last_line = 0.0

    def __enter__(self) -> "_Bars":
        self._bars.start()
        self._arrived = self._bars.add_task("files arrive")
        self._scored = self._bars.add_task("images scored")
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, step: "Step") -> None:
        self._bars.update(self._arrived, completed=step.delivered, total=step.total)
        self._bars.update(self._scored, completed=step.scored, total=step.total, description=step.text)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            click.echo(f"{step.text}: {step.delivered} arrived, {step.scored} of {step.total} scored", err=True)


def _show_plates(db: Database) -> None:
    console = output.console()
    for summary in reversed(db.read(lambda connection: reports.summaries(connection))):
        shown = plates.load(db, summary.plate_key, inspection=summary.inspection_key)
        maps.print_plate(console, shown)


def _show_hits(db: Database) -> None:
    found = db.read(lambda connection: reports.hits(connection, None, BEST))
    output.console().print(hits.hits_table(found))


_NEXT_STEPS = """
Look further:
  {marcod} plate show CI030117
  {marcod} hits --since 1h
  {marcod} queue status
  {marcod} plate export X000016042 --format csv
  sqlite3 {database} "select plate_key, inspection_key, hits, scored, complete from lims_plate_summary_v1"
  sqlite3 {database} "select plate_key, well, p_crystals from lims_image_score_v1 order by p_crystals desc limit 9"
The exports, the database, the configuration and the log are in {folder}."""


def _show_next_steps(outcome: "Outcome") -> None:
    folder = outcome.folder
    marcod = f"{'marcod' if shutil.which('marcod') else sys.argv[0]} --config {outcome.config}"
    click.echo(_NEXT_STEPS.format(marcod=marcod, database=folder / "marcod.sqlite", folder=folder))

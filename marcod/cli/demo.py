"""`marcod demo`: the program at work on rendered plates, with nothing configured."""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from marcod import text
from marcod.cli.common import listings, options, output, plate_maps
from marcod.database.engine import Database
from marcod.domain import DropClass, hit_rule
from marcod.model import bundle, published, registry
from marcod.plates import plate_map, reports
from marcod.plates.plate_map import PlateMap
from marcod.store import versions

if TYPE_CHECKING:
    import subprocess

    from marcod.demo import DemoResult, Drawn, Export, Step

BEST: Final = 10
PANEL: Final = 100
"""Widest that a framed paragraph is, in characters."""

ARRIVE: Final = "images arrive"

CLASSES: Final = (DropClass.CRYSTALS, DropClass.PRECIPITATE, DropClass.CLEAR, DropClass.OTHER)


@click.command()
@click.option(
    "--folder", type=options.FOLDER, help="Where to make everything [default: a new temporary folder, which stays]"
)
@click.option(
    "--models",
    type=options.FOLDER,
    help="Where the fetched model is kept for the next demonstration [default: in the demonstration's folder]",
)
@click.option("--wells", type=click.IntRange(min=1), help="Deliver at most this many wells of each plate")
@click.option("--web", "with_page", is_flag=True, help="Show the plates in your browser as they arrive, until Ctrl-C")
def demo(folder: Path | None, models: Path | None, wells: int | None, with_page: bool) -> None:
    """Let rendered plates of three imagers arrive, score them with the real daemon, and show the results.

    The published MARCO is fetched first, as `marcod model fetch marco` does. Where it cannot be had, the small model
    that ships with marcod scores instead. On a terminal it ends with the offer to show its plates in your browser.
    """
    from marcod import demo as demonstration

    for given in (folder, models):
        if given is not None:
            options.check_tree(given)
    where = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="marcod-demo-"))
    arriving = demonstration.exports(wells)
    config = demonstration.prepare(where, models.absolute() if models else where / "models", arriving)
    console = output.console()
    output.say(console, f"Rendered plates of a Rock Imager, a Minstrel and HWI arrive in {where}\n", "bold")
    with _waiting("getting the published MARCO: 43 MB, once") as on_words:
        missing = demonstration.fetch_model(config, on_words)
    if missing is not None:
        _print_missing(console, missing)
    with _page(console, where, config) if with_page else nullcontext() as served:
        with _Bars() as on_step:
            outcome = demonstration.run(where, config, arriving, on_step)
        _print_everything(console, where, config, outcome, arriving, missing)
        if served is not None:
            _await_end(console, config, served)
    if not with_page and sys.stdin.isatty() and console.is_terminal:
        _offer_page(console, where, config)


@contextmanager
def _page(console: Console, where: Path, config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Serve the page, and say where it is."""
    from marcod import demo as demonstration

    with demonstration.page(config, where / "page.log") as served:
        output.say(console, f"Plates show as they arrive at {demonstration.page_address(config)}\n")
        yield served


def _offer_page(console: Console, where: Path, config: Path) -> None:
    """Ask if the plates are to be shown in the browser, and show them until Ctrl-C."""
    if click.confirm("\nLook at these plates in your browser?", default=True):
        with _page(console, where, config) as served:
            _await_end(console, config, served)


def _await_end(console: Console, config: Path, served: "subprocess.Popen[bytes]") -> None:
    from marcod import demo as demonstration

    output.say(console, f"\nThe page is at {demonstration.page_address(config)}; Ctrl-C ends it.", "bold")
    with suppress(KeyboardInterrupt):
        served.wait()


def _print_everything(
    console: Console,
    where: Path,
    config: Path,
    outcome: "DemoResult",
    arriving: "Sequence[Export]",
    missing: str | None,
) -> None:
    """Print plates, hits, times and what to do next."""
    from marcod import demo as demonstration

    db = Database(demonstration.database_url(where))
    try:
        _print_results(console, db, demonstration.drawn(arriving))
        champion = db.read(versions.champion)
    finally:
        db.close()
    _print_outcome(console, outcome, champion)
    if missing is not None:
        _print_missing(console, missing)
    _print_next_steps(console, where, config)


@contextmanager
def _waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show that work is in progress: a spinner with the latest message on a terminal, one line elsewhere."""
    console = output.console(to_errors=True)
    if not console.is_terminal:
        output.echo(what, err=True)
        yield lambda message: None
        return
    with console.status(what) as status:
        yield lambda message: status.update(Text(f"{what}: {text.printable(message)}"[: console.width - 4]))


class _Bars:
    """Two bars on a terminal; a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._console = output.console(to_errors=True)
        columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._last_line = 0.0

    def __enter__(self) -> "_Bars":
        self._bars.start()
        self._arrived = self._bars.add_task(ARRIVE, total=None)
        self._scored = self._bars.add_task("images are scored", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, step: "Step") -> None:
        first = ARRIVE if step.delivered else step.text
        self._bars.update(self._arrived, completed=step.delivered, total=step.total, description=first)
        self._bars.update(self._scored, completed=step.scored, total=step.total)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            output.echo(f"{step.text}: {step.delivered} arrived, {step.scored} of {step.total} scored", err=True)


def _print_missing(console: Console, reason: str) -> None:
    """Print a panel about the model that scores instead of the published one."""
    notice = Text()
    notice.append("The published MARCO could not be had.\n", "bold red")
    notice.append(f"{text.printable(reason)}\n\n")
    notice.append(
        "The demonstration goes on with the model that comes with marcod. It learned from rendered drops alone, such "
        f"as these, so here it looks better than it is: it {versions.JUDGED}.\n"
    )
    notice.append(f"{versions.REAL_MODEL}.")
    width = min(console.width, PANEL)
    console.print(Panel(notice, border_style="bold red", width=width), width=width, soft_wrap=False)


def _print_results(console: Console, db: Database, drawn: "Drawn") -> None:
    for summary in reversed(db.read(reports.summaries)):
        shown = plate_map.load(db, summary.plate_key, inspection=summary.inspection_key)
        plate_maps.print_plate(console, shown)
        console.print(_comparison(shown, drawn), "")
    found = db.read(reports.hits, None, BEST)
    console.print(_best(found, drawn))


def _comparison(shown: PlateMap, drawn: "Drawn") -> listings.Listing:
    """One row per class that was drawn: its drops by likeliest class, and its hits."""
    source = shown.summary.source
    likeliest = Counter((drawn[source, drop.image.path], drop.image.label) for drop in shown.drops)
    hits = Counter(drawn[source, drop.image.path] for drop in shown.drops if drop.hit)
    rows = []
    for truth in CLASSES:
        counts = [likeliest[truth, str(label)] for label in CLASSES]
        rows.append((truth.lower(), sum(counts), *counts, hits[truth]))
    columns = ("drawn as", "drops", *(label.lower() for label in CLASSES), "hits")
    rule = hit_rule(shown.version.crystal_threshold)
    return listings.table(f"Drawn, and the likeliest class by {shown.version}; hit: {rule}", columns, rows)


def _best(found: list[reports.Hit], drawn: "Drawn") -> listings.Listing:
    """Tabulate the best hits with the class that was drawn."""
    rows = [
        (
            f"{hit.p_crystals or 0.0:.3f}",
            drawn[hit.source, hit.best_path or ""].lower(),
            hit.barcode or hit.plate_key,
            f"{hit.well}.{hit.drop_number}",
            hit.first_hit_inspection_key,
            hit.source,
        )
        for hit in found
    ]
    columns = ("p(crystals)", "drawn as", "plate", "drop", "first in", "source")
    return listings.table(f"The {len(found)} best hits over all plates", columns, rows)


def _print_outcome(console: Console, outcome: "DemoResult", champion: versions.Version) -> None:
    """Print the time it took, and what the scores are worth."""
    files = outcome.images + outcome.other_files
    output.say(
        console,
        f"\n{outcome.images} images of {files} files scored by {champion} in {outcome.seconds:.0f} s (the other "
        f"{outcome.other_files} are small copies, `_th`, that a Rock Imager writes beside its images); from file to "
        f"score {outcome.median_s:.1f} s (median), {outcome.percentile_95_s:.1f} s (95th percentile), of which 1 s is "
        "waiting for the file to stand still.",
    )
    if not champion.synthetic:
        model = published.find(champion.name)
        output.say(
            console, f"{champion} is {model.title} ({model.licence}); `marcod model show champion` says what to cite."
        )
        output.say(
            console,
            f"These drops are rendered, and {champion} never saw such: it learned from photographs. How often it "
            "agrees with what was drawn tells nothing about your plates; `marcod model evaluate` measures it there, "
            "on labels.",
            "yellow",
        )


_LOOK_FURTHER: Final = """
Look further at the demonstration:
  export MARCOD_CONFIG={config}
  {marcod} model list
  {marcod} plate show CI030117
  {marcod} hits
  {marcod} web --open
  sqlite3 {folder}/marcod.sqlite \\
    "select plate_key, inspection_key, hits, scored from lims_plate_summary_v1"
"""
_OWN_PLATES: Final = """
On your own plates, with a database of your own:
  unset MARCOD_CONFIG
  {marcod} model fetch marco   # MARCO becomes champion there{committee}
  {marcod} setup FOLDER        # see which imager wrote it, configure it
  {marcod} scan                # queue the images that are there
  {marcod} score               # score them
  {marcod} plate list          # then `plate show PLATE`
  {marcod} hits                # the best drops over all plates
  {marcod} run                 # watch, queue and score from then on"""


def _print_next_steps(console: Console, folder: Path, config: Path) -> None:
    marcod = "marcod" if shutil.which("marcod") else sys.argv[0]
    click.echo(_LOOK_FURTHER.format(marcod=marcod, config=config, folder=folder), nl=False)
    output.say(console, f"Exports, database, configuration and log are in {folder}")
    other = registry.companion(bundle.FIRST_FAMILY)
    line = f"\n  {marcod} model combine marco:1 {other} --weights 1,2 --challenge   # a committee as challenger"
    click.echo(_OWN_PLATES.format(marcod=marcod, committee="" if other is None else line))

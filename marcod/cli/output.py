"""How results are printed: tables and plate maps for people, JSON for programs."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from marcod.domain import DropClass, row_letters
from marcod.plates import PlateMap
from marcod.store.reports import Hit, Summary

Command = TypeVar("Command", bound=Callable[..., Any])

STYLE_OF_HIT: Final = "bold white on dark_green"
STYLE_OF_CLASS: Final = {
    DropClass.CRYSTALS: "dark_green on pale_green1",
    DropClass.PRECIPITATE: "black on dark_goldenrod",
    DropClass.CLEAR: "black on light_cyan3",
    DropClass.OTHER: "white on grey35",
}
LETTER_OF_CLASS: Final = {
    DropClass.CRYSTALS: "x",
    DropClass.PRECIPITATE: "p",
    DropClass.CLEAR: ".",
    DropClass.OTHER: "o",
}
WIDE: Final = 400
LINE_EVERY_S: Final = 15.0
SYNTHETIC_NOTICE: Final = (
    "Scored by a model trained on synthetic drops: for trying the program, not for deciding about crystals."
)


def as_json(command: Command) -> Command:
    """The ``--json`` option that every reading command has."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON for programs")(command)


def console(*, to_errors: bool = False) -> Console:
    """A rich console on standard output or standard error."""
    stream = sys.stderr if to_errors else sys.stdout
    # Away from a terminal nothing is cut to fit a width nobody looks at.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else WIDE)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json_text(value))


def json_text(value: object) -> str:
    """A value, dataclasses and times included, as JSON."""
    return json.dumps(value, default=_plain, indent=2)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; numbers are right-aligned."""
    made = Table(title=Text(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    filled = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(filled) and all(isinstance(row[index], (int, float)) for row in filled)
        made.add_column(column, justify="right" if numeric else "left")
    for row in filled:
        made.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    return made


def printable(text: str) -> str:
    """Text from a file name or a database, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def state_of(summary: Summary) -> str:
    """How far an inspection is."""
    if summary.complete:
        return f"complete ({summary.complete_rule})" if summary.complete_rule else "complete"
    return f"{summary.scored} of {summary.expected or summary.seen}"


def plate_map(shown: PlateMap) -> Table:
    """The plate as a grid: a letter a drop in its class's colour, bold where the probability makes it a hit."""
    size = shown.format
    grid = Table(box=None, pad_edge=False, padding=(0, 1 if size.columns <= 24 else 0), show_header=size.columns <= 24)
    grid.add_column("")
    for column in range(1, size.columns + 1):
        grid.add_column(str(column), justify="center")
    wells: dict[tuple[int, int], Text] = {}
    for drop in shown.drops:
        cell = wells.setdefault((drop.well_row, drop.well_column), Text())
        cell.append(*_cell(drop.label, drop.failed, drop.p_crystals, shown.version.crystal_threshold))
    for row in range(1, size.rows + 1):
        cells = [wells.get((row, column), Text(" ")) for column in range(1, size.columns + 1)]
        grid.add_row(Text(row_letters(row), style="dim"), *cells)
    return grid


def _cell(label: str | None, failed: bool, p_crystals: float | None, threshold: float) -> tuple[str, str]:
    if label is None:
        return ("!", "bold white on red") if failed else ("?", "dim")
    drop_class = DropClass(label)
    if p_crystals is not None and p_crystals >= threshold:
        return "X", STYLE_OF_HIT
    return LETTER_OF_CLASS[drop_class], STYLE_OF_CLASS[drop_class]


def legend() -> Text:
    """What the letters of a plate map mean."""
    text = Text()
    for letter, style, meaning in (
        ("X", STYLE_OF_HIT, "hit"),
        ("x", STYLE_OF_CLASS[DropClass.CRYSTALS], "crystals, no hit"),
        ("p", STYLE_OF_CLASS[DropClass.PRECIPITATE], "precipitate"),
        (".", STYLE_OF_CLASS[DropClass.CLEAR], "clear"),
        ("o", STYLE_OF_CLASS[DropClass.OTHER], "other"),
        ("!", "bold white on red", "failed"),
        ("?", "dim", "waiting"),
    ):
        text.append(letter, style).append(f" {meaning}   ")
    return text


def print_plate(console: Console, shown: PlateMap) -> None:
    """A plate's map, summary and best wells."""
    summary = shown.summary
    name = printable(summary.barcode or summary.plate_key)
    console.print(
        f"Plate {name} of {summary.source}, inspection {summary.inspection_key}, {shown.version}", style="bold"
    )
    console.print(plate_map(shown))
    console.print(legend())
    console.print(
        f"{summary.hits} hits, {summary.n_crystals} crystals, {summary.n_precipitate} precipitate, "
        f"{summary.n_clear} clear, {summary.n_other} other; {summary.failed} failed; {state_of(summary)}"
    )
    best = sorted((d for d in shown.drops if d.p_crystals), key=lambda d: -(d.p_crystals or 0.0))[:8]
    console.print("best: " + ", ".join(f"{d.well}.{d.drop_number} {d.p_crystals:.2f}" for d in best) + "\n")


def hits_table(found: list[Hit]) -> Table:
    """Hits over all plates."""
    columns = ("crystals", "plate", "well", "drop", "inspection", "source", "image")
    rows = [
        (f"{h.p_crystals:.3f}", h.barcode or h.plate_key, h.well, h.drop_number, h.inspection_key, h.source, h.path)
        for h in found
    ]
    return table(f"{len(found)} hits, best first", columns, rows)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with time left on a terminal, nothing elsewhere (log lines tell there). Yields ``done(count)``."""
    with _bar() as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.update(task, completed=count)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """For work in several stages, none of which logs: a bar a stage on a terminal, a line now and then elsewhere.

    Yields ``report(stage, done, total)``.
    """
    last_line = 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last_line
        bar.update(task, description=stage, completed=done, total=total)
        if bar.disable and (done == total or time.monotonic() - last_line >= LINE_EVERY_S):
            last_line = time.monotonic()
            click.echo(f"{stage}: {done} of {total}", err=True)

    with _bar() as bar:
        task = bar.add_task("")
        yield report


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console(to_errors=True), disable=not sys.stderr.isatty())

"""How results are printed: tables and plate maps for people, JSON for programs."""

import dataclasses
import json
import sys
import tempfile
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
from marcod.errors import ConfigError, MarcodError
from marcod.plates import PlateMap
from marcod.store import versions
from marcod.store.history import PlateHistory
from marcod.store.reports import Hit, Summary
from marcod.store.summaries import Verdict
from marcod.store.training import Run
from marcod.store.versions import Version

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
ATTENTION: Final = 3
"""Exit code: something was left for people to look at."""

SHORT_KEY: Final = 4
"""Characters of an inspection's key up to which it heads its own column."""


def as_json(command: Command) -> Command:
    """The ``--json`` option that every reading command has."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON for programs")(command)


def console(*, to_errors: bool = False) -> Console:
    """A rich console on standard output or standard error."""
    stream = sys.stderr if to_errors else sys.stdout
    # Away from a terminal nothing is cut to fit a width nobody looks at.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else WIDE)


def warn_of_synthetic(*, scored: bool, to_errors: bool = False) -> None:
    """Print the notice where ``scored`` says that a model trained on rendered drops alone gave what was shown."""
    if scored:
        _warn(versions.SYNTHETIC_NOTICE, to_errors=to_errors)


def warn_of_synthetic_champion(champion: Version, *, to_errors: bool = False) -> None:
    """Say what a champion that learned from rendered drops alone is not for; nothing of any other."""
    if champion.synthetic:
        _warn(f"{champion} was {versions.RENDERED_ALONE}. {versions.REAL_MODEL}.", to_errors=to_errors)


def _warn(text: str, *, to_errors: bool) -> None:
    console(to_errors=to_errors).print(Text(text, "yellow"), soft_wrap=False)


def without_token(run: Run) -> dict[str, Any]:
    """A training run for programs; its token is nobody's business."""
    return {name: value for name, value in dataclasses.asdict(run).items() if name != "token"}


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
    made = Table(title=Text(harmless(title)), title_justify="left", header_style="bold", box=None, pad_edge=False)
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


def harmless(text: str) -> str:
    """:func:`printable` text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


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
        cell.append(*_mark(drop, shown.version))
    for row in range(1, size.rows + 1):
        cells = [wells.get((row, column), Text(" ")) for column in range(1, size.columns + 1)]
        grid.add_row(Text(row_letters(row), style="dim"), *cells)
    return grid


def _mark(drop: Verdict, version: Version) -> tuple[str, str]:
    """The letter of a drop and its style; what a person said is underlined."""
    letter, style = _letter(drop, version)
    return letter, style if drop.said is None else f"underline {style}"


def _letter(drop: Verdict, version: Version) -> tuple[str, str]:
    if drop.hit(version):
        return "X", STYLE_OF_HIT
    if drop.shown_label is None:
        return ("!", "bold white on red") if drop.failed else ("?", "dim")
    drop_class = DropClass(drop.shown_label)
    return LETTER_OF_CLASS[drop_class], STYLE_OF_CLASS[drop_class]


def legend(drops: Iterable[Verdict | None]) -> Text:
    """What the letters of a plate map mean; of what people said only where they said something."""
    text = Text()
    said = any(drop is not None and drop.said is not None for drop in drops)
    for letter, style, meaning in (
        ("X", STYLE_OF_HIT, "hit"),
        ("x", STYLE_OF_CLASS[DropClass.CRYSTALS], "crystals, no hit"),
        ("p", STYLE_OF_CLASS[DropClass.PRECIPITATE], "precipitate"),
        (".", STYLE_OF_CLASS[DropClass.CLEAR], "clear"),
        ("o", STYLE_OF_CLASS[DropClass.OTHER], "other"),
        ("!", "bold white on red", "failed"),
        ("?", "dim", "not scored"),
        *([("a", "underline", "a person's word")] if said else []),
    ):
        text.append(letter, style).append(f" {meaning}   ")
    return text


def print_plate(console: Console, shown: PlateMap) -> None:
    """A plate's map, summary and best wells."""
    summary = shown.summary
    _print_heading(console, shown, f"inspection {summary.inspection_key}")
    console.print(plate_map(shown))
    console.print(legend(shown.drops))
    console.print(
        f"{summary.hits} hits, {summary.n_crystals} crystals, {summary.n_precipitate} precipitate, "
        f"{summary.n_clear} clear, {summary.n_other} other; {summary.failed} failed; {state_of(summary)}"
        + (f"; {labelled} labelled by people" if (labelled := sum(d.said is not None for d in shown.drops)) else "")
    )
    best = sorted((d for d in shown.drops if d.p_crystals), key=lambda d: -(d.p_crystals or 0.0))[:8]
    console.print("best: " + ", ".join(f"{d.well}.{d.drop_number} {d.p_crystals:.2f}" for d in best) + "\n")


def _print_heading(console: Console, shown: PlateMap, what: str) -> None:
    summary, papers = shown.summary, shown.papers
    name = printable(summary.barcode or summary.plate_key)
    told = [f"{word} {text}" for word, text in (("project", papers.project), ("screen", papers.screen)) if text]
    parts = [f"Plate {name} of {summary.source}", *map(printable, told), what, str(shown.version)]
    console.print(Text(", ".join(parts)), style="bold")


def print_history(console: Console, shown: PlateMap, past: PlateHistory, *, all_drops: bool) -> None:
    """The drops of a plate through its inspections: a line a drop, a mark an inspection in order of time."""
    drops = past.drops if all_drops else past.ever_hit()
    _print_heading(console, shown, f"{len(past.inspections)} inspections")
    short = all(len(i.key) <= SHORT_KEY for i in past.inspections)
    heads = [printable(i.key) if short else str(n) for n, i in enumerate(past.inspections, 1)]
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for head in ("drop", *heads, "trend", "first hit", "highest"):
        grid.add_column(head, justify="center" if head in heads else "left")
    for drop in drops:
        marks = [Text(" ") if look is None else Text(*_mark(look, past.version)) for look in drop.looks]
        highest = "" if drop.highest_p_crystals is None else f"{drop.highest_p_crystals:.3f}"
        last = (drop.trend or "", printable(drop.first_hit or ""), highest)
        grid.add_row(f"{drop.last.well}.{drop.last.drop_number}", *marks, *(Text(word) for word in last))
    if drops:
        console.print(grid)
        console.print(legend(look for drop in drops for look in drop.looks))
    if not short:
        for number, seen in enumerate(past.inspections, 1):
            day = f"{seen.first_image_at:%Y-%m-%d}" if seen.first_image_at else ""
            console.print(Text(f"{number} = inspection {printable(seen.key)} {day}".rstrip()))
    rest = "" if all_drops else "; --all-drops shows the others"
    console.print(f"{len(past.ever_hit())} of {len(past.drops)} drops are or were hits{rest}\n")


def hits_table(found: list[Hit]) -> Table:
    """Hits over all plates."""
    columns = ("crystals", "plate", "drop", "first in", "cause", "trend", "label", "project", "source")
    rows = [
        (
            "" if h.p_crystals is None else f"{h.p_crystals:.3f}",
            h.barcode or h.plate_key,
            f"{h.well}.{h.drop_number}",
            h.first_hit_inspection_key,
            h.cause,
            h.trend,
            h.label if h.label_person is None else f"{h.label} ({h.label_person})",
            h.project,
            h.source,
        )
        for h in found
    ]
    return table(f"{len(found)} hits, best first", columns, rows)


def check_place(target: Path, roots: Iterable[Path]) -> None:
    """Raises ConfigError for a place where only imagers write."""
    for root in roots:
        if target.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"{target} is inside the source folder {root}, where only the imager writes; choose another"
            )


def save(target: Path, data: str | bytes, roots: Iterable[Path]) -> None:
    """Write a file whole or not at all, text as UTF-8. Raises MarcodError, and ConfigError as ``check_place`` does."""
    check_place(target, roots)
    content = data.encode() if isinstance(data, str) else data
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}-", dir=target.parent) as scratch:
            unfinished = Path(scratch) / target.name
            unfinished.write_bytes(content)
            unfinished.replace(target)
    except OSError as error:
        raise MarcodError(f"{target} cannot be written: {error.strerror}") from error


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

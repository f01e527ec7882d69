"""Plates on a terminal: the map of one inspection, and the drops of a plate through its inspections.

A plate of any format fits the width, with letters alone where there are no colours.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from marcod import text
from marcod.cli.common import listings, output
from marcod.domain import hit_rule, row_letters
from marcod.plates.history import DropHistory, PlateHistory
from marcod.plates.plate_map import LETTERS, MARKS_OF_CLASS, Mark, PlateMap, mark_of
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version

_STYLES: Final = {
    Mark.HIT: "bold white on dark_green",
    Mark.PRECIPITATE: "black on dark_goldenrod",
    Mark.CLEAR: "black on light_cyan3",
    Mark.OTHER: "white on grey35",
    Mark.CRYSTALS: "dark_green on pale_green1",
    Mark.FAILED: "bold white on red",
    Mark.UNSCORED: "dim",
}
SHOWN: Final = {mark: (LETTERS[mark].replace("\N{MIDDLE DOT}", "."), style) for mark, style in _STYLES.items()}
"""Letter and style of each mark; a terminal has a full stop for the dot."""

PAPER: Final = 80
"""Width of a map without a terminal."""

GROUP: Final = 6
"""Columns that stand without a gap where there is room for one letter per well only."""

BEST: Final = 8
NAMED: Final = 8
"""Labelled drops that the line below a map names."""

SHORT_KEY: Final = 4
"""Characters of an inspection's key up to which it heads its own column."""


def plate_map(shown: PlateMap, width: int) -> Text:
    """Draw the plate as a grid in at most ``width`` characters: one letter per drop, columns and drops numbered."""
    numbers = sorted({drop.image.drop_number for drop in shown.drops}) or [1]
    marks = {drop.image.place: _mark(drop, shown.version) for drop in shown.drops}
    blocks = [
        _block(shown, marks, numbers, columns, stacked)
        for columns, stacked in _blocks(shown.format.columns, len(numbers), width - _margin(shown))
    ]
    return Text("\n\n").join(blocks)


def _margin(shown: PlateMap) -> int:
    return len(row_letters(shown.format.rows)) + 2


def _blocks(columns: int, drops: int, width: int) -> list[tuple[range, bool]]:
    """Divide the columns into as few blocks as fit; True where a column's number takes two lines."""
    for parts in range(1, columns + 1):
        size = -(-columns // parts)
        ranges = [range(first, min(first + size, columns + 1)) for first in range(1, columns + 1, size)]
        if size * (max(drops, len(str(columns))) + 1) <= width:
            return [(part, False) for part in ranges]
        if drops == 1 and size + size // GROUP <= width:
            return [(part, True) for part in ranges]
    return [(range(column, column + 1), False) for column in range(1, columns + 1)]


def _block(
    shown: PlateMap,
    marks: dict[tuple[int, int, int], tuple[str, str]],
    numbers: Sequence[int],
    columns: range,
    stacked: bool,
) -> Text:
    """Draw some columns of the plate, with their headings above."""
    cell = 1 if stacked else max(len(numbers), len(str(shown.format.columns)))
    margin = _margin(shown)
    lines = [_line(" " * margin, [Text(head, "bold") for head in heads], columns, stacked)
             for heads in _headings(columns, numbers, cell, stacked=stacked)]  # fmt: skip
    for row in range(1, shown.format.rows + 1):
        wells = []
        for column in columns:
            well = Text()
            for number in numbers:
                well.append(*marks.get((row, column, number), (" ", "")))
            wells.append(well.append(" " * (cell - len(numbers))))
        lines.append(_line(row_letters(row).ljust(margin), wells, columns, stacked))
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _line(start: str, cells: Iterable[Text], columns: range, stacked: bool) -> Text:
    line = Text().append(start, "dim")
    for column, cell in zip(columns, cells, strict=True):
        gap = "" if stacked and (column - columns.start + 1) % GROUP else " "
        line.append_text(cell).append(gap)
    return line


def _headings(columns: range, numbers: Sequence[int], cell: int, *, stacked: bool) -> Iterator[list[str]]:
    """Yield the lines above a map: columns, and below each its drops where a well has several."""
    if stacked:
        digits = len(str(columns[-1]))
        for place in range(digits):
            yield [str(column).rjust(digits)[place] for column in columns]
    else:
        yield [str(column).ljust(cell) for column in columns]
    if len(numbers) > 1:
        digits = len(str(numbers[-1]))
        for place in range(digits):
            yield ["".join(str(number).rjust(digits)[place] for number in numbers).ljust(cell)] * len(columns)


def _mark(drop: DropVerdict, version: Version) -> tuple[str, str]:
    """Return the letter of a drop and its style; a drop that a person labelled is underlined."""
    letter, style = SHOWN[mark_of(drop, version)]
    return letter, style if drop.majority is None else f"underline {style}"


def legend(drops: Iterable[DropVerdict | None], version: Version) -> Text:
    """Explain a map's letters in two lines; rare ones only where they occur."""
    marks = {mark_of(drop, version) for drop in drops if drop is not None}
    rule = hit_rule(version.crystal_threshold)
    first = Text().append(*SHOWN[Mark.HIT]).append(f" hit: {rule}, or labelled Crystals by a person")
    for mark in (Mark.FAILED, Mark.UNSCORED):
        if mark in marks:
            first.append("   ").append(*SHOWN[mark]).append(f" {mark}")
    second = Text("others by likeliest class:")
    for mark in MARKS_OF_CLASS:
        second.append("  ").append(*SHOWN[mark]).append(f" {mark}")
    return Text("\n").join([first, second])


def _labelled(drops: Iterable[DropVerdict]) -> str:
    """List the drops that people labelled; empty without any."""
    named = [
        f"{_name(drop)} {drop.majority.label} ({drop.majority.person})" for drop in drops if drop.majority is not None
    ]
    more = len(named) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _name(drop: DropVerdict) -> str:
    return f"{drop.image.well}.{drop.image.drop_number}"


def print_plate(console: Console, shown: PlateMap) -> None:
    """Print a plate's map, its drops counted, and its most crystalline drops."""
    _print_heading(console, shown, f"inspection {shown.summary.inspection_key}")
    console.print(plate_map(shown, console.width if console.is_terminal else PAPER))
    console.print(legend(shown.drops, shown.version))
    output.say(console, f"{shown.counted()}; {output.completeness(shown.summary)}")
    best = sorted((d for d in shown.drops if d.image.p_crystals), key=lambda d: -(d.image.p_crystals or 0.0))[:BEST]
    if best:
        named = ", ".join(f"{_name(d)} {d.image.p_crystals:.2f}" for d in best)
        output.say(console, f"highest crystal probability: {named}")
    if labelled := _labelled(shown.drops):
        output.say(console, f"labelled by people{' (underlined)' if console.is_terminal else ''}: {labelled}")
    console.print()


def _print_heading(console: Console, shown: PlateMap, what: str) -> None:
    summary, metadata = shown.summary, shown.metadata
    name = summary.barcode or summary.plate_key
    known = [f"{name} {value}" for name, value in (("project", metadata.project), ("screen", metadata.screen)) if value]
    parts = [f"Plate {name} of {summary.source}", *known, what, str(shown.version)]
    output.say(console, ", ".join(parts), "bold")


def print_history(console: Console, shown: PlateMap, past: PlateHistory, *, all_drops: bool) -> None:
    """Print the drops of a plate: one line per drop, one mark per inspection in order of time."""
    drops = past.drops if all_drops else past.ever_hit()
    _print_heading(console, shown, text.count(len(past.inspections), "inspection"))
    short = all(len(i.key) <= SHORT_KEY for i in past.inspections)
    heads = [text.printable(i.key) if short else str(n) for n, i in enumerate(past.inspections, 1)]
    if drops:
        for part in _parts(console, past, drops, heads):
            console.print(part)
        console.print(legend((look for drop in drops for look in drop.looks), past.version))
        if any(look is not None and look.majority is not None for drop in drops for look in drop.looks):
            console.print("* labelled by a person")
    if not short:
        for number, seen in enumerate(past.inspections, 1):
            day = f"{seen.first_image_at:%Y-%m-%d}" if seen.first_image_at else ""
            console.print(Text(f"{number} = inspection {text.printable(seen.key)} {day}".rstrip()))
    rest = "" if all_drops else "; --all-drops shows the others"
    counted = f"{len(past.ever_hit())} of {text.count(len(past.drops), 'drop')}"
    output.say(console, f"{counted} are or were hits ({hit_rule(past.version.crystal_threshold)}){rest}")
    console.print()


def _parts(
    console: Console, past: PlateHistory, drops: Sequence[DropHistory], heads: Sequence[str]
) -> list[listings.Listing]:
    """Divide the inspections into as few tables as the width takes, in order of time."""
    room = console.width if console.is_terminal else PAPER
    for parts in range(1, len(heads) + 1):
        size = -(-len(heads) // parts)
        ranges = [range(first, min(first + size, len(heads))) for first in range(0, len(heads), size)]
        grids = [_grid(past, drops, heads, part) for part in ranges]
        if all(grid.width <= room for grid in grids):
            return grids
    return grids


def _grid(past: PlateHistory, drops: Sequence[DropHistory], heads: Sequence[str], part: range) -> listings.Listing:
    """Tabulate some inspections; the last table has trend, first hit and highest probability."""
    last = part.stop == len(heads)
    rows = []
    for drop in drops:
        looks = [drop.looks[place] for place in part]
        marks = [Text() if look is None else _look(look, past.version) for look in looks]
        highest = "" if drop.highest_p_crystals is None else f"{drop.highest_p_crystals:.3f}"
        last_cells = [drop.trend if len(past.inspections) > 1 else "-", drop.first_hit, highest] if last else []
        rows.append([_name(drop.last), *marks, *last_cells])
    columns = ["drop", *(heads[place] for place in part), *(["trend", "first hit", "highest"] if last else [])]
    return listings.table("", columns, rows)


def _look(drop: DropVerdict, version: Version) -> Text:
    return Text(*_mark(drop, version)).append("" if drop.majority is None else "*")

"""Tables on a screen, and JSON values written for people."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
from rich.text import Text

from marcod import text
from marcod.cli.common.output import WIDE, console, folded

GAP: Final = 2
"""Characters between two columns."""

LEAST_PROSE: Final = 30
"""Width below which a column of sentences is written below its row."""

INDENT: Final = 4


@dataclass(frozen=True, slots=True)
class Listing:
    """A table that never cuts a cell; numbers, or with ``right`` all but the first column, stand to the right.

    On a terminal that is too narrow the groups of columns named in ``spare`` are left out, one after another. The last
    column is folded between its words when it is ``prose``, or written below its row where it does not fit.
    What is still too wide runs over, so that a key or a path can be copied whole.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    spare: tuple[tuple[str, ...], ...]
    prose: bool
    styles: tuple[str, ...]
    right: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        overflow: OverflowMethod = "ignore" if options.no_wrap else "fold"
        for line in self._lines(options.max_width if console.is_terminal else None):
            line.no_wrap, line.overflow = options.no_wrap, overflow
            yield line

    @property
    def width(self) -> int:
        """Characters that the widest line takes when nothing is left out or folded."""
        return _total([self._width(place) for place in range(len(self.columns))])

    def _lines(self, room: int | None) -> Iterator[Text]:
        """Yield the lines that fit a width; None is any width."""
        for line in text.printable(self.title, keep="\n").split("\n") if self.title else ():
            yield from (Text(part, style="italic") for part in folded(line, room or WIDE))
        if not self.rows:
            return
        kept = self._kept(room)
        widths = [self._width(place) for place in kept]
        below = 0
        if room is not None and self.prose and _total(widths) > room:
            beside = room - _total([*widths[:-1], 0])
            below = 0 if beside >= LEAST_PROSE else room - INDENT
            widths[-1] = beside if not below else 0
        if any(self.columns):
            heads = [self.columns[place].split("\n") for place in kept]
            for upper in range(-max(map(len, heads)), 0):
                cells = [Text(head[upper] if len(head) >= -upper else "") for head in heads]
                yield from self._row(cells, kept, widths, "bold", below)
        for row, style in zip_longest(self.rows, self.styles, fillvalue=""):
            yield from self._row([_cell(row[place]) for place in kept], kept, widths, style, below)
        if left_out := [name.split("\n")[-1] for place, name in enumerate(self.columns) if place not in kept]:
            sentence = f"no room for: {', '.join(left_out)}; --json has them"
            yield from (Text(part, style="dim") for part in folded(sentence, room or WIDE))

    def _kept(self, room: int | None) -> list[int]:
        """Return the indices of the columns that are shown."""
        kept = list(range(len(self.columns)))
        for group in self.spare:
            widths = [self._width(place) for place in kept]
            if room is None or _total(widths[:-1] if self.prose else widths) <= room:
                break
            kept = [place for place in kept if self.columns[place] not in group]
        return kept

    def _width(self, place: int) -> int:
        heads = self.columns[place].split("\n")
        return max(0, *map(cell_len, heads), *(_cell(row[place]).cell_len for row in self.rows))

    def _row(
        self, cells: Sequence[Text], kept: Sequence[int], widths: Sequence[int], style: str, below: int
    ) -> Iterator[Text]:
        """Yield the lines of a row; ``below`` is the width of its prose where that is written below it."""
        parts_of = [[cell] for cell in cells]
        if below:
            parts_of[-1] = []
        elif self.prose:
            parts_of[-1] = [Text(part) for part in folded(cells[-1].plain, widths[-1])] if widths[-1] else []
        for parts in zip_longest(*parts_of, fillvalue=Text()):
            line = Text(style=style)
            for part, place, width in zip(parts, kept, widths, strict=True):
                free = " " * (width - part.cell_len)
                numeric = self._numeric(place)
                line.append(free if numeric else "").append_text(part).append("" if numeric else free).append(" " * GAP)
            line.rstrip()
            yield line
        for sentence in folded(cells[-1].plain, below) if below and cells[-1] else []:
            yield Text(" " * INDENT + sentence, style=style)

    def _numeric(self, place: int) -> bool:
        return (self.right and place > 0) or (
            bool(self.rows) and all(isinstance(row[place], (int, float)) for row in self.rows)
        )


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    spare: Iterable[Iterable[str]] = (),
    prose: bool = False,
    styles: Iterable[str] = (),
    right: bool = False,
    without: Collection[str] = (),
) -> Listing:
    """Make a plain table; see :class:`Listing`. Columns of the names ``without`` are left out."""
    names, groups = tuple(columns), tuple(tuple(group) for group in spare)
    kept = [place for place, name in enumerate(names) if name not in without]
    cells = tuple(tuple(row[place] for place in kept) for row in map(tuple, rows))
    return Listing(title, tuple(names[place] for place in kept), cells, groups, prose, tuple(styles), right)


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], **choices: Any) -> None:
    """Print a table on standard output; ``choices`` are those of :func:`table`."""
    console().print(table(title, columns, rows, **choices))


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(text.printable(" ".join(text.in_words(value).split("\n"))))


def counted(shown: int, total: int, noun: str, rest: str = "", *, plural: str | None = None) -> str:
    """Return a list's title with the number shown, and the total where ``--limit`` leaves some out."""
    if shown >= total:
        return text.count(shown, noun, plural) + rest
    return f"{shown:,} of {text.count(total, noun, plural)}{rest}; --limit shows more"

"""What a benchmark hands over: plain tables, printed for people or as JSON."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import rich.box
import rich.table
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements, between the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of at least one value."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} - {number(self.high)})"


Cell = str | int | float | Spread


@dataclass(frozen=True, slots=True)
class Table:
    """One table; units are in the column names. ``about`` says what was measured on what."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def show(self, console: Console) -> None:
        """Print it."""
        table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if isinstance(self.rows[0][place], str) else "right")
        for row in self.rows:
            table.add_row(*(cell if isinstance(cell, str) else shown(cell) for cell in row))
        console.print(table)
        console.print(self.about, style="dim", highlight=False)
        console.print()

    def plain(self) -> dict[str, Any]:
        """For JSON: a spread is its three numbers."""
        rows = [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]
        return {"title": self.title, "about": self.about, "rows": rows}


def shown(cell: int | float | Spread) -> str:
    """A number as people read it."""
    return str(cell) if isinstance(cell, Spread) else number(cell)


def number(value: float) -> str:
    """Three digits that mean something, and thousands apart."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _plain(cell: Cell) -> Any:
    return {"median": cell.median, "min": cell.low, "max": cell.high} if isinstance(cell, Spread) else cell

"""Places of the drops inside a well, as the plate's maker has them.

A place is written as rows of drops in their order, ``/`` between rows and a dot where no drop lies, as in ``1 ./2 3``
for a well of 2x2 cells whose upper right one is the reservoir.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

KNOWN: Final = {3: "1 . / 2 3"}
"""Plates whose drops do not lie in one row: SWISSCI 3 drop."""

MOST: Final = 36
"""Drops of a well."""


@dataclass(frozen=True, slots=True)
class WellCells:
    """The grid of cells in a well, and the column and row, from 0, in which each drop lies, by its place in order."""

    across: int
    down: int
    places: tuple[tuple[int, int], ...]


def parse(text: str) -> WellCells:
    """Read a well's cells. Raises ValueError unless every drop from 1 on has one cell."""
    rows = [row.split() for row in text.split("/")]
    cells = [(word, x, y) for y, row in enumerate(rows) for x, word in enumerate(row) if word != "."]
    found = {int(word): (x, y) for word, x, y in cells if word.isascii() and word.isdigit() and len(word) < 3}
    if not cells or len(found) < len(cells) or sorted(found) != list(range(1, len(cells) + 1)) or len(cells) > MOST:
        raise ValueError(f"{text!r} does not place drops 1, 2, ... of a well; write rows such as '1 ./2 3'")
    return WellCells(max(len(row) for row in rows), len(rows), tuple(found[n] for n in sorted(found)))


def cells_of(
    numbers: Iterable[int], given: int | None = None, written: Mapping[int, str] | None = None
) -> tuple[WellCells, dict[int, tuple[int, int]]]:
    """Place the drops of a plate's wells: its cells, and the column and row of each drop number.

    ``numbers`` are the drop numbers seen on the plate, ``given`` how many drops its format says a well has, and
    ``written`` the lab's own cells by the number of drops.
    """
    seen = sorted(set(numbers))
    count = max(len(seen), given or 0, 1)
    text = (written or {}).get(count) or KNOWN.get(count)
    cells = parse(text) if text else WellCells(count, 1, tuple((x, 0) for x in range(count)))
    if len(cells.places) < count:
        cells = WellCells(count, 1, tuple((x, 0) for x in range(count)))
    # Numbers 1 to count are places; an imager that counts the reservoir too leaves a gap, which has none.
    in_order = seen if seen and seen[-1] > count else range(1, count + 1)
    return cells, dict(zip(in_order, cells.places, strict=False))

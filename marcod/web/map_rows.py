"""Rows of the map of a plate, as the table on its page has them: a well is a block of cells, one for each drop."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from marcod.domain import row_letters
from marcod.web.plate_cells import MapCell


class MapSpot(NamedTuple):
    """One place on the map, with the drop that lies there; ``edge`` is the first place of a well in its row."""

    cell: MapCell | None
    edge: bool


class MapRow(NamedTuple):
    """One row of places; ``letters`` name the row of wells that begins here, or are empty."""

    letters: str
    spots: list[MapSpot]


def map_rows(cells: Sequence[MapCell], grid: Mapping[str, int]) -> list[MapRow]:
    """Lay the drops of a plate out; ``grid`` is that of a ``PlateView``."""
    across, down = grid["across"], grid["down"]
    lying = {(c["row"], c["column"], c["x"], c["y"]): c for c in cells}
    return [
        MapRow(
            row_letters(row) if y == 0 else "",
            [
                MapSpot(lying.get((row, column, x, y)), x == 0)
                for column in range(1, grid["columns"] + 1)
                for x in range(across)
            ],
        )
        for row in range(1, grid["rows"] + 1)
        for y in range(down)
    ]

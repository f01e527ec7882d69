"""Plate maps at 80 columns and without colours, and drops that count once."""

import io
import re

import pytest
from rich.console import Console
from shown import drop, plate, said

from marcod.cli.common import plate_maps
from marcod.domain import PLATE_FORMATS, DropClass, row_letters
from marcod.plates.metadata import Grid
from marcod.store.verdicts import ImageState

WIDTH = 80
MARKS = "Xp.ox!?"


def printed(wells: int, numbers: tuple[int, ...], width: int = WIDTH) -> list[str]:
    """The map of a full plate whose drops are hits where row, column and drop number make a pattern."""
    size = PLATE_FORMATS[wells]
    drops = [
        drop(row, column, 0.9 if (row + column + number) % 5 == 0 else 0.1, number)
        for row in range(1, size.rows + 1)
        for column in range(1, size.columns + 1)
        for number in numbers
    ]
    shown = plate(drops, grid=Grid(size.rows, size.columns, len(numbers)))
    console = Console(width=width, file=(file := io.StringIO()), color_system=None, soft_wrap=True)
    console.print(plate_maps.plate_map(shown, width))
    return file.getvalue().rstrip("\n").split("\n")


def columns_over(line: str, heads: list[str]) -> list[int]:
    """The column number above every letter of a row, read down its heading lines."""
    found, last = [], 0
    for place in range(4, len(line)):
        last = int("".join(head[place : place + 1] for head in heads).strip() or last)
        if line[place] in MARKS:
            found.append(last)
    return found


@pytest.mark.parametrize("wells", [24, 48, 96, 384, 1536])
@pytest.mark.parametrize("numbers", [(1,), (1, 2), (1, 3, 4)])
def test_every_map_fits_and_every_drop_is_under_its_number(wells: int, numbers: tuple[int, ...]) -> None:
    size = PLATE_FORMATS[wells]
    lines = printed(wells, numbers)
    assert max(map(len, lines)) <= WIDTH
    found: dict[str, str] = {}
    for line in lines:
        name, _, marks = line.partition(" ")
        if name.isalpha():
            found[name] = found.get(name, "") + re.sub(" ", "", marks)
    for row in range(1, size.rows + 1):
        expected = "".join(
            "X" if (row + column + number) % 5 == 0 else "."
            for column in range(1, size.columns + 1)
            for number in numbers
        )
        assert found[row_letters(row)] == expected
    if len(numbers) > 1:
        assert "".join(map(str, numbers)) in lines[1]


def test_columns_of_a_1536_well_plate_are_numbered_on_two_lines() -> None:
    lines = printed(1536, (1,))
    assert lines[:2] == [
        "              111 111111 122222 222223 333333 333444 444444",
        "    123456 789012 345678 901234 567890 123456 789012 345678",
    ]
    assert columns_over(lines[2], lines[:2]) == list(range(1, 49))
    wide = printed(1536, (1,), 160)
    assert wide[0].split() == [str(column) for column in range(1, 49)]


def test_drops_of_a_three_lens_plate_are_numbered_and_a_missing_one_leaves_its_place() -> None:
    drops = [drop(1, 1, 0.1, 1), drop(1, 1, 0.9, 4), drop(1, 2, 0.9, 3)]
    lines = str(plate_maps.plate_map(plate(drops), WIDTH)).split("\n")
    assert lines[0].split() == [str(column) for column in range(1, 13)]
    assert lines[1].split() == ["134"] * 12
    assert lines[2] == "A  . X  X"


def test_a_drop_counts_once() -> None:
    drops = [
        drop(1, 1, 0.9),
        drop(1, 2, 0.6, label="Clear"),
        drop(1, 3, 0.4, label="Crystals"),
        drop(1, 4, 0.1, label="Precipitate"),
        drop(1, 5, 0.1, said=said(DropClass.CRYSTALS, "ann")),
        drop(1, 6, 0.9, said=said(DropClass.OTHER, "ann")),
        drop(1, 7, None, state=ImageState.FAILED),
        drop(1, 8, None),
    ]
    assert plate(drops).counted() == (
        "8 drops: 3 hits (crystals >= 0.5); "
        "others by likeliest class: 1 Precipitate, 1 Other, 1 Crystals; 1 failed; 1 not scored"
    )
    assert plate(drops[:1]).counted() == "1 drop: 1 hit (crystals >= 0.5)"
    assert plate([]).counted() == "0 drops: 0 hits (crystals >= 0.5)"


def test_labels_of_people_are_reported_where_nothing_can_be_underlined() -> None:
    drops = [drop(1, column, 0.1, said=said(DropClass.CLEAR, "ann")) for column in range(1, 12)]
    console = Console(width=WIDTH, file=(file := io.StringIO()), color_system=None, soft_wrap=True)
    plate_maps.print_plate(console, plate(drops))
    assert "labelled by people: A01.1 Clear (ann), A02.1 Clear (ann)" in file.getvalue()
    assert "and 3 more" in file.getvalue()

"""Wells, plate formats and paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod.domain import (
    PLATE_FORMATS,
    Split,
    parse_well,
    path_text,
    row_letters,
    row_number,
    split_of,
    text_path,
    well_name,
)


@pytest.mark.parametrize(
    ("row", "column", "name"), [(1, 1, "A01"), (8, 12, "H12"), (26, 1, "Z01"), (27, 1, "AA01"), (32, 48, "AF48")]
)
def test_wells_are_named_as_people_name_them(row: int, column: int, name: str) -> None:
    assert well_name(row, column) == name
    assert parse_well(name) == parse_well(name.lower()) == (row, column)


@given(st.integers(1, 700))
def test_row_letters_invert(row: int) -> None:
    assert row_number(row_letters(row)) == row


@pytest.mark.parametrize("text", ["", "A", "12", "A0", "A00", "ABC1", "A-1", "A123", "A1.1"])
def test_what_is_not_a_well_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a well"):
        parse_well(text)


@given(st.sampled_from(sorted(PLATE_FORMATS)), st.data())
def test_well_numbers_run_row_by_row(wells: int, data: st.DataObject) -> None:
    plate = PLATE_FORMATS[wells]
    assert plate.wells == wells
    number = data.draw(st.integers(1, wells))
    row, column = plate.position(number)
    assert 1 <= row <= plate.rows
    assert 1 <= column <= plate.columns
    assert plate.number(row, column) == number


@pytest.mark.parametrize("number", [0, -1, 97])
def test_numbers_outside_the_plate_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="outside a 8x12 plate"):
        PLATE_FORMATS[96].position(number)


@given(st.binary(min_size=1).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_bytes_survive_as_text(path: str) -> None:
    text = path_text(path)
    text.encode("utf-8")
    assert text_path(text) == path


def test_ordinary_paths_stay_readable() -> None:
    assert path_text("Plätze/90j8_01A_1.jpg") == "Plätze/90j8_01A_1.jpg"
    assert path_text("a\\b\udcff") == r"a\x5cb\xff"


@pytest.mark.parametrize(
    ("plate_key", "side"),
    [
        ("P1", Split.TRAIN),
        ("a\\b", Split.TRAIN),
        ("\udcff7", Split.TRAIN),
        ("P1\n7", Split.TRAIN),
        ("P1\xadb", Split.TEST),
        ("P1\u202e7", Split.VALIDATION),
        ("P2\x1b[31mb", Split.TEST),
    ],
)
def test_a_plate_keeps_its_side_for_ever(plate_key: str, side: Split) -> None:
    """These sides were computed before control characters were escaped; models were trained and judged by them."""
    assert split_of("imager", plate_key) is side

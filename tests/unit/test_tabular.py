"""Tables in every form that spreadsheets save, and cells that spreadsheets have damaged."""

import codecs

import pytest

from marcod import tabular

ROWS = [["plate", "well", "label"], ["X1", "A1", "Müller"], ["X2", "B2", "café"]]


def lines(data: bytes) -> list[list[str]]:
    return [cells for _, cells in tabular.lines_of(tabular.text_of(data))]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("cp1252", b""),
        ("mac_roman", b""),
    ],
)
def test_a_table_in_any_form(encoding: str, mark: bytes, end: str, separator: str) -> None:
    text = "".join(separator.join(row) + end for row in ROWS)
    assert lines(mark + text.encode(encoding)) == ROWS


@pytest.mark.parametrize(
    "word", ["König", "naïve", "Åse", "Øystein", "Muñoz", "10–20 °C", "5 µl", "Noël", "O’Brien", "didn’t"]
)
def test_words_of_windows_tables(word: str) -> None:
    assert lines(f"plate,note\nP,{word}\n".encode("cp1252"))[1] == ["P", word]


@pytest.mark.parametrize("word", ["Désirée", "Noël", "Martínez", "Müller", "25 °C", "crème"])
def test_words_of_mac_tables(word: str) -> None:
    assert lines(f"plate,note\nP,{word}\n".encode("mac_roman"))[1] == ["P", word]


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ("plate,person\nP,König\n".encode("mac_roman"), 2, "cannot be told; save it as CSV UTF-8"),
        ("plate,person\nP,Müller\n".encode("cp850"), 2, "cannot be told; save it as CSV UTF-8"),
        (b"PK\x03\x04 a workbook", 1, "is a workbook, not a table; save it as CSV UTF-8"),
        (b"\xff\xd8\xff\xe0\n\x10JFIF\x00", 2, "is not a table but another file; save it as CSV UTF-8"),
        (b"\xff\xfep\x00\x00\xd8", 1, "damaged utf-16 text; save it as CSV UTF-8"),
    ],
)
def test_what_cannot_be_decided_is_refused(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(tabular.TableError, match=reason) as raised:
        lines(data)
    assert raised.value.line == line


def test_lines_keep_their_numbers_and_separators_in_quotes_do_not_count() -> None:
    text = '\n"name, first, last";plate\n\n"A;\nB"; P \n'
    assert list(tabular.lines_of(text)) == [(2, ["name, first, last", "plate"]), (5, ["A;\nB", "P"])]
    told = "sep=;\nplate;well,row;x,y,z\nP;A1;2\n"
    assert list(tabular.lines_of(told)) == [(2, ["plate", "well,row", "x,y,z"]), (3, ["P", "A1", "2"])]


@pytest.mark.parametrize(
    ("text", "reason"),
    [('a,b\n"c,d\ne,f\n', "never closed"), ('a,b\n"c"d,e\n', "goes on after its closing quotation mark")],
)
def test_a_quotation_mark_swallows_no_line(text: str, reason: str) -> None:
    with pytest.raises(tabular.TableError, match=reason):
        list(tabular.lines_of(text))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("4.41312E+11", "power of ten"),
        ("4,41312E+11", "power of ten"),
        ("4E+11", "power of ten"),
        ("01-Mar", "a date"),
        ("1. Mrz", "a date"),
        ("Sep-02", "a date"),
        ("01-mars", "a date"),
        ("févr-24", "a date"),
        ("01.03.2026", "a date"),
        ("3/1/26", "a date"),
        ("2026-03-01 00:00:00", "a date"),
        ("#NAME?", "an error"),
        ("########", "an error"),
        ("441312000000123000", "keeps 15 digits"),
        ("10000023.0", "a decimal number"),
    ],
)
def test_damage_by_spreadsheets(cell: str, reason: str) -> None:
    told = tabular.damage(cell)
    assert told is not None
    assert reason in told
    assert told.endswith("enter it again and save the table")


@pytest.mark.parametrize(
    "cell",
    [
        "441312000123",
        "0012",
        "1E5",
        "12E3",
        "CI022987",
        "X000015999",
        "90j8",
        "MAR-01",
        "2026-03-01",
        "AF48",
        "A1",
        "#",
        "1-2",
    ],
)
def test_sound_names(cell: str) -> None:
    assert tabular.damage(cell) is None


def test_zeros_that_were_lost() -> None:
    assert tabular.before_zeros_were_lost("12")[:2] == ("012", "0012")
    assert tabular.before_zeros_were_lost("12a") == ()

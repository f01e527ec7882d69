"""Tables as spreadsheets and programs save them: encodings, separators, line ends, headings, and damaged cells.

A table is a heading and lines of cells. It may be UTF-8 with or without a mark, UTF-16, Windows-1252 or Mac Roman, with
commas, semicolons or tabs, and line ends of any system.

Guarantees:
- An encoding that is not certain is refused, never guessed.
- A quotation mark that is never closed is refused, so no line is swallowed by another.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from marcod.errors import MarcodError
from marcod.text import quoted

SAVE_AS: Final = "save it as CSV UTF-8"

_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_BOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of workbooks: .xlsx, .ods and .xls."""

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SEPARATORS: Final = ",;\t"
_QUOTED: Final = re.compile(r'"[^"]*"')
_SEPARATOR_LINE: Final = re.compile(r"\"?sep=([,;\t])\"?\s*", re.IGNORECASE)


class TableError(MarcodError):
    """A table that cannot be read. ``line`` counts from 1, and is 0 where the whole file is wrong."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.line = line
        self.reason = reason

    def of(self, path: Path) -> str:
        """Return the sentence with the name of the file."""
        return f"{path}, {self}" if self.line else f"{path} {self}"


def read_text(path: Path, largest: int | None = None) -> str:
    """Return the text of a file of at most ``largest`` bytes, as :func:`text_of` does. Raises TableError."""
    try:
        if largest is not None and path.stat().st_size > largest:
            raise TableError(0, f"is larger than {largest >> 20} MiB; split it")
        return text_of(path.read_bytes())
    except OSError as error:
        raise TableError(0, f"cannot be read: {error.strerror}") from error


def rows_of(text: str, required: Iterable[str], advice: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines below the heading, each with its number and its cells by lower-case heading.

    Raises TableError where a ``required`` column is missing, with ``advice`` as the next step.
    """
    lines = lines_of(text)
    line, headings = next(lines, (1, []))
    columns = [heading.lower() for heading in headings]
    if missing := [name for name in required if name not in columns]:
        raise TableError(line, f"there is no column {missing[0]!r}; {advice}")
    for line, cells in lines:
        yield line, dict(zip(columns, cells, strict=False))


def match_headings(
    line: int,
    headings: Sequence[str],
    fields: Mapping[str, Collection[str]],
    chosen: Mapping[str, str],
    *,
    own_name_first: Collection[str] = (),
) -> dict[str, int]:
    """Find the column of each field by its heading; fields without a column are left out.

    ``fields`` gives for each field the headings that mean it, as :func:`spelled` writes them. ``chosen`` maps headings
    to fields in any case, and goes before them. Of the fields ``own_name_first`` a column of the field's own name goes
    before other headings. Raises TableError where a chosen column is missing, and where two columns can be one field.
    """
    places = {name: _chosen(line, headings, column) for column, name in chosen.items()}
    if len(places) < len(chosen):
        twice = next(name for name, number in Counter(chosen.values()).items() if number > 1)
        raise TableError(line, f"--map gives {twice} two columns; choose one")
    free = [at for at in range(len(headings)) if at not in places.values()]
    found = {
        name: _meaning(name, {at: spelled(headings[at]) for at in free}, aliases, own_first=name in own_name_first)
        for name, aliases in fields.items()
        if name not in places
    }
    if unclear := {name: [headings[at] for at in columns] for name, columns in found.items() if len(columns) > 1}:
        raise TableError(line, _unclear(unclear))
    return places | {name: columns[0] for name, columns in found.items() if columns}


def _chosen(line: int, headings: Sequence[str], column: str) -> int:
    if column in headings:
        return headings.index(column)
    folded = [heading.casefold() for heading in headings]
    if column.strip().casefold() not in folded:
        raise TableError(line, f"there is no column {quoted(column)}; there are {listed(headings)}")
    return folded.index(column.strip().casefold())


def _meaning(name: str, spellings: Mapping[int, str], aliases: Collection[str], *, own_first: bool) -> list[int]:
    found = [at for at, spelling in spellings.items() if spelling in aliases]
    own = [at for at in found if own_first and spellings[at] == name]
    return own or found


def _unclear(unclear: Mapping[str, list[str]]) -> str:
    fields = [f"{' and '.join(map(quoted, columns))} could each be the {name}" for name, columns in unclear.items()]
    choice = " ".join(f"--map {quoted(f'{columns[-1]}={name}')}" for name, columns in unclear.items())
    return f"the columns {', '.join(fields)}; choose with --map COLUMN=FIELD, such as {choice}"


def spelled(heading: str) -> str:
    """Return the lower-case letters of a heading, by which headings are compared."""
    return re.sub(r"[^a-z]", "", heading.lower())


def listed(headings: Sequence[str]) -> str:
    """List headings in a sentence, at most twenty."""
    return ", ".join(map(quoted, headings[:20])) or "none"


def lines_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a table that are not blank, each with its number in the file and its stripped cells.

    ``text`` is as :func:`text_of` returns it. Raises TableError.
    """
    first, rest = text.partition("\n")[::2]
    named = _SEPARATOR_LINE.fullmatch(first)
    skipped = 1 if named else 0
    separator = named[1] if named else separator_of(text)
    reader = csv.reader(io.StringIO(rest if named else text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num + skipped, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise TableError(max(1, reader.line_num + skipped), _broken(str(error))) from error


def separator_of(text: str) -> str:
    """Return the separator that the heading has most of, outside quotation marks."""
    heading = next((line for line in text.split("\n") if line.strip(f" {_SEPARATORS}")), "")
    return max(_SEPARATORS, key=_QUOTED.sub("", heading).count)


def _broken(said: str) -> str:
    if "unexpected end" in said:
        return "a quotation mark before the end of the file is never closed; correct it"
    if "expected after" in said:
        return "a cell goes on after its closing quotation mark; correct it"
    return f"it cannot be read as text with columns: {said}; {SAVE_AS}"


def text_of(data: bytes) -> str:
    """Return a file's text with ``\\n`` at the end of every line. Raises TableError."""
    return _decoded(data).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str:
    if data.startswith(_BOOKS):
        raise TableError(1, f"this is a workbook, not a table; {SAVE_AS}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _wide(data) or "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return _one_byte(data)
        raise TableError(
            data.count(b"\n", 0, error.start) + 1, f"this is damaged {encoding} text; {SAVE_AS}"
        ) from error


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: Latin letters leave every other byte of the heading zero."""
    start = data[:64]
    if len(start) < 4 or len(data) % 2:
        return None
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) * 4 < len(start):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _one_byte(data: bytes) -> str:
    """Windows-1252, or Mac Roman where its letters or its line ends tell it. Raises TableError."""
    if control := _CONTROL.search(data):
        raise TableError(data.count(b"\n", 0, control.start()) + 1, f"this is not a table but another file; {SAVE_AS}")
    mac, old_mac = data.decode("mac_roman"), b"\r" in data and b"\n" not in data
    line = data.count(b"\n", 0, next(i for i, byte in enumerate(data) if byte > 127)) + 1
    unclear = TableError(line, f"its letters beyond ASCII are of an encoding that cannot be told; {SAVE_AS}")
    try:
        windows = data.decode("cp1252")
    except UnicodeDecodeError:
        if _odd_characters(mac) and not old_mac:
            raise unclear from None
        return mac
    odd, odd_as_mac = _odd_characters(windows), _odd_characters(mac)
    if odd < odd_as_mac or windows == mac:
        return windows
    if old_mac or odd_as_mac == 0 < odd:
        return mac
    # Both readings are possible text. Typographic marks are common in Windows' tables, these Mac letters are not.
    if odd == 0 and not any(each.isalpha() for each, other in zip(windows, mac, strict=True) if each != other):
        return windows
    raise unclear


_LETTERS: Final = frozenset("ŒœŠšŽžß") | {chr(code) for code in range(0xC0, 0xFF)} - {"×", "÷"}
_MARKS_IN_TEXT: Final = frozenset("°µ±²³§€™®©“”„‘’–—…•·«»×½¼¾£¥\u00a0")
_MAY_TOUCH: Final = frozenset("°µ²³™®©\u00a0")
_ENGLISH_ENDS: Final = re.compile(r"(?:s|t|m|d|ll|re|ve)(?![a-z])", re.IGNORECASE)


def _odd_characters(text: str) -> int:
    """Count the characters beyond ASCII that no West European writes where they stand."""
    padded = f" {text}  "
    return sum(
        _is_odd(padded[at - 1], each, padded[at + 1 :][:3]) for at, each in enumerate(padded) if not each.isascii()
    )


def _is_odd(before: str, each: str, after: str) -> bool:
    follows = after[0]
    if each in _LETTERS:
        alone = not before.isalpha() and not follows.isalpha()
        risen = each.isupper() and (before.islower() or (before.isupper() and follows.islower()))
        return alone or risen or (each.islower() and follows.isupper())
    if each == "’" and before.isalpha() and follows.isalpha():
        return not (_ENGLISH_ENDS.match(after) or before in "OodDlL")
    if each == "’" or each in _MAY_TOUCH:
        return False
    if each in "“„‘«”»…":
        return before.isalpha() and follows.isalpha()
    return each not in _MARKS_IN_TEXT or before.isalpha() or follows.isalpha()


_EXPONENT: Final = re.compile(r"[+-]?\d(?:[.,]\d+)?E[+-]\d{2,3}", re.IGNORECASE | re.ASCII)
_ERROR: Final = re.compile(r"##+|#(?:NAME\?|REF!|N/A|VALUE!|WERT!|BEZUG!|NV|DIV/0!|NUM!|ZAHL!|NULL!)")
_ROUNDED: Final = re.compile(r"[1-9]\d{14}0+", re.ASCII)
_DECIMAL: Final = re.compile(r"\d+[.,]0+", re.ASCII)
_MONTHS: Final = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    "mär", "mrz", "mai", "okt", "dez",
    "janv", "févr", "fév", "mars", "avr", "juin", "juil", "août", "sept", "déc",
    "ene", "abr", "ago", "dic", "gen", "mag", "giu", "lug", "set", "ott",
)  # fmt: skip
"""Short names of months in English, German, French, Spanish and Italian."""

_MONTH: Final = "(?:" + "|".join(f"[{m[0].upper()}{m[0]}]{m[1:]}" for m in sorted(_MONTHS, key=len, reverse=True)) + ")"
_DATE: Final = re.compile(
    rf"\d{{1,2}}\.?[-/ ]{_MONTH}\.?(?:[-/ ](?:\d\d|\d{{4}}))?|{_MONTH}\.?[-/ ](?:\d\d|\d{{4}})"
    r"|\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d\d)(?: 0?0:00(?::00)?)?"
    r"|\d{4}-\d\d-\d\d 0?0:00(?::00)?",
    re.ASCII,
)
AS_TEXT: Final = "format the column as text, enter it again and save the table"


_DAMAGED: Final = (
    (_EXPONENT, "a spreadsheet has rounded it to a power of ten"),
    (_DATE, "a spreadsheet has made a date of it"),
    (_ERROR, "a spreadsheet shows an error in its place"),
    (_ROUNDED, "a spreadsheet keeps 15 digits and has set the others to zero"),
    (_DECIMAL, "a spreadsheet has made a decimal number of it"),
)


def damage(cell: str) -> str | None:
    """Describe a spreadsheet's damage to a barcode, a plate's name or a well, and its remedy; None for a sound cell."""
    whole = unicodedata.normalize("NFC", cell)
    return next((f"{what}; {AS_TEXT}" for pattern, what in _DAMAGED if pattern.fullmatch(whole)), None)


ZEROS: Final = 20
"""Leading zeros that a name may have lost."""


def before_zeros_were_lost(cell: str) -> tuple[str, ...]:
    """List what a number may have been before a spreadsheet took its leading zeros; nothing for other texts."""
    if not (cell.isascii() and cell.isdigit()):
        return ()
    return tuple("0" * more + cell for more in range(1, ZEROS))

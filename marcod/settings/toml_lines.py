"""Line numbers of the keys of a TOML file, which ``tomllib`` does not tell."""

import re
from typing import Final

Key = tuple[str, ...]
"""Names from the top of the file to a value; elements of an array count from 0."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]*")
_ESCAPE: Final = re.compile(r'\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(["\\bfnrt]))')
_ESCAPED: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def key_lines(text: str) -> dict[Key, int]:
    """Return the line, counted from 1, on which each table and key of a valid file is first named."""
    reader = _Reader(text)
    reader.read_file()
    return reader.lines


class _Reader:
    """One pass over a file that ``tomllib`` has found valid, so that nothing is checked again."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Key, int] = {}
        self._text, self._at = text, 0
        self._tables: dict[Key, int] = {}

    def read_file(self) -> None:
        table: Key = ()
        while self._next():
            if self._text.startswith("[", self._at):
                table = self._read_header()
            else:
                self._read_pair(table)

    def _next(self) -> str:
        """Skip blanks and comments. Returns the character that follows, "" at the end."""
        self._at = self._match(_BLANK)
        return self._text[self._at : self._at + 1]

    def _match(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._text, self._at)
        assert found is not None
        return found.end()

    def _note(self, key: Key) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        for length in range(1, len(key) + 1):
            self.lines.setdefault(key[:length], line)

    def _read_header(self) -> Key:
        start = self._at
        several = self._text.startswith("[[", start)
        self._at += 2 if several else 1
        table = self._within(self._read_name())
        if several:
            number = self._tables[table] = self._tables.get(table, -1) + 1
            table = (*table, str(number))
        end, self._at = self._at, start
        self._note(table)
        self._at = end
        self._next()
        self._at += 2 if several else 1
        return table

    def _within(self, named: Key) -> Key:
        """Add the numbers of the array elements that a header means: always the latest."""
        full: Key = ()
        for part in named[:-1]:
            full = (*full, part)
            if full in self._tables:
                full = (*full, str(self._tables[full]))
        return (*full, named[-1])

    def _read_name(self) -> Key:
        """Read a key, dotted or not, up to what follows it."""
        parts = []
        while True:
            opening = self._next()
            start, self._at = self._at, self._match(_STRING if opening in ("'", '"') else _BARE)
            parts.append(_unquoted(self._text[start : self._at]))
            if self._next() != ".":
                return tuple(parts)
            self._at += 1

    def _read_pair(self, table: Key) -> None:
        start = self._at
        key = (*table, *self._read_name())
        end, self._at = self._at, start
        self._note(key)
        self._at = end + 1
        self._read_value(key)

    def _read_value(self, key: Key) -> None:
        opening = self._next()
        if opening in ("'", '"'):
            self._at = self._match(_STRING)
        elif opening == "[":
            self._read_elements(key)
        elif opening == "{":
            self._read_members(key)
        else:
            self._at = self._match(_PLAIN)

    def _read_elements(self, key: Key) -> None:
        self._at += 1
        number = 0
        while self._next() != "]":
            self._note((*key, str(number)))
            self._read_value((*key, str(number)))
            number += 1
            if self._next() == ",":
                self._at += 1
        self._at += 1

    def _read_members(self, key: Key) -> None:
        self._at += 1
        while self._next() != "}":
            self._read_pair(key)
            if self._next() == ",":
                self._at += 1
        self._at += 1


def _unquoted(name: str) -> str:
    if name.startswith("'"):
        return name[1:-1]
    return _ESCAPE.sub(_character, name[1:-1]) if name.startswith('"') else name


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _ESCAPED.get(escape[3], escape[3])

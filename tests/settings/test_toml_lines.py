"""Line numbers of keys: right for every way that TOML has to write one value."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod.settings.toml_lines import Key, key_lines


def _keys(value: Any, key: Key = ()) -> Iterator[Key]:
    if key:
        yield key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        yield from _keys(below, (*key, str(name)))


NAMES = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True), st.text(max_size=6))
SCALARS = st.one_of(
    st.integers(-(2**40), 2**40), st.booleans(), st.text(max_size=12), st.sampled_from(["#", "]", "}", "=", "[a]", '"'])
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(NAMES, below, max_size=3)),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)


@dataclass
class Writer:
    """A document in TOML, each value in one of the ways to write it, and on which line each key came first."""

    data: st.DataObject
    lines: list[str] = field(default_factory=list)
    expected: dict[Key, int] = field(default_factory=dict)

    def write(self, document: dict[str, Any]) -> str:
        tables = {name: value for name, value in document.items() if isinstance(value, dict) and self._choose()}
        self._members({name: value for name, value in document.items() if name not in tables}, ())
        for name, value in tables.items():
            self._table(value, (name,))
        return "\n".join(self.lines)

    def _choose(self) -> bool:
        return self.data.draw(st.booleans())

    def _note(self, key: Key) -> None:
        for length in range(1, len(key) + 1):
            self.expected.setdefault(key[:length], len(self.lines) + 1)

    def _table(self, table: dict[str, Any], key: Key) -> None:
        self._note(key)
        self.lines.append(f"[ {'.'.join(map(self._name, key))} ] # [no.table]")
        inner = {name: value for name, value in table.items() if isinstance(value, dict) and self._choose()}
        self._members({name: value for name, value in table.items() if name not in inner}, key)
        for name, value in inner.items():
            self._table(value, (*key, name))

    def _members(self, members: dict[str, Any], key: Key, dotted: Key = ()) -> None:
        for name, value in members.items():
            if isinstance(value, dict) and value and self._choose():
                self._members(value, (*key, name), (*dotted, name))
                continue
            self.lines += self.data.draw(st.lists(st.sampled_from(["", "# a = 1", "   # '''", '# """']), max_size=2))
            self._note((*key, name))
            start = f"  {' . '.join(map(self._name, (*dotted, name)))} = "
            self.lines += (start + self._value(value, (*key, name))).split("\n")

    def _name(self, name: str) -> str:
        plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        return name if plain and self._choose() else _quoted(name)

    def _value(self, value: Any, key: Key) -> str:
        """Write a value that begins on the line to come, and note its keys."""
        if isinstance(value, dict):
            for name, below in value.items():
                self._note((*key, name))
                # An inline table stands on one line.
                self._inline(below, (*key, name))
            return _inline(value)
        if isinstance(value, list) and value and self._choose():
            return self._lines_of(value, key)
        if isinstance(value, list):
            self._inline(value, key)
        if isinstance(value, str) and self._choose() and "'" not in value and value.isprintable():
            return f"'''{value}'''" if self._choose() else f"'{value}'"
        return _inline(value)

    def _inline(self, value: Any, key: Key) -> None:
        for below in _keys(value):
            self._note((*key, *below))

    def _lines_of(self, value: list[Any], key: Key) -> str:
        """Write an array with an element per line."""
        first = len(self.lines)
        self.lines.append("")
        for number, element in enumerate(value):
            self._note((*key, str(number)))
            self._inline(element, (*key, str(number)))
            self.lines.append(f"{_inline(element)}, # ]")
        rows = ["[ # [", *self.lines[first + 1 :]]
        del self.lines[first:]
        return "\n".join([*rows, "]"])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(name)} = {_inline(below)}" for name, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


@given(DOCUMENTS, st.data())
def test_every_key_is_found_on_the_line_that_names_it_first(document: dict[str, Any], data: st.DataObject) -> None:
    writer = Writer(data)
    text = writer.write(document)
    assert tomllib.loads(text) == document
    assert key_lines(text) == writer.expected
    assert set(writer.expected) == set(_keys(document))


BY_HAND = (
    ("a = 1\r\nb = 2\r\n", {("a",): 1, ("b",): 2}),
    ('a = """\n[b]\nc = 1\n\\""" x"""\nd = 1', {("a",): 1, ("d",): 5}),
    ("a = '''\n[b]'''''\nd = 1", {("a",): 1, ("d",): 3}),
    ("[[a]]\nb = 1\n[[a]]\n[a.c]\nd = 1", {("a", "1", "c", "d"): 5, ("a", "0", "b"): 2, ("a", "1"): 3}),
    ("a.\"b.c\".'d' = 1", {("a", "b.c", "d"): 1}),
    ('"\\u0061\\"" = 2020-01-01 10:00:00 # x', {('a"',): 1}),
    ('a = [\n  { b = 1 }, # {\n  { b = 2, c = [ "]" ] },\n]\nd = inf', {("a", "1", "c", "0"): 3, ("d",): 5}),
)


@pytest.mark.parametrize(("text", "lines"), BY_HAND)
def test_what_a_person_writes_by_hand(text: str, lines: dict[Key, int]) -> None:
    found = key_lines(text)
    assert set(_keys(tomllib.loads(text))) == set(found)
    assert {key: found[key] for key in lines} == lines

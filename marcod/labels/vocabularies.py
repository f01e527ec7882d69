"""Vocabularies: the codes and names that people score drops with, and their classes.

The tables are data: ``defaults.toml`` next to this file, and a lab's own file over it. Case, blanks, leading zeros and
a code's name instead of the code make no difference. Nothing is guessed: a label that is in no table, or that a table
leaves open, is an UnmappedError with the next step.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from marcod.domain import DropClass
from marcod.errors import ConfigError, LabelError, UnmappedError
from marcod.text import offer, quoted

DEFAULTS: Final = Path(__file__).with_name("defaults.toml")
UNMAPPED: Final = "unmapped"
WITHDRAWN: Final = "withdrawn"
"""Withdraws the person's label, in every vocabulary."""

LONGEST: Final = 1000
"""Characters of a label."""

_NUMBER: Final = re.compile(r"0*(\d+)(?:[.,]0+)?", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One code; ``label`` is None where the table leaves it open."""

    code: str
    label: DropClass | None
    name: str | None = None


@dataclass(frozen=True)
class Vocabulary:
    """One table. ``joined`` is the separator of several codes in one field; the largest counts."""

    name: str
    description: str = ""
    joined: str | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def words(self) -> list[Entry]:
        """The entries in the order of the tables."""
        return list(self.entries.values())

    def read(self, text: str) -> DropClass | None:
        """Return the class of a code or name, None for a withdrawal. Raises UnmappedError for other texts."""
        code = spelled(text)
        if code == WITHDRAWN:
            return None
        entry = self._entry(code)
        if entry is None:
            offered = offer(text, (each.code for each in self.words), "words")
            raise UnmappedError(f"{quoted(text)} is not in the vocabulary {self.name}; {offered}; or {_DECIDE}")
        if entry.label is None:
            called = f" ({entry.name})" if entry.name else ""
            raise UnmappedError(f"{quoted(text)}{called} is left open in the vocabulary {self.name}; {_DECIDE}")
        return entry.label

    def _entry(self, text: str) -> Entry | None:
        if self.joined and self.joined in text:
            codes = [_NUMBER.fullmatch(part.strip()) for part in text.split(self.joined)]
            text = str(max(int(code[1]) for code in codes if code)) if all(codes) else text
        if text in self.entries:
            return self.entries[text]
        return next((entry for entry in self.entries.values() if entry.name and spelled(entry.name) == text), None)


_DECIDE: Final = "give it a class in the file named by labels.vocabularies"


class Vocabularies:
    """All tables by name."""

    def __init__(self, tables: Mapping[str, Vocabulary]) -> None:
        self._tables = dict(tables)

    def __iter__(self) -> Any:
        return iter(self._tables.values())

    def named(self, name: str) -> Vocabulary:
        """Return a vocabulary. Raises ConfigError when there is none of that name."""
        if name not in self._tables:
            offered = offer(name, sorted(self._tables), "vocabularies")
            raise ConfigError(f"there is no vocabulary {quoted(name)}; {offered}")
        return self._tables[name]

    def split(self, text: str, default: str) -> tuple[Vocabulary, str]:
        """Split ``VOCABULARY:CODE``, or a code alone, into its vocabulary and code."""
        name, colon, code = text.partition(":")
        if colon and name.strip().lower() in self._tables:
            return self._tables[name.strip().lower()], code
        return self.named(default), text


def spelled(text: str) -> str:
    """Normalize a code or name for comparison. Raises LabelError for a text that is too long."""
    if len(text) > LONGEST:
        raise LabelError(
            f"a label of more than {LONGEST} characters is no label of a table; write the name or the code alone"
        )
    plain = " ".join(text.split()).casefold()
    number = _NUMBER.fullmatch(plain)
    return number[1] if number else plain


def load(own: Path | None = None) -> Vocabularies:
    """Load the shipped tables and a lab's own over them. Raises ConfigError for a file that cannot be used."""
    tables: dict[str, Vocabulary] = {}
    for path in (DEFAULTS, own):
        for name, content in (_parsed(path) if path is not None else {}).items():
            where = f"{path}: [{name}]"
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{where}: name a vocabulary with lower-case letters, digits, - and _")
            tables[name] = _laid_over(tables.get(name, Vocabulary(name)), content, where)
    return Vocabularies(tables)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the vocabularies {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the vocabularies {path} are not valid TOML: {error}") from error


def _laid_over(below: Vocabulary, content: object, where: str) -> Vocabulary:
    if not isinstance(content, dict) or set(content) - {"description", "joined", "words"}:
        raise ConfigError(f"{where}: write a table with description, joined and words")
    entries = dict(below.entries)
    words = content.get("words", {})
    if not isinstance(words, dict):
        raise ConfigError(f'{where}: words is a table such as "16" = "Crystals"')
    for code, value in words.items():
        key = spelled(code)
        entries[key] = _entry(code, value, entries.get(key), f"{where}: {quoted(code)}")
    more = {key: str(content[key]) for key in ("description", "joined") if key in content}
    return replace(below, entries=entries, **more)


def _entry(code: str, value: object, below: Entry | None, where: str) -> Entry:
    name = below.name if below else None
    if isinstance(value, dict):
        name, value = value.get("name", name), value.get("class")
    known = [str(label) for label in DropClass]
    if not isinstance(value, str) or value not in (*known, UNMAPPED) or not isinstance(name, str | None):
        raise ConfigError(f"{where}: the class is one of {', '.join(known)}, or {UNMAPPED}")
    return Entry(code, None if value == UNMAPPED else DropClass(value), name)

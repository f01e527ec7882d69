"""Text in messages: counted nouns, near names, and foreign text made safe for where it goes.

Foreign text comes from paths, files, databases and networks. It may steer a terminal, be a formula to a spreadsheet, or
hold bytes that a database refuses.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

QUOTED: Final = 80
"""Characters of foreign text that a sentence quotes."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

OFFERED: Final = 12
"""Known names that an error about an unknown one lists."""


_UNIT_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment_of(text: str, now: datetime) -> datetime:
    """Return the moment that ``90m``, ``24h``, ``7d`` or ``2w`` before now names, or a date in UTC.

    Raises ValueError or OverflowError for everything else.
    """
    if match := re.fullmatch(r"(\d+)([mhdw])", text):
        return now - timedelta(seconds=int(match[1]) * _UNIT_S[match[2]])
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def numbers_of(text: str, most: int) -> tuple[int, ...]:
    """Parse numbers from 0 and ranges of them, ends included: ``1..8``, ``3``, ``1..4,9``.

    Raises ValueError for anything else, for a number that is there twice, and for more than ``most`` numbers.
    """
    found: list[int] = []
    for part in text.split(","):
        ends = part.strip().split("..")
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() for end in ends):
            raise ValueError(f"{part.strip()!r} is neither a number nor a range such as 1..8")
        first, last = int(ends[0]), int(ends[-1])
        if last < first:
            raise ValueError(f"{part.strip()!r} begins after its end")
        if len(found) + last - first + 1 > most:
            raise ValueError(f"these are more than {most} numbers")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ValueError("a number is there twice")
    return tuple(found)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 file`` and ``2,000 files``; ``plural`` where adding an s is wrong."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, the nearest to ``name`` first and the others in their order."""
    import difflib

    names = list(dict.fromkeys(known))
    folded = {each: each.casefold() for each in names}
    alike = difflib.get_close_matches(name.casefold(), folded.values(), n=3, cutoff=0.6)
    first = sorted((each for each in names if folded[each] in alike), key=lambda each: alike.index(folded[each]))
    return [*first, *(each for each in names if each not in first)]


def offer(name: str, known: Iterable[str], what: str) -> str:
    """List the known names for an error about an unknown one, such as ``the sources are a, b and 3 more``."""
    names = nearest(name, known)
    if not names:
        return f"there are no {what}"
    return f"the {what} are {some(names, OFFERED)}"


def some(names: Sequence[str], most: int) -> str:
    """List names, of more than ``most`` the first ones: ``a, b and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def printable(foreign: str, *, keep: str = "", instead: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Replace the characters that are not printable, which would steer a terminal; those in ``keep`` stay."""
    return "".join(c if c.isprintable() or c in keep else instead for c in foreign)


def quoted(foreign: str) -> str:
    """Return text for a sentence: quoted, escaped, and its middle left out beyond :data:`QUOTED` characters."""
    half = QUOTED // 2 - 2
    return repr(foreign if len(foreign) <= QUOTED else f"{foreign[:half]}...{foreign[-half:]}")


def storable(foreign: str) -> str:
    """Escape undecodable bytes and NUL, which PostgreSQL refuses in a text."""
    return foreign.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")


def escaped(foreign: str, *, keep: str = "") -> str:
    """Escape the characters that are not printable, as Python does; those in ``keep`` stay."""
    if foreign.isprintable():
        return foreign
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in foreign)


def csv_safe(value: object) -> object:
    """Return a value that no spreadsheet takes for a formula: such text begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(_FORMULA_STARTS) else value


def without_guard(cell: str) -> str:
    """Remove the apostrophe that :func:`csv_safe` puts before a formula."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_STARTS) else cell


def in_words(value: object) -> str:
    """Write a JSON value for people: lists and mappings without brackets and quotes; empty for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        inner = any(isinstance(part, (list, tuple, Mapping)) for part in value)
        return (" / " if inner else ", ").join(in_words(part) for part in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _nested(value: object) -> str:
    return f"({in_words(value)})" if isinstance(value, (Mapping, list, tuple)) and value else in_words(value) or "-"

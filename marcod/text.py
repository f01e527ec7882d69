"""Words in messages: counted nouns, and what a word that nobody knows could have been."""

from collections.abc import Iterable
from typing import Final

OFFERED: Final = 12
"""Words that an answer to an unknown one names."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, such as ``1 file`` and ``2,000 files``; ``plural`` where adding an s is wrong."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known words, those that look most like ``word`` first and the others in their order."""
    import difflib

    words = list(dict.fromkeys(known))
    folded = {name: name.casefold() for name in words}
    alike = difflib.get_close_matches(word.casefold(), folded.values(), n=3, cutoff=0.6)
    first = sorted((name for name in words if folded[name] in alike), key=lambda name: alike.index(folded[name]))
    return [*first, *(name for name in words if name not in first)]


def offer(word: str, known: Iterable[str], what: str) -> str:
    """The known words for a sentence about an unknown one: ``the sources are a, b and 3 more``, the nearest first."""
    words = nearest(word, known)
    if not words:
        return f"there are no {what}"
    named = ", ".join(words[:OFFERED])
    more = len(words) - OFFERED
    return f"the {what} are {named}" + (f" and {more} more" if more > 0 else "")

"""Names of hosts as a cluster's administrator writes them: ``gpu*``, ``node[01-16,20]``, ``login?.example.org``.

A star stands for any characters, a question mark for one, and brackets for numbers: single ones and ranges, written
with as many digits as the first has. A pattern with a dot is a whole name, another one the name before the first dot.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

_TOKEN: Final = re.compile(r"\*|\?|\[[^\]]*\]|[A-Za-z0-9._-]")
_RANGE: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def require(pattern: str) -> None:
    """Check that a text is a pattern. Raises ValueError."""
    _tokens(pattern)


def is_pattern(text: str) -> bool:
    """Tell if a text is a pattern."""
    try:
        require(text)
    except ValueError:
        return False
    return True


def matches(pattern: str, host: str) -> bool:
    """Tell if a host's name is one of those that a pattern stands for. Raises ValueError for another text."""
    name = host if "." in pattern else host.partition(".")[0]
    return _matches(tuple(_tokens(pattern.lower())), name.lower())


def _tokens(pattern: str) -> list[str]:
    tokens = _TOKEN.findall(pattern)
    if not tokens or "".join(tokens) != pattern:
        raise ValueError("write a host as gpu*, node[01-16] or gpu1.example.org: letters, digits, . - _ * ? and [1-9]")
    for token in tokens:
        if token.startswith("["):
            _ranges(token)
    return tokens


@cache
def _ranges(token: str) -> Sequence[tuple[int, int, int]]:
    """Read the ranges of brackets: lowest, highest, and the digits that a number has at least."""
    found = []
    for part in token[1:-1].split(","):
        numbers = _RANGE.fullmatch(part)
        lowest, highest = (numbers[1], numbers[2] or numbers[1]) if numbers else ("1", "0")
        if int(lowest) > int(highest):
            raise ValueError(f"{part!r} in {token} is neither a number nor a range such as 01-16")
        found.append((int(lowest), int(highest), len(lowest)))
    return found


def _matches(tokens: tuple[str, ...], name: str) -> bool:
    """Follow all places of the name that the tokens so far can end at."""
    places = {0}
    for token in tokens:
        places = {end for place in places for end in _ends(token, name, place)}
    return len(name) in places


def _ends(token: str, name: str, place: int) -> Sequence[int]:
    if token == "*":
        return range(place, len(name) + 1)
    if token.startswith("["):
        return [end for end in range(place + 1, len(name) + 1) if _is_number(token, name[place:end])]
    return [place + 1] if place < len(name) and token in ("?", name[place]) else []


def _is_number(token: str, digits: str) -> bool:
    if not (digits.isascii() and digits.isdigit()):
        return False
    return any(
        lowest <= int(digits) <= highest and digits == str(int(digits)).zfill(width)
        for lowest, highest, width in _ranges(token)
    )

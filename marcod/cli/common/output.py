"""Sentences for people and JSON for programs."""

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Iterable
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.text import Text

from marcod.text import printable

if TYPE_CHECKING:
    from marcod.plates.reports import Summary
    from marcod.store.versions import Version
    from marcod.training.run_rows import Run

WIDE: Final = 400
_DASH: Final = "- "
_COMMAND: Final = re.compile(r"`[^`]*`")

ATTENTION: Final = 3
"""Exit code: something was left for people to look at."""


def end(*, attention: bool) -> None:
    """End the command, with :data:`ATTENTION` where a person should look."""
    click.get_current_context().exit(ATTENTION if attention else 0)


def console(*, to_errors: bool = False) -> Console:
    """Make a rich console on standard output or standard error."""
    stream = sys.stderr if to_errors else sys.stdout
    # Without a terminal there is no width to fit, so nothing is cut.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else WIDE)


def warn_of_synthetic(*, scored: bool, to_errors: bool = False) -> None:
    """Print the notice where the scores shown come from a model trained on rendered drops alone (``scored``)."""
    if scored:
        from marcod.store import versions

        _warn(versions.SYNTHETIC_NOTICE, to_errors=to_errors)


def warn_of_synthetic_champion(champion: "Version", *, to_errors: bool = False) -> None:
    """Print what a champion trained on rendered drops alone must not be used for; nothing for any other."""
    if champion.synthetic:
        from marcod.store import versions

        _warn(f"{champion} was {versions.RENDERED_ALONE}. {versions.REAL_MODEL}.", to_errors=to_errors)


def _warn(text: str, *, to_errors: bool) -> None:
    console(to_errors=to_errors).print(Text(text, "yellow"), soft_wrap=False)


def without_token(run: "Run") -> dict[str, Any]:
    """Return a training run for programs, without its token, which is a secret."""
    return {name: value for name, value in dataclasses.asdict(run).items() if name != "token"}


def print_json(value: object) -> None:
    """Print one JSON document on standard output."""
    click.echo(json_text(value))


def json_text(value: object) -> str:
    """Return a value as JSON; dataclasses, times, enumerations, paths and sets are allowed inside."""
    return json.dumps(value, default=_plain, indent=2)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def say(console: Console, sentence: str, style: str = "") -> None:
    """Print a sentence; on a terminal it is folded between its words."""
    for line in printable(sentence, keep="\n").split("\n"):
        for part in folded(line, console.width) if console.is_terminal else [line]:
            console.print(Text(part), style=style or None, soft_wrap=True)


def echo(sentence: str = "", *, err: bool = False, style: str = "") -> None:
    """Print a sentence on standard output or standard error as :func:`say` does.

    Text that must stay unchanged, such as a file's content or a table to copy, is printed by ``click.echo``.
    """
    say(console(to_errors=err), sentence, style)


def echo_first(sentences: Iterable[str], most: int, rest: str = "", *, err: bool = False) -> None:
    """Print the first ``most`` sentences, and how many more there are, followed by ``rest``."""
    listed = list(sentences)
    for sentence in listed[:most]:
        echo(printable(sentence), err=err)
    if len(listed) > most:
        echo(f"and {len(listed) - most:,} more{rest}", err=err)


def folded(sentence: str, width: int) -> list[str]:
    """Fold a sentence into lines with its own indentation.

    A word that is longer than a line, such as a path, stays whole, and so does a command between backquotes that fits.
    """
    body = sentence.lstrip(" ")
    indent = sentence[: len(sentence) - len(body)]
    further = indent + (" " * len(_DASH) if body.startswith(_DASH) else "")
    room = width - len(further)
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", "\xa0") if len(found[0]) <= room else found[0], body)
    lines = textwrap.wrap(
        whole, width, initial_indent=indent, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\xa0", " ") for line in lines] or [""]


def completeness(summary: "Summary") -> str:
    """Return how many drops of an inspection are scored, or that it is complete and by which rule."""
    if summary.complete:
        return f"complete ({summary.complete_rule})" if summary.complete_rule else "complete"
    return f"{summary.scored} of {summary.expected or summary.seen} scored"

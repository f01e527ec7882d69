"""How results are printed: tables and plate maps for people, JSON for programs."""

import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
from rich.text import Text

from marcod import text
from marcod.cli.configured import configured
from marcod.errors import ConfigError, MarcodError, os_reason

if TYPE_CHECKING:
    from marcod.plates.reports import Summary
    from marcod.store.versions import Version
    from marcod.training.run_rows import Run

Command = TypeVar("Command", bound=Callable[..., Any])

WIDE: Final = 400
GAP: Final = 2
"""Characters between two columns."""

LEAST_PROSE: Final = 30
"""Width below which a column of sentences is written below its row."""

INDENT: Final = 4

NO_ROOM: Final = 2**20
"""Bytes free below which a disk is called full."""

_DASH: Final = "- "
_COMMAND: Final = re.compile(r"`[^`]*`")

ATTENTION: Final = 3
"""Exit code: something was left for people to look at."""


def as_json(command: Command) -> Command:
    """The ``--json`` option that every reading command has."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON for programs")(command)


def console(*, to_errors: bool = False) -> Console:
    """A rich console on standard output or standard error."""
    stream = sys.stderr if to_errors else sys.stdout
    # Away from a terminal nothing is cut to fit a width nobody looks at.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else WIDE)


def warn_of_synthetic(*, scored: bool, to_errors: bool = False) -> None:
    """Print the notice where ``scored`` says that a model trained on rendered drops alone gave what was shown."""
    if scored:
        from marcod.store import versions

        _warn(versions.SYNTHETIC_NOTICE, to_errors=to_errors)


def warn_of_synthetic_champion(champion: "Version", *, to_errors: bool = False) -> None:
    """Say what a champion that learned from rendered drops alone is not for; nothing of any other."""
    if champion.synthetic:
        from marcod.store import versions

        _warn(f"{champion} was {versions.RENDERED_ALONE}. {versions.REAL_MODEL}.", to_errors=to_errors)


def _warn(text: str, *, to_errors: bool) -> None:
    console(to_errors=to_errors).print(Text(text, "yellow"), soft_wrap=False)


def without_token(run: "Run") -> dict[str, Any]:
    """A training run for programs; its token is nobody's business."""
    return {name: value for name, value in dataclasses.asdict(run).items() if name != "token"}


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json_text(value))


def json_text(value: object) -> str:
    """A value, dataclasses and times included, as JSON."""
    return json.dumps(value, default=_plain, indent=2)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@dataclass(frozen=True, slots=True)
class Listing:
    """A table that never cuts a cell; numbers, or with ``right`` all but the first column, stand to the right.

    On a terminal that is too narrow the groups of columns named in ``spare`` are left out, one after another. The last
    column is folded between its words when it is ``prose``, or written below its row where there is no room beside it.
    What is still too wide runs over, so that a key or a path can be copied whole.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    spare: tuple[tuple[str, ...], ...]
    prose: bool
    styles: tuple[str, ...]
    right: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        overflow: OverflowMethod = "ignore" if options.no_wrap else "fold"
        for line in self._lines(options.max_width if console.is_terminal else None):
            line.no_wrap, line.overflow = options.no_wrap, overflow
            yield line

    @property
    def width(self) -> int:
        """Characters that the widest line takes when nothing is left out or folded."""
        return _total([self._width(place) for place in range(len(self.columns))])

    def _lines(self, room: int | None) -> Iterator[Text]:
        """The lines for a width; None is any."""
        for line in harmless(self.title).split("\n") if self.title else ():
            yield from (Text(part, style="italic") for part in folded(line, room or WIDE))
        if not self.rows:
            return
        kept = self._kept(room)
        widths = [self._width(place) for place in kept]
        below = 0
        if room is not None and self.prose and _total(widths) > room:
            beside = room - _total([*widths[:-1], 0])
            below = 0 if beside >= LEAST_PROSE else room - INDENT
            widths[-1] = beside if not below else 0
        if any(self.columns):
            heads = [self.columns[place].split("\n") for place in kept]
            for upper in range(-max(map(len, heads)), 0):
                cells = [Text(head[upper] if len(head) >= -upper else "") for head in heads]
                yield from self._row(cells, kept, widths, "bold", below)
        for row, style in zip_longest(self.rows, self.styles, fillvalue=""):
            yield from self._row([_cell(row[place]) for place in kept], kept, widths, style, below)
        if left_out := [name.split("\n")[-1] for place, name in enumerate(self.columns) if place not in kept]:
            sentence = f"no room for: {', '.join(left_out)}; --json has them"
            yield from (Text(part, style="dim") for part in folded(sentence, room or WIDE))

    def _kept(self, room: int | None) -> list[int]:
        """The places of the columns that are shown."""
        kept = list(range(len(self.columns)))
        for group in self.spare:
            widths = [self._width(place) for place in kept]
            if room is None or _total(widths[:-1] if self.prose else widths) <= room:
                break
            kept = [place for place in kept if self.columns[place] not in group]
        return kept

    def _width(self, place: int) -> int:
        heads = self.columns[place].split("\n")
        return max(0, *map(cell_len, heads), *(_cell(row[place]).cell_len for row in self.rows))

    def _row(
        self, cells: Sequence[Text], kept: Sequence[int], widths: Sequence[int], style: str, below: int
    ) -> Iterator[Text]:
        """The lines of a row; ``below`` is the width of its prose where that stands below it."""
        parts_of = [[cell] for cell in cells]
        if below:
            parts_of[-1] = []
        elif self.prose:
            parts_of[-1] = [Text(part) for part in folded(cells[-1].plain, widths[-1])] if widths[-1] else []
        for parts in zip_longest(*parts_of, fillvalue=Text()):
            line = Text(style=style)
            for part, place, width in zip(parts, kept, widths, strict=True):
                free = " " * (width - part.cell_len)
                numeric = self._numeric(place)
                line.append(free if numeric else "").append_text(part).append("" if numeric else free).append(" " * GAP)
            line.rstrip()
            yield line
        for sentence in folded(cells[-1].plain, below) if below and cells[-1] else []:
            yield Text(" " * INDENT + sentence, style=style)

    def _numeric(self, place: int) -> bool:
        return (self.right and place > 0) or (
            bool(self.rows) and all(isinstance(row[place], (int, float)) for row in self.rows)
        )


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    spare: Iterable[Iterable[str]] = (),
    prose: bool = False,
    styles: Iterable[str] = (),
    right: bool = False,
) -> Listing:
    """A plain table; see :class:`Listing`."""
    groups = tuple(tuple(group) for group in spare)
    return Listing(title, tuple(columns), tuple(tuple(row) for row in rows), groups, prose, tuple(styles), right)


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(printable(" ".join(in_words(value).split("\n"))))


def in_words(value: object) -> str:
    """A value of JSON for people: lists and what names values without brackets and quotes; empty for None."""
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


def folded(sentence: str, width: int) -> list[str]:
    """Lines of a sentence that are indented as it is; a word that is longer, such as a path, stays whole.

    So does a command between backquotes where there is room for it.
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


def say(console: Console, sentence: str, style: str = "") -> None:
    """Print a sentence; on a terminal it is folded between its words."""
    for line in harmless(sentence).split("\n"):
        for part in folded(line, console.width) if console.is_terminal else [line]:
            console.print(Text(part), style=style or None, soft_wrap=True)


def echo(sentence: str = "", *, err: bool = False, style: str = "") -> None:
    """Print a sentence on standard output or standard error as :func:`say` does; the one way to tell people anything.

    What must reach them letter by letter, such as a file's content or a table to copy, goes by ``click.echo``.
    """
    say(console(to_errors=err), sentence, style)


def printable(text: str) -> str:
    """Text from a file name or a database, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def harmless(text: str) -> str:
    """:func:`printable` text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def place(well: str, drop: int | None) -> str:
    """A drop as lists name it, such as ``A01.2``; the well alone where its only drop is meant."""
    return well if drop is None else f"{well}.{drop}"


def counted(shown: int, total: int, noun: str, rest: str = "", *, plural: str | None = None) -> str:
    """The title of a list: how many it shows, and of how many where ``--limit`` leaves some out."""
    if shown >= total:
        return text.count(shown, noun, plural) + rest
    return f"{shown:,} of {text.count(total, noun, plural)}{rest}; --limit shows more"


def state_of(summary: "Summary") -> str:
    """How far an inspection is."""
    if summary.complete:
        return f"complete ({summary.complete_rule})" if summary.complete_rule else "complete"
    return f"{summary.scored} of {summary.expected or summary.seen} scored"


class OutFile(click.Path):
    """A file that a command writes; where it cannot, the command is refused before any work."""

    def __init__(self, *, dash: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=dash)
        self.name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises ConfigError."""
        path = Path(str(super().convert(value, param, ctx)))
        if not (self.allow_dash and str(path) == "-"):
            check_writable(path)
        return path


def check_there(path: Path, what: str) -> None:
    """Raises ConfigError for a file or folder to be read that is not there; ``what`` is asked for instead."""
    if str(path) != "-" and not os.path.lexists(path):
        raise ConfigError(f"{path} does not exist; name {what}")


def check_writable(target: Path) -> None:
    """Raises ConfigError for a file that this user cannot write, because of its folder or of what is there already."""
    folder = target.absolute().parent
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to write {target.name} into; make it, or name another")
    if target.exists() and not target.is_file():
        # A device or a pipe is written where it is; a file is replaced by one made beside it.
        if not os.access(target, os.W_OK, effective_ids=True):
            raise ConfigError(f"this user may not write to {target}; name another file")
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(f"this user may not write into {folder}; name another folder")


def check_tree(folder: Path) -> None:
    """Raises ConfigError for a folder that this user can neither write into nor make."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder; name another")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(f"this user may not write into {there}; name another folder")


def full_place(ctx: click.Context) -> str:
    """Where a command writes and no room is left; a write to an open file does not say which file it was."""
    settings = configured(ctx).settings
    places = [Path(tempfile.gettempdir()), Path.cwd(), settings.models.folder, settings.train.folder]
    full = [str(place) for place in places if place.is_dir() and shutil.disk_usage(place).free < NO_ROOM]
    return " or ".join(full) or "what this command writes"


def check_place(target: Path, roots: Iterable[Path]) -> None:
    """Raises ConfigError for a place where only imagers write."""
    for root in roots:
        if target.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"{target} is inside the source folder {root}, where only the imager writes; choose another"
            )


def save(target: Path, data: str | bytes, roots: Iterable[Path]) -> None:
    """Write a file whole or not at all, text as UTF-8. Raises MarcodError, and ConfigError as ``check_place`` does."""
    check_place(target, roots)
    content = data.encode() if isinstance(data, str) else data
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}-", dir=target.parent) as scratch:
            unfinished = Path(scratch) / target.name
            unfinished.write_bytes(content)
            unfinished.replace(target)
    except OSError as error:
        raise MarcodError(f"{target} cannot be written: {os_reason(error)}") from error


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with time left on a terminal, a line now and then elsewhere. Yields ``done(count)``."""
    from marcod.cli import bars

    with bars.bar(console(to_errors=True), last_lines=False) as report:
        if total != 0:
            report(description, 0, total)
        yield lambda count: report(description, count, total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """For work in several stages: a bar per stage on a terminal, a line now and then and one at its end elsewhere.

    Yields ``report(stage, done, total)``.
    """
    from marcod.cli import bars

    with bars.bar(console(to_errors=True), last_lines=True) as report:
        yield report

"""Options and arguments that several commands have, and the files and folders they name."""

import errno
import getpass
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from marcod.cli.common.configured import configured
from marcod.domain import drop_name
from marcod.errors import ConfigError

if TYPE_CHECKING:
    from marcod import app
    from marcod.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])
Name = TypeVar("Name", bound=str)


class _Place(click.Path):
    """A path that a file or folder can have; an empty one, such as of an unset variable, is not the current folder."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("it is empty; name a file or folder, . for this one", param, ctx)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail("the name is too long for a file", param, ctx)
        return super().convert(value, param, ctx)


FILE: Final = _Place(path_type=Path, dir_okay=False)
FOLDER: Final = _Place(path_type=Path, file_okay=False)
PLACE: Final = _Place(path_type=Path)
"""Types of arguments and options that name a file, a folder, or either."""

NO_ROOM: Final = 2**20
"""Bytes free below which a disk is called full."""


def as_json(command: Command) -> Command:
    """Add the option ``--json`` to a command that reads."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON for programs")(command)


def together(*parts: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make one decorator of options and arguments that stand together, in their order."""

    def decorate(command: Command) -> Command:
        for part in reversed(parts):
            command = part(command)
        return command

    return decorate


naming_a_drop: Final = together(
    click.argument("plate", metavar="KEY_OR_BARCODE"),
    click.argument("well"),
    click.option("--drop", type=click.IntRange(1, 999), help="Which drop [default: the only one]"),
    click.option("--inspection", metavar="KEY_OR_NUMBER", help="At which inspection [default: the latest]"),
    click.option("--source", help="The plate of this source, when several have one of that name"),
)
"""Arguments and options that name a drop at an inspection: the fields of a ``DropReference``."""


def drop_of(named: Mapping[str, Any]) -> str:
    """Return the drop named by :data:`naming_a_drop` with its plate, as a person named them."""
    return f"{drop_name(named['well'], named['drop'])} of {named['plate']}"


def since(meaning: str) -> Callable[[Command], Command]:
    """Add the option ``--since``, an age or a date, with what it chooses."""
    return click.option("--since", callback=age_or_date, metavar="AGE|DATE", help=meaning)


def columns_as(fields: Collection[str], meaning: str) -> Callable[[Command], Command]:
    """Add the option ``--map COLUMN=FIELD``, which may be repeated; the command gets the fields by column."""

    def mapping(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for pair in pairs:
            column, _, name = pair.rpartition("=")
            if not column.strip() or name.strip().lower() not in fields:
                raise click.BadParameter(f"{pair!r}: write COLUMN=FIELD, with one of {', '.join(fields)}")
            found[column.strip()] = name.strip().lower()
        return found

    return click.option("--map", "columns", multiple=True, callback=mapping, metavar="COLUMN=FIELD", help=meaning)


class Choice(click.Choice[Name]):
    """An option with a few values; for any other value the error lists them, the nearest first."""

    def __init__(self, choices: Iterable[Name], *, case_sensitive: bool = True) -> None:
        super().__init__(choices, case_sensitive=case_sensitive)

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        """Return the error for a value that is not allowed."""
        from marcod import text

        names = text.nearest(str(value), [str(choice) for choice in self.choices])
        return f"{str(value)!r} is not one of {', '.join(map(repr, names))}."


def age_or_date(_ctx: click.Context, _param: click.Parameter, given: str | None) -> datetime | None:
    """Parse an option ``AGE|DATE``: ``90m``, ``24h``, ``7d``, ``2w`` before now, or a date in UTC."""
    from marcod import text

    if given is None:
        return None
    try:
        return text.moment_of(given, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter("give an age such as 90m, 24h, 7d, 2w, or a date such as 2026-05-01") from error


def actor() -> str:
    """Return the name of the user who runs the command, or their number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class OutFile(click.Path):
    """A file that a command writes; one that cannot be written is refused before any work.

    Its name ends with one of ``kinds``, which tell the format, where there are any.
    """

    def __init__(self, *kinds: str, dash: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=dash)
        self.name = "file"
        self._kinds = kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises ConfigError."""
        path = Path(str(super().convert(value, param, ctx)))
        if self._kinds and path.suffix.lower() not in self._kinds:
            self.fail(f"its end tells the format; end the name with {', '.join(self._kinds)}", param, ctx)
        if not (self.allow_dash and str(path) == "-"):
            check_writable(path)
        return path


def check_there(path: Path, what: str) -> None:
    """Raise ConfigError for a missing file or folder to read; the sentence asks for ``what`` instead."""
    if str(path) != "-" and not os.path.lexists(path):
        raise ConfigError(f"{path} does not exist; name {what}")


def check_writable(target: Path) -> None:
    """Raise ConfigError for a file that this user cannot write, because of its folder or of the present file."""
    folder = target.absolute().parent
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to write {target.name} into; make it, or name another")
    if target.exists() and not target.is_file():
        # A device or a pipe is written where it is; a file is replaced, so its folder counts.
        if not os.access(target, os.W_OK, effective_ids=True):
            raise ConfigError(f"this user may not write to {target}; name another file")
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(f"this user may not write into {folder}; name another folder")


def check_tree(folder: Path) -> None:
    """Raise ConfigError for a folder that this user can neither write into nor make."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder; name another")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(f"this user may not write into {there}; name another folder")


def full_places(ctx: click.Context) -> str:
    """Name the folders without free space that a command may write to; the error itself may not name its file."""
    settings = configured(ctx).settings
    places = [Path(tempfile.gettempdir()), Path.cwd(), settings.models.folder, settings.train.folder]
    full = [str(place) for place in places if place.is_dir() and shutil.disk_usage(place).free < NO_ROOM]
    return " or ".join(full) or "what this command writes"


def source_roots(settings: "Settings", ready: "app.App") -> dict[str, Path]:
    """Return the folder of each source: the configured one, else the one last recorded."""
    from marcod import app

    return _recorded(ready) | app.roots(settings)


def protected_folders(settings: "Settings", ready: "app.App") -> list[Path]:
    """Return all folders where only imagers write, also those where a source was before it moved."""
    return [*_recorded(ready).values(), *(source.root for source in settings.sources.values())]


def _recorded(ready: "app.App") -> dict[str, Path]:
    from marcod.store import sources

    return {name: Path(root) for name, root in ready.db.read(sources.roots).items()}

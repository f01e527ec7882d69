"""marcod as a service of this host: puts systemd's units, the user, the folders and an example configuration in place.

Nothing is written unless all of it can be, that a file
is there whole or not at all, that a second run changes nothing, and that a configuration is never overwritten. Nothing
is started and no user is made: the files say what is to be done, and systemd's own programs do it.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from marcod import files
from marcod.errors import ConfigError, MarcodError, os_reason

PROGRAM: Final = "/opt/marcod/bin/marcod"
"""The program that the files in ``systemd/`` start."""

USER: Final = "marcod"
"""The user and the group that they name."""

HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))
"""Folders that a service does not see, by ProtectHome and PrivateTmp (systemd.exec(5))."""

UNITS: Final = "usr/local/lib/systemd/system"
CONFIGURATION: Final = "etc/marcod/marcod.toml"
PLACES: Final = {
    "marcod.sysusers": "usr/local/lib/sysusers.d/marcod.conf",
    "marcod.tmpfiles": "usr/local/lib/tmpfiles.d/marcod.conf",
    "STORE__URL": "usr/local/share/marcod/STORE__URL",
    "marcod.toml": CONFIGURATION,
}
"""Where each file goes that is no unit. What an administrator changes is in /etc, which systemd prefers."""


class FileState(StrEnum):
    """Outcome for one file."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Installed:
    """One file and what became of it, or would."""

    path: Path
    state: FileState


def folder() -> Path:
    """Return the folder of unit files: installed with the package, else next to it in a checkout."""
    return files.shipped("systemd")


def this_program() -> Path:
    """Return the `marcod` of this environment. Raises ConfigError when services cannot see it or it is missing."""
    program = Path(sys.executable).parent / "marcod"
    if not program.is_file():
        raise ConfigError(
            f"there is no {program}; install the wheel that `make wheel` builds, or name the program with --exec"
        )
    for needed in (program, Path(sys.executable).resolve(), Path(__file__).resolve()):
        refuse_hidden(needed)
    return program


def refuse_hidden(path: Path) -> None:
    """Raise ConfigError for a path that a service does not see."""
    for place in HIDDEN:
        if path.is_relative_to(place):
            raise ConfigError(
                f"{path} is below {place}, which services do not see; install marcod elsewhere: "
                "python3 -m venv /opt/marcod && /opt/marcod/bin/pip install WHEEL, which `make wheel` builds"
            )


def install(prefix: Path, program: Path, user: str = USER, *, dry_run: bool = False) -> list[Installed]:
    """Write all files below ``prefix``, which is / on the host itself, so that units start ``program`` as ``user``.

    With ``dry_run`` only say what would become of them. Raises ConfigError for a program or a user that cannot be in a
    unit, MarcodError for files that cannot be written.
    """
    _check(prefix, program, user)
    wanted = [(prefix / place, text, mode) for place, text, mode in _files(program, user)]
    found = [Installed(path, _state(path, text)) for path, text, _ in wanted]
    if not dry_run:
        needed = [(*file, at.state) for file, at in zip(wanted, found, strict=True)]
        _write_all(
            [(path, text, mode) for path, text, mode, state in needed if state in (FileState.NEW, FileState.CHANGED)]
        )
    return found


def _check(prefix: Path, program: Path, user: str) -> None:
    # Anything else would have to be quoted, for systemd gives a meaning to blanks, quotes, % and $.
    if not re.fullmatch(r"/[A-Za-z0-9/._+@-]+", str(program)):
        raise ConfigError(f"the program {str(program)!r} must be an absolute path of letters, digits and / . _ + @ -")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", user):
        raise ConfigError(f"{user!r} is no name of a user: use lower-case letters, digits, _ and -")
    refuse_hidden(program)
    if prefix == Path("/") and not os.access(program, os.X_OK):
        raise ConfigError(f"{program} is no program; name the installed marcod with --exec")


def _files(program: Path, user: str) -> Iterator[tuple[str, str, int]]:
    """Place below the prefix, content and mode of each file."""
    for file in sorted(folder().iterdir()):
        place = PLACES.get(file.name) or f"{UNITS}/{file.name}"
        text = file.read_text().replace(PROGRAM, str(program))
        text = "\n".join(_for_user(line, user) for line in text.split("\n"))
        yield place, text, 0o640 if place == CONFIGURATION else 0o644


def _for_user(line: str, user: str) -> str:
    """Return a line with the user's name in place of the usual one, where it is a word of its own and no remark."""
    if line.startswith("#"):
        return line
    named = {USER, f"User={USER}", f"Group={USER}"}
    return " ".join(word.replace(USER, user) if word in named else word for word in line.split(" "))


def _state(path: Path, text: str) -> FileState:
    try:
        if not path.exists():
            return FileState.NEW
        if path.name == Path(CONFIGURATION).name:
            return FileState.KEPT
        return FileState.SAME if path.read_text(errors="replace") == text else FileState.CHANGED
    except OSError as error:
        raise MarcodError(f"{path} cannot be read: {error.strerror}") from error


def _write_all(listed: list[tuple[Path, str, int]]) -> None:
    for path, _, _ in listed:
        nearest = next(parent for parent in path.parents if parent.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            raise MarcodError(f"{path} cannot be written by this user; run it as root, or name another --prefix")
    for path, text, mode in listed:
        try:
            _make(path.parent)
            files.write_whole(path, text, mode=mode)
        except OSError as error:
            raise MarcodError(f"{path} cannot be written: {os_reason(error)}") from error


def _make(folder: Path) -> None:
    """Return the folder and those above it, which everybody may enter whatever the umask is."""
    for place in reversed([folder, *folder.parents]):
        if not place.exists():
            place.mkdir()
            place.chmod(0o755)


def next_steps(config: Path) -> list[str]:
    """Return the commands that make a service of the files, in order, as root."""
    return [
        "systemd-sysusers",
        "systemd-tmpfiles --create",
        f"editor {config}",
        "systemctl daemon-reload",
        "systemctl enable --now marcod.service",
    ]

"""Layers of the configuration: what the file, credentials, variables and the command line say, and where.

Each layer is read as far as it can be. What cannot be is a fault, and the rest is put together all the same.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from marcod.settings import NAMED, Settings, hosts, keys
from marcod.settings.environment import PREFIX
from marcod.settings.faults import Fault
from marcod.settings.toml_lines import Key, key_lines

OUTSIDE: Final = frozenset(
    {
        "MARCOD_CONFIG",
        "MARCOD_PUBLISHED_WHEEL",
        "MARCOD_TEST_POSTGRES_URL",
        "MARCOD_REAL_PLATES",
        "MARCOD_MARCO_SAVED_MODEL",
    }
)
"""Variables with the prefix that are not settings: which files to read, and what tests and benchmarks use."""

CREDENTIAL: Final = "credential "
"""Beginning of the place of a value that came from a credential."""

CREDENTIAL_BYTES: Final = 2**20
"""Size above which a file is no credential."""

_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_UNCLOSED: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*(?:#.*)?")
_MORE_LATER: Final = "what else is wrong in the file shows once this is mended"
_NOT_JSON: Final = "this takes several values or a table, as JSON"


@dataclass
class Layers:
    """Values of all layers, the strongest on top, with the place that each came from."""

    file: Path | None
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    lines: Mapping[Key, int] = field(default_factory=dict)
    """Lines of the file; only known once something is wrong, for nobody else asks."""

    def put(self, values: Mapping[str, Any], place: str) -> None:
        """Lay values over those of weaker layers."""
        _lay(self.values, values)
        self.places |= dict.fromkeys(flat(values), place)

    def place(self, key: Key) -> tuple[str, int | None]:
        """Return where a key stands, or the nearest thing around or below it: a name for people, and a line."""
        around = [key[:length] for length in range(len(key), 0, -1)]
        exact = next((self.places[part] for part in around if part in self.places), None)
        below = next((place for known, place in self.places.items() if known[: len(key)] == key), None)
        found = exact or below
        if found is None:
            beside = (place for known, place in self.places.items() if known[: len(key) - 1] == key[:-1])
            found = next(beside, str(self.file) if self.file else "defaults")
        if found != str(self.file):
            return found, None
        return found, next((self.lines[part] for part in around if part in self.lines), None)


def read(file: Path | None, overrides: Mapping[str, Any], host: str) -> Layers:
    """Read every layer, the weakest first, as it is for a host."""
    layers = Layers(file)
    if file is not None:
        _read_file(layers, file)
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        for path in _credential_files(Path(folder), layers):
            _read_credential(layers, path)
    for name, text in sorted(os.environ.items()):
        if name.upper().startswith(PREFIX) and name not in OUTSIDE:
            _read_text(layers, name, text, f"variable {name}")
    layers.put(overrides, "the command line")
    _put_roots_here(layers, host)
    return layers


def _put_roots_here(layers: Layers, host: str) -> None:
    """Replace the file's roots of sources by those that ``hosts`` has for this one; of several the last counts."""
    for key in [key for key in layers.places if key[0] == "hosts" and key[2::2] == ("sources", "root")]:
        _, pattern, _, name, _ = key
        source, root = _value(layers.values, ("sources", name)), _value(layers.values, key)
        place = layers.places.get(("sources", name, "root"), str(layers.file))
        is_here = hosts.is_pattern(pattern) and hosts.matches(pattern, host)
        if is_here and isinstance(source, dict) and isinstance(root, str) and place == str(layers.file):
            source["root"] = root


def _value(values: object, key: Key) -> object:
    for name in key:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def flat(values: Mapping[str, Any], above: Key = ()) -> Iterator[Key]:
    """Yield the key of every value that is not a table, and of every empty table."""
    for name, value in values.items():
        below = list(flat(value, (*above, str(name)))) if isinstance(value, Mapping) else []
        yield from below or [(*above, str(name))]


def _lay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, Mapping):
            below = under.get(name)
            under[name] = dict(below) if isinstance(below, Mapping) else {}
            _lay(under[name], value)
        else:
            under[name] = value


def _read_file(layers: Layers, file: Path) -> None:
    try:
        text = file.read_bytes().decode("utf-8")
        layers.put(tomllib.loads(text), str(file))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        layers.faults.append(Fault(str(file), line, "this is not UTF-8 text; save the file as UTF-8"))
    except tomllib.TOMLDecodeError as error:
        layers.faults.append(_not_toml(file, text, str(error)))
    except OSError as error:
        layers.faults.append(Fault(str(file), None, f"it cannot be read: {error.strerror}; let this user read it"))


def _not_toml(file: Path, text: str, said: str) -> Fault:
    """Make a fault of what ``tomllib`` says; the line itself is not shown, as a password may stand in it."""
    found = _PLACE.search(said)
    line = int(found[1]) if found and found[1] else text.count("\n") + 1
    column = f", column {found[2]}" if found and found[2] else ""
    reason = _PLACE.sub("", said)
    example = (
        _closed(text, line)
        or 'root = "/mnt/minstrel3/images"  # a key, =, and a text in quotes or a number; [sources.NAME] is a table'
    )
    return Fault(str(file), line, f"this is not valid TOML{column}: {reason}; {_MORE_LATER}", example=example)


def _closed(text: str, line: int) -> str | None:
    """Return the heading of a table that lacks its closing bracket; such names are not secret."""
    lines = text.split("\n")
    found = _UNCLOSED.fullmatch(lines[line - 1]) if line <= len(lines) else None
    return f"[{found[1]}]" if found else None


def locate(layers: Layers) -> None:
    """Find the lines of the file's keys, which only who reports a fault needs."""
    if layers.file is not None and str(layers.file) in layers.places.values():
        layers.lines = key_lines(layers.file.read_text(encoding="utf-8"))


def _credential_files(folder: Path, layers: Layers) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.name.upper().startswith(PREFIX) and path.is_file())
    except OSError as error:
        text = f"the credentials cannot be read: {error.strerror}; correct CREDENTIALS_DIRECTORY"
        layers.faults.append(Fault(str(folder), None, text))
        return []
    return found


def _read_credential(layers: Layers, path: Path) -> None:
    place = f"{CREDENTIAL}{path}"
    try:
        if path.stat().st_size > CREDENTIAL_BYTES:
            layers.faults.append(Fault(place, None, "this file is too large for a credential"))
            return
        text = path.read_bytes().decode("utf-8").strip()
    except OSError as error:
        layers.faults.append(Fault(place, None, f"it cannot be read: {error.strerror}; let this user read it"))
    except UnicodeDecodeError:
        layers.faults.append(Fault(place, None, "this is not UTF-8 text; save the file as UTF-8"))
    else:
        _read_text(layers, path.name, text, place)


def _read_text(layers: Layers, name: str, text: str, place: str) -> None:
    """Take a variable or a credential, which are named alike."""
    key = tuple(name[len(PREFIX) :].lower().split("__"))
    if not _exists(key):
        layers.faults.append(_unknown(name, key, place))
        return
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        SettingsError,
    )  # only who sets a variable waits for it

    kind = cast(type[BaseSettings], Settings)
    source = EnvSettingsSource(kind, case_sensitive=False, env_prefix=PREFIX, env_nested_delimiter="__")
    source.env_vars = {name.lower(): text}
    try:
        layers.put(source(), place)
    except SettingsError:
        example = keys.example(key, place)
        layers.faults.append(Fault(place, None, f"{'.'.join(key)}: {_NOT_JSON}", word=name, example=example))


def _exists(key: Key) -> bool:
    """Say whether a setting has this name. What stands in a table that an operator named is looked at later."""
    return key[0] in keys.SECTIONS and (key[0] in NAMED or len(key) == 1 or key[1] in keys.fields_of(key[0]))


def _unknown(name: str, key: Key, place: str) -> Fault:
    meant = keys.nearest_key(key)
    nearest = f"{PREFIX}{'__'.join(meant).upper()}" if meant else keys.nearest(name, [*keys.variables(), *OUTSIDE])
    example = keys.example(meant, place) if meant else None
    return Fault(place, None, f"{name} is not a setting", word=name, nearest=nearest, example=example)

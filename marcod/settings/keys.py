"""Keys of the configuration as a person writes them: which there are, what each may be, and an example of it."""

import json
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin
from zoneinfo import available_timezones

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from marcod.settings import NAMED, Settings
from marcod.settings.environment import PREFIX
from marcod.settings.imagers import HostSourceSettings
from marcod.settings.toml_lines import Key

SECTIONS: Final = tuple(Settings.model_fields)
NEAR: Final = 0.6
"""Similarity, from 0 to 1, from which one word is offered for another."""


def fields_of(section: str) -> Mapping[str, FieldInfo]:
    """Return the keys of a section, or of each table in a section of named ones; none for an unknown section."""
    annotation = NAMED.get(section) or (Settings.model_fields[section].annotation if section in SECTIONS else None)
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}


def field_at(key: Key) -> FieldInfo | None:
    """Return what is known of a key, or of the key that an element such as ``to.0`` belongs to."""
    depth = depth_of(key[0]) if key else 0
    return fields_of(key[0]).get(key[depth - 1]) if 0 < depth <= len(key) else None


def depth_of(section: str) -> int:
    """Count the names down to a value: section and field, between them the table's own name where it has one."""
    return 3 if section in NAMED else 2


def is_secret(key: Key) -> bool:
    """Say whether what was written here may be, or hold, a password."""
    field = field_at(key)
    fields = fields_of(key[0]).values() if key else []
    return _holds_secret(field.annotation) if field else any(_holds_secret(each.annotation) for each in fields)


def _holds_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_holds_secret, get_args(annotation)))


def described() -> list[tuple[str, str, object]]:
    """Every key as (dotted name, description, default), for the documentation and `marcod config show`."""
    rows: list[tuple[str, str, object]] = []
    for section in SECTIONS:
        prefix = f"{section}.NAME" if section in NAMED else section
        for name, field in fields_of(section).items():
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((f"{prefix}.{name}", field.description or "", default))
    return rows


def choices(key: Key) -> tuple[str, ...]:
    """Return the words that a key takes, none where it takes any text or a number."""
    field = field_at(key)
    if field is None:
        return ()
    if key[depth_of(key[0]) - 1] == "timezone":
        return tuple(sorted(available_timezones()))
    return tuple(map(str, _words(field.annotation)))


def _words(annotation: Any) -> Iterable[object]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    return [word for part in get_args(annotation) for word in _words(part)]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Return the word that was most likely meant, None where none is near.

    Case, ``-`` and ``_`` are the same, and the end of a name such as ``Europe/Berlin`` is enough.
    """
    plain = {_plain(each.rpartition("/")[2]): each for each in words} | {_plain(each): each for each in words}
    found = get_close_matches(_plain(word), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def _plain(word: str) -> str:
    return word.casefold().replace("-", "_").replace(" ", "_")


def nearest_key(key: Key) -> Key | None:
    """Return the key that was most likely meant by one that does not exist."""
    if key[0] not in SECTIONS:
        section = nearest(key[0], SECTIONS)
        if section is None:
            return _elsewhere(key[-1])
        corrected = (section, *key[1:])
        return corrected if len(key) == 1 or field_at(corrected) else nearest_key(corrected)
    near = nearest(key[-1], fields_of(key[0])) if len(key) == depth_of(key[0]) else None
    return (*key[:-1], near) if near else _elsewhere(key[-1])


def _elsewhere(name: str) -> Key | None:
    """Return a key of that name in whichever section has one."""
    found = [(section, name) for section in SECTIONS if section not in NAMED and name in fields_of(section)]
    return found[0] if found else None


def words_beside(key: Key) -> str:
    """List the sections, or the keys of a section, that there are where a key is unknown."""
    if key[0] == "hosts" and len(key) == 5:
        return f"keys of [{'.'.join(key[:-1])}] are {', '.join(HostSourceSettings.model_fields)}"
    if fields := fields_of(key[0]):
        return f"keys of [{'.'.join(key[:-1])}] are {', '.join(fields)}"
    return f"sections are {', '.join(SECTIONS)}"


def variables() -> list[str]:
    """Return every variable that sets one field; those of named tables with NAME."""
    return [f"{PREFIX}{key.replace('.', '__').upper()}" for key, _, _ in described()]


def example(key: Key, place: str | None = None, right: str | None = None) -> str | None:
    """Write a key with a value that is right: as it may stand in its table, or where else it is set.

    ``place`` is None for the file, else a variable, a credential or the command line.
    """
    field = field_at(key)
    if field is None:
        return f"[{key[0]}{'.NAME' if key[0] in NAMED else ''}]" if key and key[0] in SECTIONS else None
    path = key[: depth_of(key[0])]
    value = field.examples[0] if field.examples else field.get_default(call_default_factory=True)
    if right is not None:
        value = [right] if isinstance(value, list) else {key[-1]: right} if isinstance(value, dict) else right
    if place is None:
        return f"{path[-1]} = {as_toml(value)}  # in [{'.'.join(path[:-1])}]: {field.description}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if place.startswith("credential") else f"{PREFIX}{'__'.join(path).upper()}={shlex.quote(text)}"


def as_toml(value: object) -> str:
    """Write a value in TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {as_toml(below)}" for name, below in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, SecretStr):
        return as_toml(value.get_secret_value())
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")

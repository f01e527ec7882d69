"""Examination of a whole configuration: every fault in it, and the settings as far as they are right."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from marcod.settings import NAMED, Settings, keys, layers
from marcod.settings.faults import Fault, in_order
from marcod.settings.layers import Layers
from marcod.settings.toml_lines import Key

_NO_TABLE: Final = ("model_type", "model_attributes_type", "dict_type")


@dataclass(frozen=True, slots=True)
class Examined:
    """A configuration as far as it is right, and everything that is wrong in it."""

    settings: Settings
    faults: tuple[Fault, ...]
    layers: Layers

    def fault_at(self, key: Key, text: str, nearest: str | None = None) -> Fault:
        """Make a fault of a value that turned out wrong later, such as a folder that is not there."""
        layers.locate(self.layers)
        word = _shown(_value_at(self.layers.values, key), key)
        return _fault(self.layers, key, text, word=word, nearest=nearest, right=nearest)


def examine(file: Path | None, overrides: Mapping[str, Any]) -> Examined:
    """Read and check a whole configuration."""
    found = layers.read(file, overrides, socket.gethostname())
    try:
        return Examined(_settings(found.values), tuple(found.faults), found)
    except ValidationError as error:
        layers.locate(found)
        settings, faults = _mend(found, error)
        return Examined(settings, in_order([*found.faults, *faults]), found)


def _settings(values: Mapping[str, Any]) -> Settings:
    """Validate all at once: a section that is left to its default would be built, and cost, by itself."""
    return Settings(**{**{section: {} for section in keys.SECTIONS}, **values})


def _mend(found: Layers, error: ValidationError) -> tuple[Settings, list[Fault]]:
    """Leave out what is wrong until the rest is right; what only follows from a value left out is not a fault."""
    faults: list[Fault] = []
    left_out: list[Key] = []
    values = found.values
    while True:
        before = values
        for problem in error.errors(include_url=False):
            key = _key_of(problem)
            if not _follows(problem, key, left_out, found.values):
                faults.append(_fault_of(found, key, problem))
            left_out.append(key)
            values = _without(values, key)
        assert values != before, f"nothing to leave out: {error}"
        try:
            return _settings(values), faults
        except ValidationError as again:
            error = again


def _key_of(problem: ErrorDetails) -> Key:
    loc = tuple(str(step) for step in problem["loc"] if step != "[key]")
    return (*loc, *problem.get("ctx", {}).get("key", ()))


def _follows(problem: ErrorDetails, key: Key, left_out: list[Key], original: Mapping[str, Any]) -> bool:
    """Say whether a problem is there only because a value that was given has been left out."""
    if problem["type"] == "missing":
        return _has(original, key)
    if needs := problem.get("ctx", {}).get("needs"):
        return _has(original, needs)
    return problem["type"] == "value_error" and any(gone[: len(key)] == key for gone in left_out)


def _has(values: object, key: Key) -> bool:
    for name in key:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _without(values: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """Return the values without one. A key that is missing takes its table with it; what is gone already stays so."""
    name, below = key[0], key[1:]
    named = {str(given): value for given, value in values.items()}
    inner = named.get(name)
    if below and isinstance(inner, Mapping) and below[0] in map(str, inner):
        return named | {name: _without(inner, below)}
    if len(below) < 2 or not isinstance(inner, Mapping):
        named.pop(name, None)
    return named


def _fault_of(found: Layers, key: Key, problem: ErrorDetails) -> Fault:
    if problem["type"] == "extra_forbidden":
        return _unknown(found, key)
    if problem["type"] == "missing":
        return _fault(found, key, f"{'.'.join(key)} is missing")
    if problem["type"] == "unused":
        place, line = found.place(key)
        return Fault(place, line, f"{'.'.join(key)}: {problem['msg']}", key[-1])
    if problem["type"] == "needs":
        return _lacking(found, key, problem["msg"], problem["ctx"]["needs"])
    value = _shown(problem["input"], key)
    words = keys.choices(key)
    text = problem["msg"].removeprefix("Value error, ").partition(", unable to")[0].replace("Input should", "it must")
    if problem["loc"] and problem["loc"][-1] == "[key]":
        return _fault(found, key, f"{'.'.join(key)}: {text.replace('it must', 'this name must')}", word=key[-1])
    if problem["type"] in ("literal_error", "enum"):
        text = f"it must be one of {', '.join(words)}"
    elif problem["type"] in _NO_TABLE:
        text = "it must be a table"
    given = "" if value is None or repr(value) in text else f" = {keys.as_toml(value)}"
    nearest = keys.nearest(value, words) if isinstance(value, str) and words else None
    return _fault(found, key, f"{'.'.join(key)}{given}: {text}", word=value, nearest=nearest, right=nearest)


def _lacking(found: Layers, key: Key, text: str, needs: Key) -> Fault:
    """Make a fault of a value that needs another key, or a source, which is not there."""
    said = f"{'.'.join(key)}: {text}"
    if needs[0] in NAMED:
        nearest = keys.nearest(needs[1], map(str, found.values.get(needs[0], {})))
        return _fault(found, key, said, word=needs[1], nearest=nearest, right=nearest)
    return _fault(found, key, said, meant=needs)


def _unknown(found: Layers, key: Key) -> Fault:
    """Make a fault of a section or key that does not exist."""
    meant = keys.nearest_key(key)
    beside = meant is not None and meant[:-1] == key[:-1]
    nearest = None if meant is None else meant[-1] if beside else ".".join(meant)
    text = f"{'.'.join(key)} is not a setting"
    if nearest is None:
        text += f"; {keys.words_beside(key)}"
    return _fault(found, key, text, word=key[-1], nearest=nearest, meant=meant)


def _fault(
    found: Layers,
    key: Key,
    text: str,
    *,
    word: object = None,
    nearest: str | None = None,
    meant: Key | None = None,
    right: str | None = None,
) -> Fault:
    """Make a fault of the value at ``key``; its example is the key that was ``meant``, with the value ``right``."""
    place, line = found.place(key)
    example = keys.example(meant or key, place if place != str(found.file) else None, right)
    return Fault(place, line, text, None if word is None else str(word), nearest, example)


def _shown(value: object, key: Key) -> str | int | float | None:
    """Return a value that may be shown: a plain one, and no secret."""
    return value if isinstance(value, (str, int, float)) and not keys.is_secret(key) else None


def _value_at(values: Mapping[str, Any], key: Key) -> object:
    found: object = values
    for name in key:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found

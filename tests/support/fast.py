"""The fast part of the suite: SQLite alone, nothing that imports TensorFlow, no whole installation.

A file needs TensorFlow when it, or what it imports, imports TensorFlow or Keras as it is loaded. A test that imports
it later, as a command does, is to be marked as slow; without the mark it fails.
"""

import re
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]
ROOTS: Final = (TESTS.parent, TESTS, TESTS / "support")
HEAVY: Final = frozenset({"tensorflow", "keras"})

FOLDERS: Final = frozenset({"acceptance", "chaos", "cluster", "notify", "published"})
"""Folders of whole installations, servers and downloads."""

_IMPORT: Final = re.compile(r"^(?:from (\S+) import (\([^)]*\)|.*)|import (.*))$", re.MULTILINE)
"""An import that runs as a module is loaded; one that is indented does not."""


class NoTensorFlow(MetaPathFinder):
    """Fails the test that imports TensorFlow or Keras in this process."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in HEAVY:
            pytest.fail("this test imports TensorFlow; mark it as slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="SQLite alone, no TensorFlow, no whole installations")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.meta_path.insert(0, NoTensorFlow())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave whole files out before they are imported."""
    return True if config.getoption("--fast") and is_left_out(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        left_out = [item for item in items if is_slow(item)]
        items[:] = [item for item in items if not is_slow(item)]
        config.hook.pytest_deselected(items=left_out)


def is_left_out(path: Path) -> bool:
    """Return True for a folder or file that the fast part does not collect."""
    if path.is_dir():
        return path.name in FOLDERS
    return path.name.startswith("test_") and path.suffix == ".py" and bool(imported(path) & HEAVY)


def is_slow(item: pytest.Item) -> bool:
    """Return True for a test on PostgreSQL, with a network, of an installation, of a property, or marked as slow."""
    fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return (
        not fixtures.keys().isdisjoint({"postgres", "tiny_weights", "models", "pristine_members"})
        or any(found[-1].func.__module__ == "lab_fixtures" for found in fixtures.values())
        or parameters.get("backend") == "postgres"
        or any(item.iter_markers("story"))
        or any(item.iter_markers("web"))
        or any(item.iter_markers("slow"))
        or getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    )


@cache
def imported(file: Path) -> frozenset[str]:
    """Names of the modules that loading a file imports, and of those which they import."""
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        for name in _names(waiting.pop()) - seen:
            seen.add(name)
            waiting.extend(_file(name))
    return frozenset(seen)


@cache
def _names(file: Path) -> frozenset[str]:
    found: set[str] = set()
    for module, members, modules in _IMPORT.findall(file.read_text(encoding="utf-8")):
        named = (
            [module, *(f"{module}.{name}" for name in re.findall(r"\w+", members))] if module else modules.split(",")
        )
        for name in (name.split()[0] for name in named):
            parts = name.split(".")
            found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return frozenset(found)


@cache
def _file(name: str) -> list[Path]:
    """The file of a module of this checkout; none for another module."""
    path = Path(*name.split("."))
    found = (root / end for root in ROOTS for end in (path.with_suffix(".py"), path / "__init__.py"))
    return [file for file in found if file.is_file()][:1]

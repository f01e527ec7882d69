"""The developers' tour names files, functions and layers that exist."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "marcod"
PAGE = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w./-]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))
FILES = [name for name in NAMED if "/" in name or name.endswith((".py", ".md"))]
DOTTED = [name for name in NAMED if name not in FILES and re.fullmatch(r"[a-z]\w*(\.\w+)+", name)]


def test_the_layers_are_those_that_are_checked() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    checked = next(one["layers"] for one in tool["importlinter"]["contracts"] if one["type"] == "layers")
    tour = re.search(r"Imports go downward only.*?: (`cli`.*?`errors`)", PAGE, re.DOTALL)
    assert tour is not None
    layers = [set(re.findall(r"`(\w+)`", layer)) for layer in tour[1].split(">")]
    assert layers == [set(layer.split(" | ")) for layer in checked if layer != "__main__"]


def test_the_tour_names_enough_to_be_checked() -> None:
    assert len(FILES) > 40
    assert len(DOTTED) > 40


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_tour_exists(name: str) -> None:
    assert (PACKAGE / name).exists() or (ROOT / name).exists()


@pytest.mark.parametrize("name", DOTTED)
def test_a_function_of_the_tour_exists(name: str) -> None:
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        if (file := _module(parts[:depth])) is not None:
            names = ".".join(parts[depth:])
            assert not names or names in _defined(file), f"{file.relative_to(ROOT)} has no {names}"
            return
    pytest.fail(f"no module of marcod begins {name}")


def _module(parts: list[str]) -> Path | None:
    path = PACKAGE.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _defined(file: Path) -> frozenset[str]:
    """Names of a module's functions, classes, methods (``Class.method``) and constants."""
    found = set()
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)

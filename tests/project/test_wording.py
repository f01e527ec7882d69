"""Plain English: no word for which one needs a dictionary, in docstrings, log events, help, pages or names of tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lab import commands

import marcod
from marcod.cli import cli
from marcod.settings import keys

PACKAGE = Path(marcod.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
# Decisions are dated entries that stay as they were written.
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/*.md")} - {ROOT / "docs/decisions.md"})
DENIED = re.compile(
    r"\b(anew|begun|nobody speaks|speaks? for|whoever|told|(?<!there )is no(?! longer)|taken in(?! order)|take in|away"
    r"|beside|gone on with|as said)\b",
    re.IGNORECASE,
)
OPENINGS = re.compile(r"(What|How|Whether|Who|Of|Those)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield re.sub(r"``.*?``", "", text)


def _log_events(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if (
            isinstance(node, ast.Call)
            and isinstance(called, ast.Attribute)
            and called.attr in LEVELS
            and isinstance(called.value, ast.Name)
            and called.value.id == "log"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_docstrings_and_log_events_are_plain(file: Path) -> None:
    tree = ast.parse(file.read_bytes())
    texts = [*_docstrings(tree), *_log_events(tree)]
    assert [text for text in texts if DENIED.search(text) or OPENINGS.match(text)] == []


def test_help_texts_are_plain() -> None:
    texts = []
    for name, command in commands(cli).items():
        texts.append((name, command.help or ""))
        texts += [(name, option.help or "") for option in command.params if isinstance(option, click.Option)]
    assert len(texts) > 200
    assert [(name, text) for name, text in texts if DENIED.search(text)] == []


def test_descriptions_of_settings_are_plain() -> None:
    described = [(key, text) for key, text, _ in keys.described()]
    assert len(described) > 80
    assert [(key, text) for key, text in described if DENIED.search(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_plain(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [line for line in text.splitlines() if DENIED.search(line)] == []


def test_names_of_tests_are_plain() -> None:
    named = [
        (file.name, name.replace("_", " "))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(named) > 1000
    assert [(file, name) for file, name in named if DENIED.search(name)] == []

"""Rules that no line of the program may break, asked of its source; and text of others in files and on terminals."""

import ast
import csv
import io
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import marcod
from marcod.domain import path_text, text_path
from marcod.plates.plate_map import csv_text
from marcod.settings.environment import child_environment

PACKAGE = Path(marcod.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")}

COMPOSED = {
    ("database/column_types.py", "index_where"): "conditions of indexes, written in the tables of this package",
    ("database/roles.py", "_answer"): "questions written in this module, and names quoted by the dialect",
    ("database/roles.py", "_do"): "grants: PostgreSQL binds no names; they are checked and quoted by the dialect",
    ("database/roles.py", "grantees"): "two texts written there, handed to a function inside it",
    ("database/roles.py", "names"): "that function",
    ("database/views.py", "comment"): "names of our own views and columns, quoted by the dialect; the text is bound",
}
"""Where SQL is put together, by module and function, and why no one else's text can be in it."""

IMPORTS = (ast.Import, ast.ImportFrom)
SQL = frozenset({"text", "exec_driver_sql", "DDL", "literal_column", "executescript"})


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", ""), node


def is_fixed(found: ast.expr, function: ast.FunctionDef) -> bool:
    """Whether text is written out where it stands, or in an assignment of the same function."""
    if isinstance(found, ast.Constant):
        return True
    if isinstance(found, ast.IfExp):
        return is_fixed(found.body, function) and is_fixed(found.orelse, function)
    if not isinstance(found, ast.Name):
        return False
    assigned = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and found.id in [getattr(target, "id", "") for target in node.targets]
    ]
    return bool(assigned) and all(isinstance(value, ast.Constant) for value in assigned)


@pytest.mark.slow
def test_sql_holds_nothing_but_bound_parameters() -> None:
    composed = set()
    for module, tree in MODULES.items():
        if not any("sqlalchemy" in ast.unparse(node) for node in ast.walk(tree) if isinstance(node, IMPORTS)):
            continue
        for function in functions(tree):
            for name, call in calls(function):
                text = call.args[0] if call.args else None
                plain = name == "execute" and isinstance(text, ast.JoinedStr | ast.BinOp)
                if text is not None and (plain or (name in SQL and not is_fixed(text, function))):
                    composed.add((module, function.name))
    assert composed == set(COMPOSED)


FORBIDDEN = {
    "pickle": r"\b(import|from) (pickle|dill|cloudpickle|joblib|shelve|marshal)\b",
    "code from text": r"(?<![\w.])(eval|exec|compile)\(",
    "a shell": r"shell=True|os\.(system|popen)\(",
    "pickled arrays": r"allow_pickle=True",
    "making layers that a file names": r"load_model\(|model_from_json\(|safe_mode=False|enable_unsafe",
    "YAML": r"\b(import|from) yaml\b",
    "TLS without verification": r"CERT_NONE|check_hostname\s*=\s*False|_create_unverified_context|verify=False",
    # A literal is ours, and what is formatted into it is escaped.
    "HTML that is not escaped": r"Markup\((?!\"[^\"]*\"\))|autoescape=False|\|\s*safe\b",
    "a temporary name that others may guess": r"mktemp\(",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_program_has_no(what: str) -> None:
    files = [path for suffix in ("*.py", "*.j2", "*.html") for path in PACKAGE.rglob(suffix)]
    assert [str(path) for path in files if re.search(FORBIDDEN[what], path.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_every_template_is_escaped() -> None:
    made = [call for tree in MODULES.values() for name, call in calls(tree) if name in ("Environment", "Template")]
    assert made
    for call in made:
        assert {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}["autoescape"] is True


def test_an_attribute_of_a_template_is_quoted() -> None:
    """Escaping protects an attribute's value only between quotes."""
    for path in [*PACKAGE.rglob("*.j2"), *PACKAGE.rglob("*.html")]:
        tags = re.findall(r"<[a-z][^<>]*>", re.sub(r"\{%.*?%\}|\{(\{).*?\}\}", r"\1", path.read_text("utf-8")))
        assert not [tag for tag in tags if re.search(r"=\s*\{", re.sub(r'"[^"]*"', "", tag))], path
    assert re.search(r"=\s*\{", re.sub(r'"[^"]*"', "", '<a class="b" href={>'))
    assert jinja2.Environment(autoescape=True).from_string("{{ x }}").render(x="\"'<&>") == "&#34;&#39;&lt;&amp;&gt;"


def test_the_threat_page_names_tests_that_exist() -> None:
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z/]+/test_\w+\.py)`", page)
    assert len(set(named)) > 8
    assert [name for name in named if not (tests / name).is_file()] == []


FORMULAS = ["=cmd|'/c calc'!A1", "+1", "-1+1|x", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff20x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text(("a", "b"), [{"a": text, "b": -1.5}]), newline="")))
    assert rows[1:] == [["'" + text.replace("\r", " "), "-1.5"]]
    assert csv_text(("a",), [{"a": "x\r=1"}]) == "a\nx =1\n"


@pytest.mark.slow
def test_csv_is_written_nowhere_else() -> None:
    """But the list of the base set, whose cells are names and classes of our own."""
    writers = {
        module for module, tree in MODULES.items() for name, call in calls(tree)
        if name in ("writer", "DictWriter") and "csv" in ast.unparse(call.func)
    }  # fmt: skip
    assert writers == {"plates/plate_map.py", "training/rehearsal.py"}


@given(st.binary(max_size=40))
def test_a_stored_path_steers_nothing_and_comes_back(raw: bytes) -> None:
    path = os.fsdecode(raw)
    stored = path_text(path)
    assert text_path(stored) == path
    assert stored.encode().decode() == stored
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", stored)


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202e", "\x9b", "\u2066", "\x7f", "\u200b", "\\"])
def test_what_steers_a_terminal_is_stored_as_escapes(text: str) -> None:
    assert re.fullmatch(r"P1/([a-z\[2J]|\\x[0-9a-f]{2})+/d\.jpg", path_text(f"P1/{text}/d.jpg"))
    assert text_path(path_text(text)) == text


def test_other_scripts_are_stored_as_they_are() -> None:
    for name in ("Platte für Lysozym/A1.jpg", "結晶\u3000プレート/A1.jpg", "P 1/A1.jpg"):
        assert path_text(name) == name


def run(tmp_path: Path, *words: str, umask: int = 0) -> subprocess.CompletedProcess[str]:
    environment = child_environment(HOME=str(tmp_path), XDG_STATE_HOME=str(tmp_path / "state"))
    command = [sys.executable, "-m", "marcod", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, umask=umask, check=False)


@pytest.mark.slow
def test_what_is_written_is_nobody_elses_to_read(tmp_path: Path) -> None:
    assert run(tmp_path, "db", "upgrade", umask=0).returncode == 0
    done = run(tmp_path, "hits", "--export", str(tmp_path / "hits.csv"), umask=0)
    assert done.returncode == 0, done.stderr
    written = [tmp_path / "hits.csv", *(tmp_path / "state").rglob("*")]
    assert any(path.suffix == ".sqlite" for path in written)
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0, path


@pytest.mark.slow
def test_an_error_does_not_steer_the_terminal(tmp_path: Path) -> None:
    assert run(tmp_path, "queue", "retry").returncode == 0
    done = run(tmp_path, "plate", "show", "\x1b[2J\u202eP1\nforged")
    assert done.returncode != 0
    assert "P1" in done.stderr
    assert [c for c in done.stderr if not c.isprintable() and c != "\n"] == []

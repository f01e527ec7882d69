"""One name for one thing: no two public classes have the same name, so a search for a name finds one class."""

import ast
from collections import defaultdict
from pathlib import Path

import marcod

PACKAGE = Path(marcod.__file__).parent


def test_public_class_names_have_one_meaning() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.relative_to(PACKAGE).as_posix())
    assert len(places) > 300
    assert {name: files for name, files in places.items() if len(files) > 1} == {}

"""The part of the suite for hosts that only score: what runs without TensorFlow, Keras and the statistics of training.

A file is left out when it, or what it imports, imports one of these as it is loaded. What does so later is in
:data:`WHOLE`, with its reason.
"""

from pathlib import Path
from typing import Final

import fast
import pytest

from marcod.errors import LEFT_OUT

WHOLE: Final = {
    "model/convert": "imports of models, which are calculated by TensorFlow",
    "model/published": "the published model is imported",
    "cli/test_broken_config.py": "loads every command, those of training too",
    "cli/test_json_keys.py": "calls every command, those of training too",
    "cli/test_lazy_commands.py": "loads every command, those of training too",
    "cli/test_reading.py": "calls every command, those of training too",
    "cli/test_heatmap_command.py": "heat maps are gradients",
    "cli/test_output.py::test_keras_leaves": "imports Keras",
    "web/test_web_images.py::test_a_heat_map_without_the_model": "heat maps are gradients",
    "acceptance/test_retrain.py": "training",
}
"""What a light host does without, by file or test below ``tests/``, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--light", action="store_true", help="what runs where marcod-light is installed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave whole files out before they are imported."""
    return True if config.getoption("--light") and needs_more(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--light"):
        left_out = [item for item in items if _below_tests(item.nodeid).startswith(tuple(WHOLE))]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def needs_more(path: Path) -> bool:
    """Return True for a folder or file of tests that needs what a light installation lacks."""
    if path.is_relative_to(fast.TESTS) and path.relative_to(fast.TESTS).as_posix() in WHOLE:
        return True
    return path.name.startswith("test_") and path.suffix == ".py" and bool(fast.imported(path) & LEFT_OUT.keys())


def _below_tests(name: str) -> str:
    return name.removeprefix("tests/")

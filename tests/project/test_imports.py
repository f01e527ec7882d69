"""Commands that answer at once: they import no library that their answer does not need."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from marcod.database import migrate
from marcod.database.engine import Database
from marcod.errors import LEFT_OUT
from marcod.settings.environment import child_environment

HEAVY: Final = frozenset(
    {
        "tensorflow", "keras", "jax", "apscheduler", "watchdog", "alembic", "matplotlib", "numpy", "PIL", "jinja2",
        "prometheus_client", "structlog", "psycopg2", "scipy", "sklearn",
    }
)  # fmt: skip
READING: Final = (("queue", "status"), ("plate", "list"), ("hits",), ("status",))
PROGRAM: Final = """
import sys
from marcod.__main__ import main
try:
    main()
finally:
    print("\\n".join(sys.modules), file=open(sys.argv[0], "w"))
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty database with its schema, for those who only read."""
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'marcod.sqlite'}"
    db = Database(url)
    migrate.upgrade(db)
    db.close()
    return url


def _imported(folder: Path, *arguments: str, **variables: str) -> set[str]:
    """Run a command in a process of its own. Returns the libraries and the modules of marcod that it imported."""
    told = folder / "modules"
    program = f"import sys; sys.argv[0] = {str(told)!r}" + PROGRAM
    environment = {**child_environment(**variables), "HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    names = told.read_text().split()
    return {name if name.startswith("marcod") else name.split(".")[0] for name in names}


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.slow
def test_what_only_reads_imports_no_heavy_library(arguments: tuple[str, ...], database: str, tmp_path: Path) -> None:
    imported = _imported(tmp_path, *arguments, MARCOD_STORE__URL=database)
    assert "sqlalchemy" in imported
    assert not imported & HEAVY
    assert not {
        name for name in imported if name.startswith(("marcod.service", "marcod.model.bundle", "marcod.layouts.rigaku"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("group", [(), ("model",)], ids=" ".join)
def test_help_imports_no_library_but_click(group: tuple[str, ...], tmp_path: Path) -> None:
    imported = _imported(tmp_path, *group, "--help")
    assert "click" in imported
    assert not imported & {*HEAVY, "sqlalchemy", "pydantic", "pydantic_settings", "rich"}
    assert not {name for name in imported if name.startswith("marcod.cli.queue")}


@pytest.mark.parametrize("module", ["marcod.scoring.scorer", "marcod.service.supervisor", "marcod.service.periodic"])
@pytest.mark.slow
def test_scoring_and_the_service_import_no_statistics_library(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    imported = set(done.stdout.split())
    assert "marcod" in imported
    assert not imported & {"scipy", "sklearn"}


@pytest.mark.slow
def test_a_command_that_works_has_its_garbage_collected(database: str, tmp_path: Path) -> None:
    """Nothing is collected while libraries load; what a daemon leaves behind afterwards is."""
    program = PROGRAM.replace(
        "sys.modules)", "[str(__import__('gc').isenabled()), str(__import__('gc').get_freeze_count() > 0)])"
    )
    told = tmp_path / "told"
    environment = {**child_environment(MARCOD_STORE__URL=database), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", f"import sys; sys.argv[0] = {str(told)!r}" + program, "queue", "status"]
    subprocess.run(command, capture_output=True, timeout=120, check=True, env=environment)
    assert told.read_text().split() == ["True", "True"]


@pytest.mark.parametrize(
    "module",
    ["cli", "model.bundle", "model.openvino_network", "model.registry", "scoring.scorer", "service.supervisor",
     "watch.loop", "web.server"],
)  # fmt: skip
@pytest.mark.slow
def test_a_scoring_host_needs_none_of_the_libraries_that_it_is_installed_without(module: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(LEFT_OUT)!r})); import marcod.{module}"
    subprocess.run([sys.executable, "-c", program], timeout=120, check=True)

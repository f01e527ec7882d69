"""Processor time until a command has answered, against importing the libraries that it needs and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.bench import KINDS, Bench, Kind
from benchmarks.tables import Cell, Spread, Table
from marcod.settings.environment import child_environment

REPEATS: Final = 5
COMMANDS: Final = (("--help",), ("queue", "status"), ("plate", "list"), ("hits",), ("status",))
ALL: Final = (
    "click, pydantic, rich.console, rich.table, sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite, tenacity"
)
"""The schema names options of both dialects, so SQLAlchemy imports both whatever the database."""

LIBRARIES: Final[dict[Kind, str]] = {
    "SQLite": f"{ALL}, sqlite3",
    "PostgreSQL": f"{ALL}, psycopg2",
}


def run(bench: Bench) -> Iterator[Table]:
    """One table per database."""
    for kind in KINDS:
        with bench.subject(kind) as subject, bench.place("home") as home:
            url = subject.db.url.render_as_string(hide_password=False)
            # As installed: compiled once, by the first turn.
            places = {"HOME": str(home), "PYTHONPYCACHEPREFIX": str(home / "compiled")}
            environment = child_environment(MARCOD_STORE__URL=url, **places)
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            yield _table(bench, kind, environment)


def _table(bench: Bench, kind: Kind, environment: dict[str, str]) -> Table:
    programs = {name: ("-c", f"import {name}") for name in ("click", LIBRARIES[kind])}
    programs |= {" ".join(words): ("-m", "marcod", *words) for words in COMMANDS}
    found: dict[str, list[float]] = {name: [] for name in programs}
    # The first turn compiles the modules and reads the files into memory; it is thrown away.
    for turn in range(bench.size(REPEATS, 2) + 1):
        bench.say(f"start: {kind}, turn {turn}")
        for name, program in programs.items():
            found[name].append(1e3 * _processor_s(program, environment))
    rows: list[list[Cell]] = []
    for words in COMMANDS:
        name = " ".join(words)
        own, bare = found[name][1:], found["click" if name == "--help" else LIBRARIES[kind]][1:]
        above = Spread.of(mine - theirs for mine, theirs in zip(own, bare, strict=True))
        rows.append([f"marcod {name}", Spread.of(own), Spread.of(bare), above])
    return Table(
        f"Commands that answer at once, {kind}",
        f"Processor time of a whole process, user and system. The libraries: {LIBRARIES[kind]}; for --help click alone."
        " All in turn, each difference within one turn.",
        ("command", "ms", "libraries alone, ms", "above them, ms"),
        rows,
    )


def _processor_s(program: tuple[str, ...], environment: dict[str, str]) -> float:
    """Run Python with these arguments to its end. Returns the processor time that it took, in seconds."""
    checkout = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, *program], stdout=subprocess.DEVNULL, env=environment, cwd=checkout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{' '.join(program)} ended with {process.returncode}"
    return usage.ru_utime + usage.ru_stime

"""Run benchmarks and print their tables: ``python -m benchmarks [NAME ...] [--quick] [--json]``."""

import argparse
import importlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console

from benchmarks import machine
from benchmarks.bench import Bench
from benchmarks.tables import Table
from marcod import settings, telemetry

NAMES = (
    "scan",
    "enqueue",
    "queue",
    "lims",
    "throughput",
    "latency",
    "marco",
    "recall",
    "scratch",
    "learning",
    "kills",
    "fuzz",
)
ON_REQUEST = ("soak", "stops")
"""Too long to be run with the others."""


def main() -> None:
    """Parse, run, print."""
    options = _options()
    settings.quiet_tensorflow()
    telemetry.configure("error", "console")
    out, err = Console(width=None if Console().is_terminal else 160), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="marcod-bench-") as folder:
        bench = Bench(Path(folder), quick=options.quick, say=lambda text: err.print(text, style="dim"))
        try:
            facts = machine.facts()
            if options.json:
                tables = [{**table.plain(), "load average": load} for table, load in _tables(options.names, bench)]
                print(json.dumps({"machine": _all(facts, bench), "tables": tables}, indent=2))
            else:
                _print(out, options.names, bench, facts)
        finally:
            bench.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure marcod on synthetic data.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)} [default: all], {', '.join(ON_REQUEST)}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if unknown := set(options.names) - {*NAMES, *ON_REQUEST}:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES + ON_REQUEST)}")
    options.names = options.names or NAMES
    return options


def _tables(names: tuple[str, ...], bench: Bench) -> Iterator[tuple[Table, str]]:
    """Each table with the load of the machine when it was done."""
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        for table in module.run(bench):
            yield table, machine.load()


def _print(out: Console, names: tuple[str, ...], bench: Bench, facts: dict[str, str]) -> None:
    for table, load in _tables(names, bench):
        table.show(out)
        out.print(f"Load average afterwards: {load}\n", style="dim", highlight=False)
    shown = rich.table.Table(title="Machine", title_justify="left", show_header=False, box=None)
    for name, value in _all(facts, bench).items():
        shown.add_row(name, value)
    out.print(shown)


def _all(facts: dict[str, Any], bench: Bench) -> dict[str, Any]:
    return facts | ({"PostgreSQL": bench.postgresql} if bench.postgresql else {})


if __name__ == "__main__":
    main()

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
from benchmarks.bench import KINDS, Bench
from benchmarks.tables import Table
from marcod import telemetry
from marcod.settings.environment import quiet_tensorflow

NAMES = (
    "start",
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
ON_REQUEST = (
    "soak",
    "stops",
    "stories",
    "renderer",
    "photographs",
    "gate",
    "bundles",
    "labels",
    "light",
    "web",
    "web_keys",
    "web_load",
    "decoders",
    "precisions",
    "promotion",
    "archive",
)
"""Too long to be run with the others."""


def main() -> None:
    """Parse, run, print."""
    options = _options()
    quiet_tensorflow()
    telemetry.configure("error", "console")
    out, err = Console(width=None if Console().is_terminal else 160), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="marcod-bench-") as folder:
        kinds = tuple(kind for kind in KINDS if options.database in (None, kind))
        bench = Bench(
            Path(folder),
            quick=options.quick,
            say=lambda text: err.print(text, style="dim"),
            kinds=kinds,
            large=options.large,
        )
        try:
            facts = machine.facts()
            if options.json:
                _print_json(options.names, bench, facts)
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
    parser.add_argument("--large", action="store_true", help="of archive also ten million images, tens of gigabytes")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--database", choices=KINDS, help=f"of {' and '.join(ON_REQUEST)} [default: both]")
    options = parser.parse_args()
    if unknown := set(options.names) - {*NAMES, *ON_REQUEST}:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES + ON_REQUEST)}")
    options.names = options.names or NAMES
    if options.database and set(options.names) - set(ON_REQUEST):
        parser.error(f"--database is for {' and '.join(ON_REQUEST)} alone")
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


def _print_json(names: tuple[str, ...], bench: Bench, facts: dict[str, str]) -> None:
    tables: list[dict[str, Any]] = []
    try:
        for table, load in _tables(names, bench):
            tables.append({**table.plain(), "load average": load})
    finally:
        # What was measured before one failed is printed all the same.
        print(json.dumps({"machine": _all(facts, bench), "tables": tables}, indent=2))


def _all(facts: dict[str, Any], bench: Bench) -> dict[str, Any]:
    return facts | ({"PostgreSQL": bench.postgresql} if bench.postgresql else {})


if __name__ == "__main__":
    main()

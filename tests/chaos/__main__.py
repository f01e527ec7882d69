"""``python -m chaos``: what went wrong and how it ended, as tables; exit code 1 when anything does not agree."""

import argparse
import dataclasses
import json
import random
import signal
import sys
from typing import Any, Final, NoReturn

import rich.box
from rich.console import Console
from rich.table import Table

from chaos import run, stores
from marcod import telemetry

SHARES: Final[dict[stores.Kind, float]] = {"postgres": 2 / 3, "sqlite": 1 / 3}
SECONDS: Final = 280.0
WITHIN: Final = 570
"""Seconds after which everything ends, whatever it is doing; what is left of ten minutes is for ending it."""


class _OutOfTimeError(Exception):
    """No OSError, which what is interrupted may take for its own."""


def main() -> int:
    """Parse, run, print."""
    options = _options()
    telemetry.configure("error", "console")
    out, err = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(options.within)
    try:
        found = _found(options, out, err)
    except _OutOfTimeError:
        err.print(f"not done within {options.within} s", style="bold red")
        return 1
    if options.json:
        out.print_json(json.dumps(found))
    return 0 if all(one["agrees"] for one in found) else 1


def _end(*_: object) -> NoReturn:
    raise _OutOfTimeError


def _found(options: argparse.Namespace, out: Console, err: Console) -> list[dict[str, Any]]:
    found = []
    for kind in options.database or stores.KINDS:
        seconds = options.seconds * (1.0 if options.database else SHARES[kind])
        plan = run.Plan(kind, options.seed, seconds, options.pace, options.rate, options.drain)
        err.print(f"{kind}, seed {plan.seed}, {plan.seconds:.0f} s", style="bold")
        outcome = run.in_own_folder(plan, options.keep, lambda text: err.print(text, style="dim", highlight=False))
        found.append(_plain(plan, outcome))
        if not options.json:
            _show(out, plan, outcome)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Everything goes wrong; then everything adds up."
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of chaos, over all databases [{SECONDS:g}]")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="decides every fault")
    parser.add_argument("--database", action="append", choices=stores.KINDS, help="[both, one after another]")
    parser.add_argument("--pace", type=float, default=2.5, help="mean seconds between two faults [2.5]")
    parser.add_argument("--rate", type=float, default=8.0, help="files a second of all imagers together [8]")
    parser.add_argument("--drain", type=float, default=run.DRAIN_S, help="seconds that the work may take afterwards")
    parser.add_argument("--within", type=int, default=WITHIN, help=f"seconds after which everything ends [{WITHIN}]")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _plain(plan: run.Plan, outcome: run.Outcome) -> dict[str, Any]:
    lines = [{**dataclasses.asdict(line), "agrees": line.agrees} for line in outcome.lines]
    asked = dataclasses.asdict(plan) | {"faults": [fault.__name__ for fault in plan.faults]}
    return {
        "plan": asked, "faults": outcome.tally, "kinds": outcome.done, "reconciliation": lines,
        "drained_s": round(outcome.drained_s, 1), "agrees": outcome.agrees,
    }  # fmt: skip


def _show(out: Console, plan: run.Plan, outcome: run.Outcome) -> None:
    faults = Table(title=f"{plan.kind}: what went wrong in {plan.seconds:.0f} s (seed {plan.seed})",
                   title_justify="left", box=rich.box.SIMPLE_HEAD)  # fmt: skip
    faults.add_column("fault")
    faults.add_column("times", justify="right")
    for what, times in outcome.tally.items():
        faults.add_row(what, str(times))
    out.print(faults)
    never = ", ".join(name for name, times in outcome.done.items() if not times)
    out.print(f"Of {len(outcome.done)} kinds of fault these did not happen: {never or 'none'}.\n", highlight=False)
    books = Table(title=f"{plan.kind}: the reckoning, {outcome.drained_s:.0f} s after the last fault was taken back",
                  title_justify="left", box=rich.box.SIMPLE_HEAD)  # fmt: skip
    for column in ("what", "expected", "found", "", "examples"):
        books.add_column(column, justify="right" if column in ("expected", "found") else "left", overflow="fold")
    for line in outcome.lines:
        verdict = "[green]agrees[/]" if line.agrees else "[bold red]WRONG[/]"
        books.add_row(line.what, str(line.expected), str(line.found), verdict, "; ".join(map(repr, line.wrong)))
    out.print(books)
    out.print("Synthetic plates. Zero lost, zero twice." if outcome.agrees else "[bold red]It does not add up.[/]")


if __name__ == "__main__":
    sys.exit(main())

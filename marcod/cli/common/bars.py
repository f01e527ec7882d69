"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import click

from marcod import telemetry
from marcod.cli.common.output import console

LINE_EVERY_S: Final = 15.0
WIDTH: Final = 24
"""Characters of a bar; its description fits next to it in 80 columns."""


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left on a terminal, a line now and then elsewhere. Yields ``done(count)``."""
    with _bar(last_lines=False) as report:
        if total != 0:
            report(description, 0, total)
        yield lambda count: report(description, count, total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar per stage on a terminal; elsewhere a line now and then, and one at the end of each stage.

    Yields ``report(stage, done, total)``.
    """
    with _bar(last_lines=True) as report:
        yield report


@contextmanager
def _bar(*, last_lines: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield ``report(stage, done, total)``. While a bar is on the terminal, the log shows warnings only.

    ``last_lines`` writes the end of each stage too, where there is no terminal.
    """
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    on_terminal = sys.stderr.isatty()
    counted = TextColumn("{task.fields[counted]}", "progress.download")
    columns = (TextColumn("{task.description}"), BarColumn(WIDTH), counted, TimeRemainingColumn())
    shown = Progress(*columns, console=console(to_errors=True), disable=not on_terminal)
    task: TaskID | None = None
    last_line = time.monotonic()

    def report(stage: str, done: int, total: int | None) -> None:
        nonlocal task, last_line
        if task is None:
            task = shown.add_task(stage, total=total, counted="")
        counted = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        shown.update(task, description=stage, completed=done, total=total, counted=counted)
        ended = last_lines and done == total
        if not on_terminal and (ended or time.monotonic() - last_line >= LINE_EVERY_S):
            last_line = time.monotonic()
            click.echo(f"{stage}: {done:,}{'' if total is None else f' of {total:,}'}", err=True)

    with telemetry.warnings_alone() if on_terminal else nullcontext(), shown:
        yield report

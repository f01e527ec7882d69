"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from marcod import telemetry

LINE_EVERY_S: Final = 15.0
WIDTH: Final = 24
"""Characters of a bar, so that its words fit beside it."""


@contextmanager
def bar(console: Console, *, last_lines: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield ``report(stage, done, total)``; where a bar shows it, the log is left to warnings.

    ``last_lines`` has the end of each stage written too, where there is no terminal.
    """
    on_terminal = sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(WIDTH), _Count(), TimeRemainingColumn())
    shown = Progress(*columns, console=console, disable=not on_terminal)
    task: TaskID | None = None
    last_line = time.monotonic()

    def report(stage: str, done: int, total: int | None) -> None:
        nonlocal task, last_line
        if task is None:
            task = shown.add_task(stage, total=total)
        shown.update(task, description=stage, completed=done, total=total)
        ended = last_lines and done == total
        if not on_terminal and (ended or time.monotonic() - last_line >= LINE_EVERY_S):
            last_line = time.monotonic()
            click.echo(f"{stage}: {done:,}{'' if total is None else f' of {total:,}'}", err=True)

    with telemetry.warnings_alone() if on_terminal else nullcontext(), shown:
        yield report


class _Count(ProgressColumn):
    """Show done of all, or only done where the total is unknown."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{total}", "progress.download")

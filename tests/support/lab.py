"""Whole installations: a configuration, a database, imagers' folders, and the real program on them.

Everything the imagers deliver here is synthetic, except the folder that ``MARCOD_REAL_PLATES`` may name.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from click.testing import CliRunner, Result
from waiting import wait_until

from marcod import layouts
from marcod.cli import cli
from marcod.cli.common.lazy import loaded
from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS, ImageKind, PlateFormat
from marcod.settings.environment import child_environment
from marcod.synthetic import ImagerStyle, PlannedFile, PlateSpec, plate_files, write_file

SIZE = (204, 171)


@dataclass
class Site:
    """One lab: its folder, its database, its sources."""

    folder: Path
    url: str
    lines: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "marcod.toml"

    def add_source(self, name: str, root: Path, layout: str, **more: Any) -> None:
        values = {"root": str(root), "layout": layout} | more
        self.lines.append(f"[sources.{name}]")
        self.lines.extend(
            f"{key} = {value!r}" if isinstance(value, str) else f"{key} = {value}" for key, value in values.items()
        )

    def write(self, **sections: dict[str, Any]) -> None:
        """Write the configuration; sections override the quick defaults of tests."""
        chosen: dict[str, dict[str, Any]] = {
            "watch": {"settle_s": 0.3, "rescan_s": 2.0},
            "score": {"batch_size": 4, "lease_s": 6.0, "idle_s": 0.1},
            "daemon": {"stop_s": 30.0},
        }
        for name, values in sections.items():
            chosen[name] = chosen.get(name, {}) | values
        head = [f"store.url = {self.url!r}"]
        for name, values in chosen.items():
            head.append(f"[{name}]")
            head.extend(f"{key} = {value!r}" for key, value in values.items())
        self.config.write_text("\n".join(head + self.lines) + "\n")

    def call(self, *arguments: str) -> Result:
        """One command in this process."""
        return CliRunner().invoke(cli, ["--config", str(self.config), *arguments], prog_name="marcod")

    def ok(self, *arguments: str) -> str:
        """One command that must succeed; returns what it printed."""
        result = self.call(*arguments)
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.stdout

    @contextmanager
    def daemon(self, roles: str = "watch,score,schedule") -> Iterator[subprocess.Popen[bytes]]:
        """The real service as its own process; killed at the end if it is still there."""
        command = [sys.executable, "-m", "marcod", "--config", str(self.config), "run", "--roles", roles]
        log = (self.folder / "marcod.log").open("ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, env=child_environment())
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            log.close()

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """All rows of a query."""
        database = Database(self.url)
        try:
            return database.read(lambda c: list(c.execute(sa.text(statement), values).all()))
        finally:
            database.close()

    def count(self, table: str) -> int:
        """How many rows a table or view has; 0 while it is not there yet."""
        try:
            return int(self.rows(f"select count(*) from {table}")[0][0])
        except sa.exc.DBAPIError:
            return 0

    def wait_until_running(self, process: subprocess.Popen[bytes]) -> None:
        """Until this process has said that it is alive; before, a signal ends it as it ends any program."""
        alive = "select count(*) from worker where pid = :pid"
        wait_until(lambda: self.rows(alive, pid=process.pid)[0][0] == 1, "the daemon to run")

    @property
    def log(self) -> str:
        return (self.folder / "marcod.log").read_text()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command by its full name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        real = loaded(command)
        here = (*path, name)
        if isinstance(real, click.Group):
            found |= commands(real, here)
        if not isinstance(real, click.Group) or real.invoke_without_command:
            found[" ".join(here)] = real
    return found


@dataclass(frozen=True)
class Delivery:
    """Plates of one imager, to be written into a folder of its own."""

    layout: str
    spec: PlateSpec

    def files(self) -> list[PlannedFile]:
        return list(plate_files(self.spec, layouts.make(self.layout)))

    def composites(self) -> list[PlannedFile]:
        return [file for file in self.files() if file.kind is ImageKind.COMPOSITE]

    def write(self, root: Path) -> None:
        for file in self.files():
            write_file(root, file, SIZE)


def delivery(
    layout: str, imager: ImagerStyle, key: str, seed: int, wells: PlateFormat | None = None, filled: float = 0.15
) -> Delivery:
    """A small synthetic plate, imaged once."""
    taken = datetime(2026, 4, 1, 8, tzinfo=UTC)
    return Delivery(layout, PlateSpec(imager, key, (taken,), wells or PLATE_FORMATS[96], seed=seed, filled=filled))


def real_plates() -> Path | None:
    """The folder of real plates, where a checkout has one."""
    named = os.environ.get("MARCOD_REAL_PLATES")
    return Path(named) if named else None


def terminate(process: subprocess.Popen[bytes]) -> int:
    """Stop in order; returns the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(60)

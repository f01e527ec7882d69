"""marcod's processes as a service manager keeps them: started, ended by all means, and begun again."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from marcod.settings.environment import child_environment

RESTART_S: Final = 1.0
"""As RestartSec= of a unit."""

_RUNNING: Final = b'"event": "running"'
_STALE: Final = re.compile(rb'(?:"stale": |stale=)([1-9]\d*)')
_AWAY: Final = re.compile(r"marcod: database \S+ cannot be used: .+")


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended that nobody had killed or asked to end: its exit code, and the last line of its log."""

    code: int
    said: str

    @property
    def is_in_order(self) -> bool:
        """A database that is away as it starts is the one reason that it may have; a service manager begins it anew."""
        return self.code == 1 and _AWAY.fullmatch(self.said) is not None


class Process:
    """One process of marcod with its roles. It is begun again, a moment later, whenever it is found dead."""

    def __init__(self, name: str, roles: str, config: Path) -> None:
        self.name, self.roles = name, roles
        self.log = config.with_name(f"{name}.log")
        self.starts = 0
        self.ended: list[End] = []
        """Ends of those that nobody had killed."""
        self._command = [sys.executable, "-m", "marcod", "--config", str(config), "run", "--roles", roles]
        self._child: subprocess.Popen[bytes] | None = None
        self._killed = self._paused = False
        self._start_at = 0.0
        self._log_from = 0

    @property
    def pid(self) -> int:
        """Of the process that runs or ran last."""
        assert self._child is not None
        return self._child.pid

    @property
    def lives(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def can_be_harmed(self) -> bool:
        """Whether it runs, and is not held already."""
        return self.lives and not self._paused

    @property
    def is_held(self) -> bool:
        """Whether :meth:`pause` holds it."""
        return self._paused

    @property
    def is_at_work(self) -> bool:
        """Whether it has said that it runs, and is not held."""
        if not self.can_be_harmed:
            return False
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            return _RUNNING in log.read()

    @property
    def late_finishes(self) -> int:
        """Jobs that it finished after others had them, and that changed nothing."""
        return sum(int(found) for found in _STALE.findall(self.log.read_bytes())) if self.log.exists() else 0

    def tend(self) -> None:
        """Begin it where it is not running, as a service manager does."""
        if self.lives:
            return
        if self._child is not None and not self._start_at:
            self._start_at = time.monotonic() + RESTART_S
            if not self._killed:
                self.ended.append(End(self._child.returncode, self._last_line()))
        if time.monotonic() >= self._start_at:
            self._begin()

    def _begin(self) -> None:
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment()
            )
        self.starts += 1
        self._killed, self._start_at = False, 0.0

    def kill(self) -> None:
        """Kill it outright, and what it started, as a service manager clears the group of a dead service."""
        # One that was dead already was not killed here, unless it was killed before.
        self._killed = self._killed or self.lives
        below = psutil.Process(self.pid).children(recursive=True) if self.lives else []
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        for orphan in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
        self._paused = False

    def pause(self) -> None:
        """Hold it, as a host that swaps or a virtual machine that moves is held."""
        self._paused = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._paused = False
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to stop in order."""
        if self.lives:
            self._signal(signal.SIGTERM)

    def wait(self, deadline_s: float) -> int:
        """Its exit code, when it was asked to stop; it is killed when it is too late."""
        assert self._child is not None
        try:
            return self._child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def _last_line(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            return (log.read().decode(errors="replace").strip().splitlines() or [""])[-1]

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


PROCESSES: Final = {
    "postgres": {"watcher": "watch,schedule", "scorer-1": "score", "scorer-2": "score", "trainer": "trainer"},
    "sqlite": {"marcod": "watch,score,schedule,trainer"},
}


def processes(kind: str, config: Path) -> list[Process]:
    """Those of a lab with this database."""
    return [Process(name, roles, config) for name, roles in PROCESSES[kind].items()]

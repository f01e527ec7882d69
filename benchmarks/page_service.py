"""The page's server as a process of its own, with the configuration of a folder."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from marcod.settings.environment import child_environment

READY_S: Final = 60.0


def environment(folder: Path) -> dict[str, str]:
    """Make the environment in which marcod reads ``marcod.toml`` of a folder."""
    return child_environment(MARCOD_CONFIG=str(folder / "marcod.toml"))


def command(*words: str, core: int | None = None) -> list[str]:
    """Make the command line of a marcod command, held to one core where one is given."""
    held = [] if core is None else ["taskset", "--cpu-list", str(core)]
    return [*held, sys.executable, "-m", "marcod", *words]


@contextmanager
def served(folder: Path, core: int | None = None) -> Iterator[str]:
    """Serve the page of a folder's lab. Yields its address. Raises RuntimeError when it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = command("web", "--port", str(port), core=core)
    process = subprocess.Popen(line, env=environment(folder), stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the page did not start")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.URLError:
        return False

"""A terminal of a given width for the real program: what a person sees of it."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread

from marcod.settings.environment import child_environment

STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Seen:
    """What came on a terminal, with all that steers it, and how the program ended."""

    raw: str
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """The lines of text as they stand in the end, without colours: a bar writes over itself."""
        written = STEERING.sub("", self.raw).replace("\r\n", "\n").split("\n")
        return [line.rstrip("\r").split("\r")[-1] for line in written]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def on_terminal(arguments: Sequence[str], columns: int = 80, keys: str = "") -> Seen:
    """Run marcod on a terminal and type ``keys``; the process is killed when it takes too long."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in child_environment().items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "marcod", *arguments],
        stdin=slave, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm-256color"}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    parts: list[bytes] = []

    def read() -> None:
        # Linux says EIO when the program's side is closed.
        with suppress(OSError):
            while part := os.read(master, 65536):
                parts.append(part)

    reader = Thread(target=read, daemon=True)
    reader.start()
    if keys:
        os.write(master, keys.encode())
    try:
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        reader.join(DEADLINE_S)
        os.close(master)
    return Seen(b"".join(parts).decode(), process.returncode)

"""The facts without which a measured number means nothing. No host name, no path."""

import os
import platform
import re
import sqlite3
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa

from marcod import __version__
from marcod.database.engine import Database


def facts() -> dict[str, str]:
    """What this machine and its libraries are; asks no database."""
    return {
        "marcod": __version__,
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "TensorFlow": version("tensorflow"),
        "Keras": version("keras"),
        "SQLite": sqlite3.sqlite_version,
        "load average": load(),
    }


def load() -> str:
    """How busy the machine is: runnable processes over the last 1 and 5 minutes."""
    one, five, _ = os.getloadavg()
    return f"{one:.1f} (1 min), {five:.1f} (5 min)"


def postgresql(db: Database) -> str:
    """The server's version and what decides the price of a commit."""
    names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
    values = db.read(lambda c: [str(c.execute(sa.text(f"show {name}")).scalar_one()) for name in names])
    return f"{values[0].split()[0]}, fsync {values[1]}, synchronous_commit {values[2]}, shared_buffers {values[3]}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"

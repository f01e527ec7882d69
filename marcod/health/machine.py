"""The machine: its limits, its clock, and the device that Keras finds."""

import resource
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from typing import Final

from marcod.database import probe
from marcod.database.engine import Database
from marcod.health.finding import HealthFinding, Severity, first_line, judged
from marcod.model.registry import Registry
from marcod.settings import Settings
from marcod.store import versions
from marcod.text import count

OPEN_FILES: Final = 1024
WATCHES: Final = 65_536
"""Folders that inotify should be able to watch: a plate's folders, a year of plates."""

INSTANCES: Final = 64
MEMORY: Final = 2 * 2**30
SKEW_S: Final = 5.0
_PROC: Final = Path("/proc/sys/fs/inotify")


def limits(settings: Settings) -> Iterator[HealthFinding]:
    """Check open files, inotify and memory."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = files == resource.RLIM_INFINITY
    yield judged(
        "limits", "open files", unlimited or files >= OPEN_FILES, "unlimited" if unlimited else str(files),
        f"raise it to {OPEN_FILES} or more (LimitNOFILE= in the unit)",
    )  # fmt: skip
    if any(source.observer == "inotify" for source in settings.sources.values()):
        yield from _inotify("max_user_watches", WATCHES)
        yield from _inotify("max_user_instances", INSTANCES)
    available = _available_memory()
    if available is not None:
        text = f"{available / 2**30:.1f} GiB available"
        yield judged("limits", "memory", available >= MEMORY, text, "a scoring process needs 1 to 2 GiB")


def _inotify(name: str, wanted: int) -> Iterator[HealthFinding]:
    try:
        value = int((_PROC / name).read_text())
    except (OSError, ValueError):
        return
    advice = f"sysctl fs.inotify.{name}={wanted}; folders beyond it are found by rescans only, later"
    yield judged("limits", f"inotify {name}", value >= wanted, str(value), advice)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def clock() -> Iterator[HealthFinding]:
    """Check that a time service keeps this host's clock."""
    if (program := which("timedatectl")) is None:
        return
    command = [program, "show", "--property=NTPSynchronized", "--value"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if said in ("yes", "no"):
        yield judged("clock", "synchronised", said == "yes", said, "start a time service, such as chrony")


def database_clock(db: Database) -> Iterator[HealthFinding]:
    """Check that this host and a database server agree on the time."""
    if db.is_sqlite:
        return
    apart = (db.read(probe.clock) - datetime.now(UTC)).total_seconds()
    yield judged(
        "clock", "database", abs(apart) <= SKEW_S, f"{apart:+.1f} s from this host",
        "let the same time service set both clocks",
    )  # fmt: skip


def device(db: Database, settings: Settings) -> Iterator[HealthFinding]:
    """Yield the devices of Keras and the time of a batch of the champion there, or why it cannot."""
    try:
        yield from _tried(db, settings)
    except Exception as error:  # noqa: BLE001 - drivers and libraries fail each in their own way
        advice = "see `marcod model verify`; or does another process hold the memory of the device?"
        yield HealthFinding("device", "test batch", Severity.BROKEN, first_line(error), advice)


def _tried(db: Database, settings: Settings) -> Iterator[HealthFinding]:
    import numpy as np

    from marcod.model import engines

    engine, version = engines.facts(settings.score.engine)
    yield HealthFinding("device", "engine", Severity.OK, f"{engine} {version}")
    for name, memory in engines.devices(settings.score.engine):
        text = name if memory is None else f"{name}, {memory / 2**30:.1f} GiB"
        yield HealthFinding("device", "found", Severity.OK, text)
    champion = db.read(versions.champion)
    predictor = Registry(db, settings.models.folder, settings.score.engine).load(champion, settings.score.tried_images)
    batch = np.zeros((settings.score.tried_images, *predictor.input_shape), np.float32)
    predictor.predict(batch)
    start = time.perf_counter()
    predictor.predict(batch)
    seconds = time.perf_counter() - start
    text = f"{count(len(batch), 'image')} in {seconds:.2f} s ({len(batch) / seconds:.0f} a second)"
    quick = seconds < settings.daemon.batch_limit_s / 4
    yield judged("device", "test batch", quick, text, "lower score.batch_size, or raise daemon.batch_limit_s")

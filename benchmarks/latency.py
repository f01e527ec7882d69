"""From a file's last byte to its score, in the real service: steady streams of files, then a whole plate at once.

Then what a scorer and a watcher take of the processor while nothing comes.
"""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Final

from benchmarks import models, plates
from benchmarks.bench import KINDS, Bench, Kind
from benchmarks.tables import Cell, Table
from marcod.database.engine import Database
from marcod.demo import running_daemon
from marcod.domain import path_text
from marcod.plates import reports

SETTLE_S: Final = 1.0
PACES: Final = (4, 10)
"""Files a second in the streams: as fast as an imager takes images, and as several do."""

BURST: Final = 96
RENDERED: Final = 24
FINISH_S: Final = 120.0
POLL_S: Final = 0.2
START_S: Final = 10.0
"""Time after its start before an idle process is measured: its first turns of everything are done."""

COLUMNS: Final = (
    "database", "files", "images", "median s", "95 % s", "median beyond settling s", "slowest s", "images a batch",
    "processor, % of a core",
)  # fmt: skip

Moments = dict[str, float]


def run(bench: Bench) -> Iterator[Table]:
    """Streams, a plate and idle processes on each database, as one table."""
    rows: list[list[Cell]] = []
    with bench.place("models") as place:
        own, title = models.own_folder(place)
        for kind in KINDS:
            bench.say(f"a service on {kind}")
            rows += _measure(bench, kind, own)
            for role in ("score", "watch"):
                bench.say(f"the role {role} waits on {kind}")
                rows.append(_idle(bench, kind, own, role))
    about = (
        f"{title}. `marcod run` with inotify and its default settings, but settle_s = {SETTLE_S:g}. Synthetic JPEGs of "
        f"{plates.SIZE[0]} x {plates.SIZE[1]} written in place; measured from the end of the writing to scored_at. "
        "Processor time is the whole process's, from /proc."
    )
    yield Table("From file to score", about, COLUMNS, rows)


def _measure(bench: Bench, kind: Kind, models_folder: Path | None) -> Iterator[list[Cell]]:
    pool = plates.rendered(bench.size(RENDERED, 4))
    counts = [pace * bench.size(60, 5) for pace in PACES] + [BURST]
    names = iter([path for path, _ in islice(plates.composites((1,)), sum(counts) + BURST)])
    with (
        bench.place("service") as folder,
        bench.database(kind) as db,
        running_daemon(_configure(folder, db, models_folder), folder / "log") as process,
    ):
        for pace, count in zip((*PACES, None), counts, strict=True):
            meter = _Meter(process.pid, folder / "log")
            written = _deliver(folder / "export", list(islice(names, count)), pool, 1 / pace if pace else 0.0)
            latencies = _latencies(process, db, written)
            title = f"{pace} a second" if pace else f"{BURST} at once"
            yield [kind, title, *_cells(latencies), meter.images_a_batch(), meter.percent()]


def _idle(bench: Bench, kind: Kind, models_folder: Path | None, role: str) -> list[Cell]:
    with (
        bench.place("idle") as folder,
        bench.database(kind) as db,
        running_daemon(_configure(folder, db, models_folder), folder / "log", "--roles", role) as process,
    ):
        pause = Event()
        pause.wait(START_S)
        meter = _Meter(process.pid, folder / "log")
        pause.wait(bench.size(60, 5))
        return [kind, f"none: the role {role} waits", 0, "", "", "", "", "", meter.percent()]


class _Meter:
    """Processor time and batches of a process, from here on."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid, self._log = pid, log
        self._start, self._used, self._told = time.monotonic(), _used_s(pid), log.stat().st_size

    def percent(self) -> float:
        """Return the share of one core since the start."""
        return 100 * (_used_s(self._pid) - self._used) / (time.monotonic() - self._start)

    def images_a_batch(self) -> float:
        """Return the mean size of the scorer's batches."""
        told = self._log.read_bytes()[self._told :].decode()
        batches = [line for line in told.splitlines() if "batch scored" in line]
        sizes = [int(found) for line in batches for found in re.findall(r'\bscored"?[=:] ?(\d+)', line)]
        return statistics.mean(sizes)


def _used_s(pid: int) -> float:
    """Return the processor time of all threads of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _deliver(root: Path, names: list[str], pool: tuple[bytes, ...], pause_s: float) -> Moments:
    """Write the files at a steady pace. Returns when each was written."""
    written: Moments = {}
    pause = Event()
    start = time.monotonic()
    for number, name in enumerate(names):
        pause.wait(max(0.0, start + number * pause_s - time.monotonic()))
        plates.write(root / name, plates.marked(pool[number % len(pool)], name))
        written[path_text(name)] = time.time()
    return written


def _latencies(process: subprocess.Popen[bytes], db: Database, written: Moments) -> list[float]:
    deadline, pause = time.monotonic() + FINISH_S, Event()
    while not written.keys() <= (scored := db.read(lambda c: reports.scored_at(c, "bench"))).keys():
        if time.monotonic() > deadline or process.poll() is not None:
            missing = len(written.keys() - scored.keys())
            raise RuntimeError(f"{missing} of {len(written)} images were not scored")
        pause.wait(POLL_S)
    return sorted(scored[path].timestamp() - moment for path, moment in written.items())


def _cells(latencies: list[float]) -> list[Cell]:
    median = statistics.median(latencies)
    late = latencies[int(0.95 * (len(latencies) - 1))]
    return [len(latencies), median, late, median - SETTLE_S, latencies[-1]]


def _configure(folder: Path, db: Database, models_folder: Path | None) -> Path:
    root = folder / "export"
    root.mkdir()
    lines = [f'store.url = "{db.url.render_as_string(hide_password=False)}"', f"watch.settle_s = {SETTLE_S}"]
    if models_folder is not None:
        lines.append(f'models.folder = "{models_folder}"')
    lines += ["[sources.bench]", f'root = "{root}"', 'layout = "formulatrix"', f"expected_drops = {BURST}"]
    config = folder / "marcod.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config

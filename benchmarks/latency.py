"""From a file's last byte to its score, in the real service: a steady stream of files, then a whole plate at once."""

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
PACE: Final = 4
"""Files a second in the stream, as fast as an imager takes images."""

BURST: Final = 96
RENDERED: Final = 24
FINISH_S: Final = 120.0
POLL_S: Final = 0.2

Moments = dict[str, float]


def run(bench: Bench) -> Iterator[Table]:
    """One service on each database."""
    rows: list[list[Cell]] = []
    with bench.place("models") as place:
        own, title = models.own_folder(place)
        for kind in KINDS:
            bench.say(f"a service on {kind}")
            rows += _measure(bench, kind, own)
    about = (
        f"{title}. `marcod run` with inotify and its default settings, but settle_s = {SETTLE_S:g}. Synthetic JPEGs of "
        f"{plates.SIZE[0]} x {plates.SIZE[1]} written in place; measured from the end of the writing to scored_at."
    )
    columns = ["database", "files", "images", "median s", "95 % s", "median beyond settling s", "slowest s"]
    yield Table("From file to score", about, columns, rows)


def _measure(bench: Bench, kind: Kind, models_folder: Path | None) -> Iterator[list[Cell]]:
    pool = plates.rendered(bench.size(RENDERED, 4))
    stream = PACE * bench.size(60, 5)
    names = [path for path, _ in islice(plates.composites((1,)), BURST * (1 + stream // BURST) + BURST)]
    with (
        bench.place("service") as folder,
        bench.database(kind) as db,
        running_daemon(_configure(folder, db, models_folder), folder / "log") as process,
    ):
        written = _deliver(folder / "export", names[:stream], pool, pause_s=1 / PACE)
        steady = _latencies(process, db, written)
        written = _deliver(folder / "export", names[-BURST:], pool, pause_s=0.0)
        burst = _latencies(process, db, written)
    yield [kind, f"{PACE} a second", *_cells(steady)]
    yield [kind, "a plate at once", *_cells(burst)]


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

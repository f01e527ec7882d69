"""The service at the machine's full rate for half an hour: what its process holds, and how late it is, all along."""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks import models, plates
from benchmarks.bench import Bench, Kind
from benchmarks.tables import Cell, Table
from marcod import layouts
from marcod.database.column_types import UtcDateTime
from marcod.database.engine import Database
from marcod.demo import running_daemon
from marcod.domain import PLATE_FORMATS, DropImage, Modality, path_text

SECONDS: Final = 1800
QUICK_S: Final = 30
WINDOWS: Final = 10
SETTLE_S: Final = 1.0
AHEAD: Final = 96
"""Images that are delivered and not scored yet: enough that the device never waits, few enough to see its latency."""

RENDERED: Final = 24
POLL_S: Final = 0.5
FINISH_S: Final = 120.0
_LAYOUT: Final = layouts.make("rigaku")
_FRESH: Final = sa.text(
    "select score.id, image.path, score.scored_at from score join image on image.id = score.image_id "
    "where score.id > :last order by score.id"
).columns(scored_at=UtcDateTime())


def run(bench: Bench) -> Iterator[Table]:
    """The whole time on each database that was asked for, unless it is quick."""
    with bench.place("models") as place:
        own, title = models.own_folder(place)
        for kind in bench.kinds[:1] if bench.quick else bench.kinds:
            rows = list(_soaked(bench, kind, own))
            about = (
                f"{title}, {kind}. `marcod run` (watch, score, schedule in one process) with its default settings, but "
                f"settle_s = {SETTLE_S:g}. New plates of 96 images of {plates.SIZE[0]} x {plates.SIZE[1]} arrive as "
                f"fast as they are scored, {AHEAD} ahead; their files are hard links to {RENDERED} rendered images. "
                "Latency is from a file's appearance to scored_at, so it holds the settle time and the wait behind "
                "those ahead."
            )
            yield Table(f"Soak, {kind}", about, _COLUMNS, rows)


_COLUMNS: Final = [
    "minutes", "images scored", "images/s", "resident MB", "open files", "threads", "median s", "95 % s", "database MB",
]  # fmt: skip


@dataclass
class _Stream:
    """Plates that arrive, and when each of their files was scored."""

    root: Path
    pool: list[Path]
    db: Database
    delivered: int = 0
    scored: int = 0
    latencies: list[float] = field(default_factory=list)
    _last: int = 0
    _written: dict[str, float] = field(default_factory=dict)
    _names: Iterator[str] = field(default_factory=lambda: _names())

    def step(self) -> None:
        """Look what was scored, and deliver as much."""
        self._look()
        while self.delivered - self.scored < AHEAD:
            self._deliver(next(self._names))

    def _look(self) -> None:
        for row in self.db.read(lambda c: list(c.execute(_FRESH, {"last": self._last}))):
            self._last = row.id
            self.scored += 1
            self.latencies.append(row.scored_at.timestamp() - self._written.pop(row.path))

    def finish(self) -> None:
        """Wait for the last ones. Raises RuntimeError when they do not come."""
        deadline, pause = time.monotonic() + FINISH_S, threading.Event()
        while self._written:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(self._written)} of {self.delivered} images were not scored")
            pause.wait(POLL_S)
            self._look()

    def _deliver(self, name: str) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(self.pool[self.delivered % len(self.pool)])
        self._written[path_text(name)] = time.time()
        self.delivered += 1


def _names() -> Iterator[str]:
    """Images of one plate after another, a folder a plate as Minstrels write them."""
    grid = PLATE_FORMATS[96]
    for plate in count(1):
        for well in range(1, grid.wells + 1):
            row, column = grid.position(well)
            yield _LAYOUT.format(
                DropImage(
                    "rigaku", f"CI{10_000_000 + plate}", "1", row, column, 1, Modality.VISIBLE,
                    captured_at=datetime(2026, 4, 1, tzinfo=UTC),
                )
            )  # fmt: skip


def _soaked(bench: Bench, kind: Kind, models_folder: Path | None) -> Iterator[list[Cell]]:
    window_s = bench.size(SECONDS, QUICK_S) / WINDOWS
    with bench.place("soak") as folder, bench.database(kind) as db:
        config = _configure(folder, db, models_folder)
        stream = _Stream(folder / "export", _pool(bench, folder), db)
        with running_daemon(config, folder / "log") as process:
            pause, start = threading.Event(), time.monotonic()
            for window in range(1, WINDOWS + 1):
                before, stream.latencies = stream.scored, []
                begun = time.monotonic()
                while time.monotonic() < start + window * window_s:
                    stream.step()
                    pause.wait(POLL_S)
                rate = (stream.scored - before) / (time.monotonic() - begun)
                row = _row(stream, process.pid, db, folder, rate, (time.monotonic() - start) / 60)
                bench.say(", ".join(f"{name} {cell:,.1f}" for name, cell in zip(_COLUMNS, row, strict=True)))
                yield row
            stream.finish()
            _check(db, stream.delivered)


def _row(stream: _Stream, pid: int, db: Database, folder: Path, rate: float, minutes: float) -> list[Cell]:
    late = sorted(stream.latencies) or [float("nan")]
    held = _held(pid)
    return [
        round(minutes, 1), stream.scored, rate, held["resident MB"], held["open files"], held["threads"],
        statistics.median(late), late[int(0.95 * (len(late) - 1))], _size_mb(db, folder),
    ]  # fmt: skip


def _held(pid: int) -> dict[str, float]:
    """What a process holds, from /proc."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "resident MB": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "open files": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
    }


def _size_mb(db: Database, folder: Path) -> float:
    if db.is_sqlite:
        assert db.url.database
        return sum(file.stat().st_size for file in Path(db.url.database).parent.glob("marcod.sqlite*")) / 1e6
    return float(_number(db, "select pg_database_size(current_database())")) / 1e6


def _number(db: Database, statement: str) -> Any:
    return db.read(lambda c: c.execute(sa.text(statement)).scalar())


def _check(db: Database, delivered: int) -> None:
    """Raises RuntimeError when anything was lost, doubled or left."""
    found = [_number(db, f"select count(*) from {table}") for table in ("image", "score", "job")]
    if found != [delivered, delivered, 0]:
        raise RuntimeError(f"{delivered} delivered; images, scores and jobs are {found}")


def _pool(bench: Bench, folder: Path) -> list[Path]:
    rendered = plates.rendered(bench.size(RENDERED, 4))
    for number, jpeg in enumerate(rendered):
        plates.write(folder / "pool" / f"{number}.jpg", jpeg)
    return sorted((folder / "pool").iterdir())


def _configure(folder: Path, db: Database, models_folder: Path | None) -> Path:
    root = folder / "export"
    root.mkdir()
    lines = [f'store.url = "{db.url.render_as_string(hide_password=False)}"', f"watch.settle_s = {SETTLE_S}"]
    if models_folder is not None:
        lines.append(f'models.folder = "{models_folder}"')
    lines += ["[sources.bench]", f'root = "{root}"', 'layout = "rigaku"', "expected_drops = 96"]
    config = folder / "marcod.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config

"""The demonstration: synthetic exports of three imagers arrive while the real daemon runs.

A composition root like the daemon's: it makes a folder with a configuration, starts ``marcod run`` as its own
process, lets rendered plates arrive file by file, waits until every image is scored, and stops the daemon as
systemd would. Everything it leaves behind can be looked at with the same commands as a real installation.
"""

import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import Final
from uuid import uuid4

from marcod import layouts, settings
from marcod.domain import PLATE_FORMATS, Kind, path_text
from marcod.errors import MarcodError
from marcod.store import backlog, reports
from marcod.store.engine import Database
from marcod.synthetic import Imager, PlannedFile, PlateSpec, plate_files, write_file

READY_S: Final = 120.0
"""How long the daemon may take to load its model and say READY=1."""

FINISH_S: Final = 150.0
"""How long everything may take to arrive and be scored."""

POLL_S: Final = 0.2
PICTURE_SIZE: Final = (510, 428)
"""Width and height of the rendered pictures; imagers' are larger, which would only take longer to draw."""


@dataclass(frozen=True, slots=True)
class Export:
    """One imager of the demonstration and the plate it delivers."""

    source: str
    layout: str
    spec: PlateSpec

    def files(self) -> list[PlannedFile]:
        """Every file of the export, in the imager's order."""
        return list(plate_files(self.spec, layouts.make(self.layout)))


def exports() -> list[Export]:
    """The three plates: a Rock Imager store, a Minstrel share and an HWI delivery."""
    spring = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    summer = datetime(2026, 3, 9, 9, 30, tzinfo=UTC)
    return [
        Export(
            "rock-imager",
            "formulatrix",
            PlateSpec(
                Imager.FORMULATRIX, "2041", (spring, summer), filled=0.75, seed=11, first_batch=8801, hit_rate=0.25
            ),
        ),
        Export(
            "minstrel", "rigaku", PlateSpec(Imager.RIGAKU, "CI030117", (summer,), drops=(1,), seed=12, hit_rate=0.3)
        ),
        Export(
            "hwi",
            "hwi",
            PlateSpec(
                Imager.HWI, "X000016042", (summer,), wells=PLATE_FORMATS[1536], filled=0.0625, seed=13, hit_rate=0.3
            ),
        ),
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """How far the demonstration is; ``text`` says what it waits for."""

    text: str
    delivered: int
    scored: int
    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was delivered and how long it took, in seconds from a file's last byte to its score."""

    folder: Path
    config: Path
    images: int
    other_files: int
    seconds: float
    median_s: float
    percentile_95_s: float


def run(folder: Path, on_step: Callable[[Step], None]) -> Outcome:
    """Run the whole demonstration in ``folder`` (made if missing, must be empty). Raises MarcodError."""
    config = _prepare(folder)
    planned = [export.files() for export in exports()]
    total = sum(1 for files in planned for f in files if f.kind is Kind.COMPOSITE)
    start = time.monotonic()
    on_step(Step("the daemon loads its model", 0, 0, total))
    with running_daemon(config, folder / "marcod.log") as process:
        db = Database(database_url(folder))
        delivered = _deliver(folder, planned, db, on_step, total)
        _wait_until_scored(process, db, delivered, on_step, folder / "marcod.log")
    seconds = time.monotonic() - start
    latencies = sorted(_latencies(db, delivered))
    db.close()
    files = sum(len(files) for files in planned)
    return Outcome(
        folder,
        config,
        total,
        files - total,
        seconds,
        statistics.median(latencies),
        latencies[int(0.95 * (len(latencies) - 1))],
    )


def database_url(folder: Path) -> str:
    """The demonstration's own database, whatever is configured elsewhere."""
    return f"sqlite:///{folder}/marcod.sqlite"


def _prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise MarcodError(f"{folder} is not empty; give another folder with --folder")
    lines = [
        "# Made by `marcod demo`; everything in this folder is synthetic.",
        f'store.url = "{database_url(folder)}"',
        "watch.settle_s = 1.0",
        "watch.rescan_s = 5.0",
        "watch.quiet_s = 20.0",
        'log.format = "json"',
    ]
    for export in exports():
        root = folder / "exports" / export.source
        root.mkdir(parents=True)
        expected = len(export.spec.positions()) * len(export.spec.drops)
        lines += [
            "",
            f"[sources.{export.source}]",
            f'root = "{root}"',
            f'layout = "{export.layout}"',
            f"expected_drops = {expected}",
        ]
    config = folder / "marcod.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


@contextmanager
def running_daemon(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real service in its own process, from READY=1 until it has stopped in order. Raises MarcodError."""
    address = f"marcod-demo-{uuid4()}"
    command = [sys.executable, "-m", "marcod", "--config", str(config), "run"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, log.open("wb") as output:
        channel.bind("\0" + address)
        environment = settings.child_environment(NOTIFY_SOCKET="@" + address)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _await_ready(channel, process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_ready(channel: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
    channel.settimeout(POLL_S)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if b"READY=1" in channel.recv(4096):
                return
        except TimeoutError:
            continue
    raise MarcodError(f"the daemon did not start; {log} tells why")


def _deliver(
    folder: Path, planned: list[list[PlannedFile]], db: Database, on_step: Callable[[Step], None], total: int
) -> dict[str, dict[str, float]]:
    """Write the files one by one, the imagers taking turns. Returns when each composite was written, by source."""
    sources = [export.source for export in exports()]
    written: dict[str, dict[str, float]] = {source: {} for source in sources}
    for turn in zip_longest(*planned):
        for source, file in zip(sources, turn, strict=True):
            if file is None:
                continue
            write_file(folder / "exports" / source, file, PICTURE_SIZE)
            if file.kind is Kind.COMPOSITE:
                written[source][path_text(file.path)] = time.time()
        delivered = sum(len(paths) for paths in written.values())
        on_step(Step("plates arrive", delivered, _scored(db), total))
    return written


def _scored(db: Database) -> int:
    return db.read(lambda connection: sum(s.scored for s in reports.summaries(connection)))


def _wait_until_scored(
    process: subprocess.Popen[bytes],
    db: Database,
    written: dict[str, dict[str, float]],
    on_step: Callable[[Step], None],
    log: Path,
) -> None:
    total = sum(len(paths) for paths in written.values())
    deadline = time.monotonic() + FINISH_S
    pause = Event()
    while (scored := _scored(db)) < total or _open(db):
        if time.monotonic() > deadline or process.poll() is not None:
            raise MarcodError(f"{scored} of {total} images were scored, then nothing came; {log} tells why")
        on_step(Step("the last ones are scored", total, scored, total))
        pause.wait(POLL_S)
    on_step(Step("done", total, total, total))


def _open(db: Database) -> bool:
    status = db.read(lambda connection: backlog.status(connection, db.now()))
    return bool(status.waiting or status.leased or status.retrying)


def _latencies(db: Database, written: dict[str, dict[str, float]]) -> Iterator[float]:
    for source, moments in written.items():
        scored = db.read(partial(reports.scored_at, source_name=source))
        yield from (scored[path].timestamp() - moment for path, moment in moments.items())

"""Demonstration: rendered exports of three imagers arrive while the real daemon runs.

A composition root like the daemon's: it makes a folder with a configuration, fetches the published MARCO with
``marcod model fetch``, starts ``marcod run`` as its own process, lets rendered plates arrive file by file, waits until
every image is scored, and stops the daemon as systemd would. Everything it leaves behind can be looked at with the same
commands as a real installation.
"""

import math
import signal
import socket
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import Final
from uuid import uuid4

from marcod import layouts
from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS, DropClass, ImageKind, path_text
from marcod.errors import ConfigError, MarcodError, os_reason
from marcod.plates import reports
from marcod.settings import WebSettings
from marcod.settings.environment import child_environment, published_wheel
from marcod.store import backlog
from marcod.synthetic import ImagerStyle, PlannedFile, PlateSpec, plate_files, write_file

READY_S: Final = 120.0
"""Time for the daemon to load its model and say READY=1."""

FINISH_S: Final = 600.0
"""Time for everything to arrive and be scored."""

POLL_S: Final = 0.2
IMAGE_SIZE: Final = (510, 428)
"""Width and height of the rendered images; imagers' are larger, which would only take longer to draw."""

MODEL: Final = "marco"
"""Published model that the demonstration fetches."""

Drawn = Mapping[tuple[str, str], DropClass]
"""Class that the renderer drew, by source and path of the image as the database keeps it."""


@dataclass(frozen=True, slots=True)
class Export:
    """One imager of the demonstration and the plate it delivers."""

    source: str
    layout: str
    spec: PlateSpec

    def files(self) -> list[PlannedFile]:
        """Every file of the export, in the imager's order."""
        return list(plate_files(self.spec, layouts.make(self.layout)))


def exports(wells: int | None = None) -> list[Export]:
    """Three plates: a Rock Imager store, a Minstrel share and an HWI delivery; each of at most ``wells`` wells."""
    set_at, week_later = datetime(2026, 3, 2, 9, 30, tzinfo=UTC), datetime(2026, 3, 9, 9, 30, tzinfo=UTC)
    rock = PlateSpec(
        ImagerStyle.FORMULATRIX, "2041", (set_at, week_later), filled=0.75, seed=11, first_batch=8801, hit_rate=0.25
    )
    minstrel = PlateSpec(ImagerStyle.RIGAKU, "CI030117", (week_later,), seed=12, hit_rate=0.3, set_at=set_at)
    hwi = PlateSpec(
        ImagerStyle.HWI, "X000016042", (week_later,), PLATE_FORMATS[1536], filled=0.0625, seed=13, hit_rate=0.3,
        set_at=set_at,
    )  # fmt: skip
    plates = (("rock-imager", "formulatrix", rock), ("minstrel", "rigaku", minstrel), ("hwi", "hwi", hwi))
    most = wells or math.inf
    return [
        Export(source, layout, replace(spec, filled=min(spec.filled, most / spec.wells.wells)))
        for source, layout, spec in plates
    ]


def drawn(plates: Sequence[Export]) -> Drawn:
    """Return what the renderer drew in each drop of these plates."""
    return {
        (plate.source, path_text(file.path)): file.label
        for plate in plates
        for file in plate.files()
        if file.kind is ImageKind.COMPOSITE and file.label is not None
    }


@dataclass(frozen=True, slots=True)
class Step:
    """The progress of the demonstration; ``text`` says what it waits for."""

    text: str
    delivered: int
    scored: int
    total: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The delivered files and the seconds from each file's last byte to its score."""

    images: int
    other_files: int
    seconds: float
    median_s: float
    percentile_95_s: float


def fetch_model(config: Path, on_words: Callable[[str], None]) -> str | None:
    """Make the published MARCO champion of the demonstration. Returns why it could not be had, None when it could.

    ``on_words`` is called with each line that the command writes about its progress.
    """
    command = [sys.executable, "-m", "marcod", "--config", str(config), "model", "fetch", MODEL]
    if (named := published_wheel()) is not None:
        # The child's environment is without this program's variables.
        command += ["--from", str(named)]
    last = "it gave no reason"
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=child_environment(),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            last = line.strip() or last
            on_words(last)
    return None if process.returncode == 0 else last.removeprefix("marcod: ")


def run(folder: Path, config: Path, plates: Sequence[Export], on_step: Callable[[Step], None]) -> DemoResult:
    """Deliver the plates to the daemon and wait for their scores. Raises MarcodError.

    ``folder`` and ``config`` are those of :func:`prepare`.
    """
    planned = [plate.files() for plate in plates]
    total = sum(1 for files in planned for f in files if f.kind is ImageKind.COMPOSITE)
    start = time.monotonic()
    on_step(Step("the daemon loads its model", 0, 0, total))
    with running_daemon(config, folder / "marcod.log") as process:
        db = Database(database_url(folder))
        delivered = _deliver(folder, plates, planned, db, on_step, total)
        _wait_until_scored(process, db, delivered, on_step, folder / "marcod.log")
    seconds = time.monotonic() - start
    latencies = sorted(_latencies(db, delivered))
    db.close()
    files, median_s = sum(map(len, planned)), statistics.median(latencies)
    return DemoResult(total, files - total, seconds, median_s, latencies[int(0.95 * (len(latencies) - 1))])


def database_url(folder: Path) -> str:
    """Return the URL of the demonstration's own database, whatever the configuration says."""
    return f"sqlite:///{folder}/marcod.sqlite"


def prepare(folder: Path, models: Path, plates: Sequence[Export]) -> Path:
    """Make the demonstration's configuration in ``folder`` (made if missing, must be empty). Returns its file.

    ``models`` keeps the fetched model. Raises MarcodError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {os_reason(error)}; give another folder with --folder") from error
    if any(folder.iterdir()):
        raise MarcodError(f"{folder} is not empty; give another folder with --folder")
    lines = [
        "# Made by `marcod demo`; the images in this folder are rendered.",
        f'store.url = "{database_url(folder)}"',
        f'models.folder = "{models}"',
        "watch.settle_s = 1.0",
        "watch.rescan_s = 5.0",
        "watch.quiet_s = 20.0",
        f"web.port = {_free_port()}",
        f'web.cache_folder = "{folder / "page"}"',
        'log.format = "json"',
    ]
    for plate in plates:
        root = folder / "exports" / plate.source
        root.mkdir(parents=True)
        expected = len(plate.spec.positions()) * len(plate.spec.drops)
        lines += [
            "",
            f"[sources.{plate.source}]",
            f'root = "{root}"',
            f'layout = "{plate.layout}"',
            f"expected_drops = {expected}",
        ]
    config = folder / "marcod.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _free_port() -> int:
    """Return the usual port of the page, or another where it is taken."""
    usual = WebSettings().port
    for port in (usual, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as found:
                return int(found.getsockname()[1])
        except OSError:
            continue
    return usual


def page_address(config: Path) -> str:
    """Return the address of the page of a demonstration."""
    return f"http://127.0.0.1:{tomllib.loads(config.read_text(encoding='utf-8'))['web']['port']}"


@contextmanager
def page(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the page of the demonstration in a process and show it in the browser, until it is left."""
    command = [sys.executable, "-m", "marcod", "--config", str(config), "web", "--open"]
    with log.open("wb") as output, subprocess.Popen(
        command, stdout=output, stderr=output, env=child_environment()
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def running_daemon(config: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real service in a process, from READY=1 until it has stopped in order. Raises MarcodError.

    ``options`` are those of ``marcod run``.
    """
    address = f"marcod-demo-{uuid4()}"
    command = [sys.executable, "-m", "marcod", "--config", str(config), "run", *options]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, log.open("wb") as output:
        channel.bind("\0" + address)
        environment = child_environment(NOTIFY_SOCKET="@" + address)
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
    folder: Path,
    plates: Sequence[Export],
    planned: list[list[PlannedFile]],
    db: Database,
    on_step: Callable[[Step], None],
    total: int,
) -> dict[str, dict[str, float]]:
    """Write the files one by one, the imagers taking turns. Returns when each composite was written, by source."""
    sources = [plate.source for plate in plates]
    written: dict[str, dict[str, float]] = {source: {} for source in sources}
    for turn in zip_longest(*planned):
        for source, file in zip(sources, turn, strict=True):
            if file is None:
                continue
            write_file(folder / "exports" / source, file, IMAGE_SIZE)
            if file.kind is ImageKind.COMPOSITE:
                written[source][path_text(file.path)] = time.time()
        delivered = sum(len(paths) for paths in written.values())
        on_step(Step("plates arrive", delivered, _scored(db), total))
    return written


def _scored(db: Database) -> int:
    return sum(summary.scored for summary in db.read(reports.summaries))


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
    status = db.read(backlog.status, db.now())
    return bool(status.waiting or status.leased or status.retrying)


def _latencies(db: Database, written: dict[str, dict[str, float]]) -> Iterator[float]:
    for source, moments in written.items():
        scored = db.read(reports.scored_at, source_name=source)
        yield from (scored[path].timestamp() - moment for path, moment in moments.items())

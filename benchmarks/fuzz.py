"""Hostile input by the hundred thousand: damaged images and paths that nobody should ever have written.

A thing is fed to the code that meets it in the service. Anything but a result or an error of ours, a second too much of
the processor's time, too much memory, or a byte read from outside the root is counted as a failure and named with its
number, which makes the same thing again.
"""

import contextlib
import io
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from benchmarks import mutations
from benchmarks.bench import Bench, open_source, utc_now
from benchmarks.tables import Cell, Table
from marcod import images
from marcod.database import migrate
from marcod.database.engine import Database
from marcod.domain import DropImage, path_text, text_path
from marcod.errors import ImageError
from marcod.settings import Settings
from marcod.settings.environment import child_environment, quiet_tensorflow
from marcod.watch.ingest import Ingest, WatchedSource, open_sources
from marcod.watch.scan import scan_once
from marcod.watch.settle import SettleTracker
from marcod.watch.tree import Root

ITEMS: Final = 100_000
SEED: Final = 20_261_122
WORKERS: Final = 2
NICE: Final = 5

LIMIT_S: Final = 2.0
"""Processor seconds for one thing."""

SILENCE_S: Final = 120.0
"""A worker that tells nothing for so long hangs where no Python is run, and is ended."""

MEMORY: Final = 1 << 30
"""Bytes by which one thing may let the worker grow."""

TOLD_EVERY: Final = 200
REAL_FILES: Final = 3_000
SCALE_SIDE: Final = 160

SECRET: Final = b"outside"


class TooLongError(Exception):
    """The processor's time for one thing is over."""


@dataclass(slots=True)
class Found:
    """What a worker met: outcomes by kind, failures by number, seconds and bytes of the worst."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    grown_mb: float = 0.0

    def add(self, other: "Found") -> None:
        """Put another worker's findings to these."""
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.longest_s, self.grown_mb = max(self.longest_s, other.longest_s), max(self.grown_mb, other.grown_mb)


def run(bench: Bench) -> Iterator[Table]:
    """Images, then paths, then hostile names that really lie on a disk."""
    for what, about in (("images", _IMAGES), ("paths", _PATHS)):
        items = bench.size(ITEMS, 2_000)
        start = time.perf_counter()
        found = _worked_off(bench, what, items)
        yield _table(what, items, found, f"{about} {time.perf_counter() - start:.0f} s with {WORKERS} workers.")
    with bench.subject("SQLite") as subject, bench.place("names") as folder:
        yield _on_disk(subject.db, folder, bench.size(REAL_FILES, 300))


_IMAGES: Final = (
    f"Rendered drops of {mutations.SIZE[0]} x {mutations.SIZE[1]} pixels in every format and mode, with flipped bits, "
    "cuts, splices, other numbers, and edited chunks, segments, tags and sizes (seed "
    f"{SEED}); through images.inspect and images.to_rgb, what is a JPEG also through TensorFlow, every tenth to the "
    f"network's input. At most {LIMIT_S:.0f} s of the processor and {MEMORY >> 20} MiB more memory each time."
)
_PATHS: Final = (
    f"Names of every layout with parts, bytes and ways out of the root put in (seed {SEED}); through every layout's "
    "parse, which asks SQLite for the plate, path_text and back, the root's look and companions, images.read, and the "
    "ingest with its settle tracker. A file beside the root and links to it are the bait. At most "
    f"{LIMIT_S:.0f} s of the processor each."
)


def _table(what: str, items: int, found: Found, about: str) -> Table:
    rows: list[list[Cell]] = [["tried", items]]
    rows += [[name, count] for name, count in sorted(found.outcomes.items())]
    rows += [["failures", len(found.failures)]]
    rows += [[f"  {text}", 1] for text in found.failures[:20]]
    rows += [["longest, s of the processor", found.longest_s], ["most memory grown by one, MB", found.grown_mb]]
    return Table(f"Fuzzing: hostile {what}", about, [what, "count"], rows)


def _worked_off(bench: Bench, what: str, items: int) -> Found:
    """Everything tried, by workers side by side; one that dies is followed by another behind what killed it."""
    total, waiting = Found(), [(n * items // WORKERS, (n + 1) * items // WORKERS) for n in range(WORKERS)]
    running: dict[IO[bytes], tuple[subprocess.Popen[bytes], int, int, float]] = {}
    with selectors.DefaultSelector() as told, bench.place("fuzz") as folder:
        while waiting or running:
            while waiting:
                first, end = waiting.pop()
                process = _started(what, first, end, folder)
                assert process.stdout is not None
                told.register(process.stdout, selectors.EVENT_READ)
                running[process.stdout] = process, first, end, time.monotonic()
            ready = {key.fileobj for key, _ in told.select(timeout=1.0)}
            for pipe, (process, at, end, heard) in list(running.items()):
                if pipe in ready and (line := pipe.readline()):
                    message = json.loads(line)
                    running[pipe] = process, message.get("at", end), end, time.monotonic()
                    total.add(_received(message))
                    bench.say(f"{what}: {message.get('at', end):,}") if message.get("at", 1) % 10_000 == 0 else None
                elif pipe in ready or time.monotonic() - heard > SILENCE_S:
                    process.kill()
                    told.unregister(pipe)
                    del running[pipe]
                    if (code := process.wait()) != 0 or pipe not in ready:
                        total.failures.append(f"worker ended with {code} at {at} to {at + TOLD_EVERY}")
                        waiting += [(at + TOLD_EVERY, end)] if at + TOLD_EVERY < end else []
    return total


def _started(what: str, first: int, end: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.fuzz", what, str(first), str(end), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment())


def _received(message: dict[str, Any]) -> Found:
    return Found(Counter(message["outcomes"]), message["failures"], message["longest_s"], message["grown_mb"])


def _work(what: str, first: int, end: int, folder: Path) -> None:
    """What a worker does: tell now and then how far it is and what it met since."""
    os.nice(NICE)
    quiet_tensorflow()
    try_one = _images() if what == "images" else _paths(folder)
    signal.signal(signal.SIGPROF, _too_long)
    _limit_memory()
    found = Found()
    for number in range(first, end):
        _tried(try_one, number, found)
        if (number + 1) % TOLD_EVERY == 0 or number + 1 == end:
            message = {
                "at": number + 1, "outcomes": found.outcomes, "failures": found.failures,
                "longest_s": found.longest_s, "grown_mb": found.grown_mb,
            }  # fmt: skip
            print(json.dumps(message), flush=True)
            found = Found()


def _too_long(*_: object) -> None:
    raise TooLongError


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def _tried(try_one: Callable[[int], list[str]], number: int, found: Found) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        found.outcomes.update(try_one(number))
    except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
        found.failures.append(f"{number}: {type(error).__name__}: {str(error)[:100]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    found.longest_s = max(found.longest_s, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found.grown_mb = max(found.grown_mb, grown)


def _images() -> Callable[[int], list[str]]:
    """Loads TensorFlow, and lets every library allocate what it keeps before memory is limited."""
    from marcod.model import preprocess

    record = preprocess.Preprocessing(SCALE_SIDE, "bilinear-tf1")
    for _, data in mutations.images():
        preprocess.prepare(preprocess.decode(data), record)

    def try_one(number: int) -> list[str]:
        name, data = mutations.image(SEED, number)
        outcome = _outcome(data)
        if data.startswith(b"\xff\xd8") or number % 10 == 0:
            # The service decodes once, so each way has the whole time.
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            with contextlib.suppress(ImageError):
                preprocess.prepare(preprocess.decode(data), record)
        return [f"{name}: {outcome}"]

    return try_one


def _outcome(data: bytes) -> str:
    """What becomes of a damaged image with Pillow."""
    try:
        header = images.inspect(data)
        rgb = images.to_rgb(data)
    except ImageError as error:
        return "may still be arriving" if error.retryable else "refused for good"
    if rgb.shape != (header.height, header.width, 3) or rgb.dtype != "uint8":
        raise AssertionError(f"{header} became {rgb.shape}")
    return "decoded"


def _paths(folder: Path) -> Callable[[int], list[str]]:
    place = Path(tempfile.mkdtemp(dir=folder))
    root = Root(_baited(place))
    # Nothing is recorded here: of each plate the database is asked for its setup, and knows none.
    idle = Database(f"sqlite:///{place / 'idle.sqlite'}")
    migrate.upgrade(idle)
    given = {name: {"root": root.path, **source} for name, source in mutations.SOURCES.items()}
    sources = open_sources(idle, Settings.model_validate({"sources": given}), utc_now())

    def try_one(number: int) -> list[str]:
        text = os.fsdecode(mutations.path(SEED, number))
        if text_path(path_text(text)) != text or (not path_text(text).isascii() and not path_text(text).encode()):
            raise AssertionError("path_text does not come back")
        outside = _is_outside(root, text)
        if outside and (_look(root, text) is not None or root.companions()(text) is not None):
            raise AssertionError(f"left the root: {text!r}")
        with contextlib.suppress(ImageError, OSError, ValueError):
            if images.read(Path(root.path) / text, Path(root.path)) == SECRET:
                raise AssertionError(f"read what lies outside: {text!r}")
        _refuse_outside(idle, sources[number % len(sources)], text)
        taken = [source.name for source in sources if _is_taken(source, text)]
        where = "points outside the root" if outside else "stays in the root"
        return ["a drop image to a layout" if taken else "a drop image to no layout", where]

    return try_one


def _refuse_outside(idle: Database, source: WatchedSource, text: str) -> None:
    """The ingest nominates the path, and the tracker must not report it settled outside the root."""
    tracker = SettleTracker(0.0, source.root.stat)
    with contextlib.suppress(ValueError):  # a NUL, which no file system can deliver
        Ingest(idle, source, tracker).notice([text], 0.0)
        if any(_is_outside(source.root, file.path) for file in tracker.due(0.0)):
            raise AssertionError(f"settled outside the root: {text!r}")


def _is_taken(source: WatchedSource, text: str) -> bool:
    """Whether a layout takes the path for a drop image, which must then be fit for a database."""
    source.plates.forget()
    verdict = source.layout.parse(text, source.root.companions())
    if not isinstance(verdict, DropImage):
        return False
    keys = (verdict.plate_key, verdict.inspection_key, verdict.barcode or "", verdict.profile or "")
    if not all(key.isprintable() for key in keys) or min(verdict.row, verdict.column, verdict.drop) < 1:
        raise AssertionError(f"unfit keys from {text!r}")
    if ".." in text.replace("\\", "/").split("/"):
        raise AssertionError(f"accepted a way up: {text!r}")
    return True


def _look(root: Root, text: str) -> object:
    try:
        return root.stat(text)
    except (OSError, ValueError):
        return None


def _is_outside(root: Root, text: str) -> bool:
    if "\0" in text:
        return False
    real = os.path.realpath(root.absolute(text))
    return os.path.lexists(real) and not real.startswith(os.path.realpath(root.path) + "/")


def _baited(place: Path) -> Path:
    """A root with a plate, and beside it what must never be read, to which links in the root lead."""
    root = place / "root"
    (root / "plate").mkdir(parents=True)
    (root / "plate" / "A1_1.jpg").write_bytes(b"inside")
    for name in (mutations.BAIT, "bait.csv"):
        (place / name).write_bytes(SECRET)
        (root / f"linked-{name}").symlink_to(place / name)
    (root / "link").symlink_to(place)
    (root / "up").symlink_to("..")
    (root / "plate" / "link").symlink_to(place)
    return root


def _on_disk(db: Database, folder: Path, wanted: int) -> Table:
    """Hostile names as real files: one scan must see each and record none that it could not find again."""
    root = _baited(folder)
    made = sum(_made(root, mutations.path(SEED, number)) for number in range(wanted))
    source = open_source(db, root)
    out = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(out):
        report = scan_once(db, source, 0.0)
    took = time.perf_counter() - start
    rows: list[list[Cell]] = [
        ["files with hostile names made", made], ["found by the scan", report.found], ["recorded", report.new],
        ["ignored", sum(report.ignored.values())], ["still pending", report.pending],
        ["links that leave the root", report.gone], ["s", took],
    ]  # fmt: skip
    about = (
        "Those of the paths above that a file system takes, as files of 10 bytes in a Formulatrix source on SQLite. "
        "What lies in a hidden folder is not looked for."
    )
    return Table("Fuzzing: hostile names on a disk", about, ["files", "count"], rows)


def _made(root: Path, name: bytes) -> bool:
    """Whether a file of that name could be made below the root; ways out of it are left out."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..", b"link", b"up")]
    if not parts or b"\0" in name or len(name) > 3000:
        return False
    target = os.path.join(os.fsencode(root), *parts)  # noqa: PTH118
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        with open(target, "xb") as file:  # noqa: PTH123
            file.write(b"synthetic\n")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

"""Images per second from files to score rows, against the same predictor fed with prepared images from memory."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import models, plates
from benchmarks import queue as queue_bench
from benchmarks.bench import Bench, open_source, timed, utc_now
from benchmarks.tables import Cell, Spread, Table
from marcod.database.engine import Database
from marcod.model import preprocess, registry
from marcod.model.predictor import Predictor
from marcod.scoring.scorer import Scorer
from marcod.settings import ScoreSettings
from marcod.settings.environment import one_thread_an_operation
from marcod.store.versions import Version
from marcod.watch.scan import scan_once

SETTINGS: Final = ScoreSettings()
RENDERED: Final = 24
BATCH: Final = SETTINGS.most_images

T = TypeVar("T")
Batches = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Model:
    """One bundle and on how many images it is measured how often."""

    title: str
    folder: Path | None
    name: tuple[str, str]
    images: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Rate:
    """One pass: wall-clock and processor seconds an image, of all threads."""

    wall_s: float
    cpu_s: float


def run(bench: Bench) -> Iterator[Table]:
    """The first champion, and a network of the published size."""
    one_thread_an_operation()
    with bench.place("models") as place:
        own, title = models.own_folder(place)
        chosen = [
            Model(title, own, registry.SHIPPED, bench.size(960, 32), bench.size(5, 2)),
            Model(
                "published architecture, random weights",
                models.marco_size(place),
                models.MARCO_SIZE,
                bench.size(48, 16),
                bench.size(3, 1),
            ),
        ]
        for model in chosen:
            yield from _measure(bench, model)


def _measure(bench: Bench, model: Model) -> Iterator[Table]:
    with bench.place("plates") as folder:
        bench.say(f"rendering and writing {model.images} images")
        paths = _write(folder, model.images, bench.size(RENDERED, 4))
        with bench.database("SQLite") as db:
            found, version = models.champion(db, model.folder, model.name, utc_now())
            bench.say(f"loading {version}")
            predictor = models.loaded(found, version, SETTINGS.most_images)
        images = [predictor.prepare(path.read_bytes()) for path in paths]
        batches = [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        del images
        bench.say("scoring")
        pairs = [(_drain(bench, model, folder, predictor), _memory(predictor, batches)) for _ in range(model.repeat)]
        yield _comparison(model, pairs)
        yield _breakdown(bench, model, folder, predictor, paths, batches)


def _write(folder: Path, images: int, rendered: int) -> list[Path]:
    pool = plates.rendered(rendered)
    paths = [folder / path for path, _ in islice(plates.composites(), images)]
    for number, path in enumerate(paths):
        plates.write(path, plates.marked(pool[number % len(pool)], str(number)))
    return paths


def _drain(bench: Bench, model: Model, folder: Path, predictor: Predictor) -> Rate:
    """From claimed jobs and files to score rows, with the loaded model, on a new database."""
    with bench.database("SQLite") as db:
        _take_in(db, model, folder)
        scorer = Scorer(db, lambda version: predictor, SETTINGS, worker="bench", roots={"bench": folder})
        rate, tally = _rated(lambda: scorer.drain(Event()), model.images)
        assert tally.scored == model.images
        return rate


def _take_in(db: Database, model: Model, folder: Path) -> Version:
    _, version = models.champion(db, model.folder, model.name, utc_now())
    report = scan_once(db, open_source(db, folder), 0.0)
    assert report.new == model.images
    return version


def _memory(predictor: Predictor, batches: Batches) -> Rate:
    """The same predictor in a loop over images that are ready."""
    images = sum(len(batch) for batch in batches)
    return _rated(lambda: [predictor.predict(batch) for batch in batches], images)[0]


def _rated(work: Callable[[], T], images: int) -> tuple[Rate, T]:
    cpu = time.process_time()
    wall_s, result = timed(work)
    return Rate(wall_s / images, (time.process_time() - cpu) / images), result


def _comparison(model: Model, pairs: list[tuple[Rate, Rate]]) -> Table:
    rows: list[list[Cell]] = []
    for name, rates in zip(("files to score rows", "memory"), zip(*pairs, strict=True), strict=True):
        rows.append([name, Spread.of(1 / r.wall_s for r in rates), Spread.of(1e3 * r.cpu_s for r in rates)])
    # A pass over the files and one from memory follow each other, so that a busy moment strikes both.
    shares = Spread.of(100 * memory.wall_s / drain.wall_s for drain, memory in pairs)
    possible = Spread.of(100 * memory.cpu_s / drain.cpu_s for drain, memory in pairs)
    rows.append(["files against memory, %", shares, possible])
    about = (
        f"{model.title}. {model.images} synthetic JPEGs of {plates.SIZE[0]} x {plates.SIZE[1]}, "
        f"batches of {BATCH} from memory and of a measured size from files, "
        f"{SETTINGS.threads} decoding threads, SQLite, files in the page cache, {model.repeat} passes of each. "
        "Where prediction alone keeps every core busy, the share can hardly be above that of the processor time."
    )
    return Table("End to end against memory", about, ["fed from", "images/s", "processor ms an image"], rows)


def _breakdown(
    bench: Bench, model: Model, folder: Path, predictor: Predictor, paths: list[Path], batches: Batches
) -> Table:
    record = preprocess.Preprocessing.from_dict(predictor.record.preprocessing)
    steps: dict[str, list[float]] = {"read": [], "hash": [], "decode": [], "crop and resize": []}
    for path in paths[: bench.size(96, 16)]:
        read_s, data = timed(path.read_bytes)
        hash_s, _ = timed(partial(_hash, data))
        decode_s, rgb = timed(partial(preprocess.decode, data, record))
        resize_s, _ = timed(partial(preprocess.prepare, rgb, record))
        for step, seconds in zip(steps.values(), (read_s, hash_s, decode_s, resize_s), strict=True):
            step.append(seconds)
    steps["predict"] = [timed(partial(predictor.predict, b))[0] / len(b) for b in batches]
    steps["claim and finish"] = list(_store(bench, model, folder))
    rows: list[list[Cell]] = [[name, Spread.of(1e3 * s for s in seconds)] for name, seconds in steps.items()]
    about = (
        f"{model.title}. Each step alone, one after the other: the first four in one thread, prediction with all "
        "cores, the database (SQLite) with batches."
    )
    return Table("Where the time of an image goes", about, ["step", "ms an image"], rows)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _store(bench: Bench, model: Model, folder: Path) -> Iterator[float]:
    """Seconds an image that the database costs."""
    with bench.database("SQLite") as db:
        version = _take_in(db, model, folder)
        while True:
            claim_s, lease = timed(partial(queue_bench.claim, db, BATCH))
            if lease is None:
                return
            finish_s, _ = timed(partial(queue_bench.finish, db, lease, version))
            yield (claim_s + finish_s) / len(lease.claims)

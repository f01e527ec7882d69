"""The imported MARCO bundle through the whole of marcod, against the published SavedModel as tools call it today.

Needs the published model: ``MARCOD_MARCO_SAVED_MODEL`` names its folder. ``MARCOD_REAL_PLATES`` may name a folder of
JPEGs to be scored; without it rendered drops are.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from benchmarks import plates
from benchmarks.bench import Bench, Kind, open_source, timed, utc_now
from benchmarks.tables import Cell, Spread, Table
from marcod import telemetry
from marcod.database.engine import Database
from marcod.domain import CLASSES
from marcod.model import bundle, convert
from marcod.model.engines import Setting
from marcod.model.predictor import Predictor
from marcod.model.registry import Registry
from marcod.scoring.scorer import Scorer
from marcod.settings import ScoreSettings
from marcod.settings.environment import one_thread_an_operation, quiet_tensorflow
from marcod.store import serving
from marcod.watch.scan import scan_once

SAVED_MODEL: Final = "MARCOD_MARCO_SAVED_MODEL"
SETTINGS: Final = ScoreSettings()
BATCHES: Final = (1, 8)
"""Images a call of the SavedModel: one as existing tools do it, and the batch size that serves it best."""

Scores = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all images: wall-clock and processor seconds, and what every file got."""

    wall_s: float
    cpu_s: float
    scores: Scores


def run(bench: Bench) -> Iterator[Table]:
    """In turns, on the same files: the SavedModel by single images and by batches, and marcod on both databases."""
    folder = os.environ.get(SAVED_MODEL)
    if not folder:
        bench.say(f"marco: nothing measured; {SAVED_MODEL} must name the folder of the published SavedModel")
        return
    with bench.place("marco") as place:
        paths, title = _images(bench, place / "plates")
        bench.say(f"importing {folder}")
        imported = convert.import_model(folder, place / "models", name="marco")
        with ExitStack() as stack:
            ways = _ways(bench, stack, Path(folder), place, imported.path, paths)
            passes: dict[str, list[Pass]] = {name: [] for name in ways}
            for number in range(bench.size(3, 1)):
                for name, way in ways.items():
                    bench.say(f"pass {number + 1}: {name}")
                    passes[name].append(way())
    yield _table(passes, len(paths), title)


def _images(bench: Bench, folder: Path) -> tuple[list[Path], str]:
    """The files to be scored, in a tree that a layout reads, and what they are."""
    real = os.environ.get("MARCOD_REAL_PLATES")
    found = sorted(Path(real).rglob("*.jpg")) if real else []
    if found:
        found = found[:: max(1, len(found) // bench.size(216, 8))][: bench.size(216, 8)]
        data, title = [path.read_bytes() for path in found], f"photographs below {Path(real or '').name}"
    else:
        pool = plates.rendered(bench.size(24, 4))
        count = bench.size(216, 8)
        data = [plates.marked(pool[n % len(pool)], str(n)) for n in range(count)]
        title = f"synthetic JPEGs of {plates.SIZE[0]} x {plates.SIZE[1]}"
    paths = [folder / path for (path, _), _ in zip(plates.composites(), data, strict=False)]
    for path, content in zip(paths, data, strict=True):
        plates.write(path, content)
    return paths, title


def _ways(
    bench: Bench, stack: ExitStack, saved_model: Path, place: Path, bundle_path: Path, paths: list[Path]
) -> dict[str, Callable[[], Pass]]:
    """Both in a process of its own, because each sets TensorFlow's threads as it does in real use."""
    spawn = multiprocessing.get_context("spawn")
    tools = stack.enter_context(ProcessPoolExecutor(1, spawn, quiet_tensorflow))
    scorer = stack.enter_context(ProcessPoolExecutor(1, spawn, one_thread_an_operation))
    ways: dict[str, Callable[[], Pass]] = {}
    for size in BATCHES:
        ways[f"SavedModel, {size} a call"] = partial(baseline, tools, saved_model, paths, size)
    kinds: tuple[Kind, ...] = ("SQLite", "PostgreSQL")
    for kind in kinds:
        ways[f"marcod score, {kind}"] = partial(scored, bench, scorer, kind, place, bundle_path)
    return ways


def baseline(tools: ProcessPoolExecutor, saved_model: Path, paths: list[Path], size: int) -> Pass:
    """Score files by the SavedModel, so many in a call, in the process of ``tools``."""
    return tools.submit(_call_saved_model, saved_model, paths, size).result()


@cache
def _session(folder: Path) -> tuple[Any, str, list[str]]:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        session = tf.compat.v1.Session(graph=graph)
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
    signature = meta.signature_def["serving_default"]
    outputs = [signature.outputs[name].name for name in ("classes", "scores")]
    return session, signature.inputs["image_bytes"].name, outputs


def _call_saved_model(folder: Path, paths: list[Path], size: int) -> Pass:
    session, feed, fetch = _session(folder)
    session.run(fetch, {feed: [path.read_bytes() for path in paths[:size]]})

    def score() -> Scores:
        found: Scores = {}
        for start in range(0, len(paths), size):
            group = paths[start : start + size]
            names, values = session.run(fetch, {feed: [path.read_bytes() for path in group]})
            for path, row, ordered in zip(group, names, values, strict=True):
                by_name = {name.decode(): value for name, value in zip(row, ordered, strict=True)}
                found[str(path)] = np.array([by_name[c] for c in CLASSES], np.float32)
        return found

    return _measured(score)


def scored(
    bench: Bench, scorer: ProcessPoolExecutor, kind: Kind, place: Path, bundle_path: Path, engine: Setting = "auto"
) -> Pass:
    """Do what `marcod score` does, from claimed jobs and files to score rows, with the model loaded before."""
    with bench.database(kind) as db:
        registry = Registry(db, bundle_path.parent.parent)
        version = registry.register(bundle_path.parent.name, bundle_path.name, utc_now())
        db.write(lambda c: serving.promote(c, version, actor="bench", now=utc_now()))
        scan_once(db, open_source(db, place / "plates"), 0.0)
        done = scorer.submit(
            _drain, db.url.render_as_string(hide_password=False), bundle_path, place / "plates", engine
        ).result()
        return Pass(done.wall_s, done.cpu_s, _stored(db, place / "plates"))


@cache
def loaded(path: Path, engine: Setting = "auto") -> Predictor:
    """Load a bundle once in a process, and let it score once."""
    predictor = bundle.load(path, SETTINGS.most_images, engine=engine)
    predictor.predict(np.zeros((SETTINGS.most_images, *predictor.input_shape), np.float32))
    return predictor


def _drain(url: str, bundle_path: Path, folder: Path, engine: Setting) -> Pass:
    predictor = loaded(bundle_path, engine)
    telemetry.configure("error", "console")
    db = Database(url)
    try:
        scorer = Scorer(db, lambda _: predictor, SETTINGS, worker="bench", roots={"bench": folder})

        def score() -> Scores:
            scorer.drain(Event())
            return {}

        return _measured(score)
    finally:
        db.close()


def _stored(db: Database, folder: Path) -> Scores:
    columns = "path, p_clear, p_crystals, p_other, p_precipitate"
    rows = db.read(lambda c: c.execute(sa.text(f"select {columns} from lims_image_score_v1")).all())
    return {str(folder / row[0]): np.array(row[1:], np.float32) for row in rows}


def _measured(work: Callable[[], Scores]) -> Pass:
    cpu = time.process_time()
    wall_s, scores = timed(work)
    return Pass(wall_s, time.process_time() - cpu, scores)


def _table(passes: dict[str, list[Pass]], images: int, title: str) -> Table:
    single, batched = (passes[f"SavedModel, {size} a call"] for size in BATCHES)
    rows: list[list[Cell]] = []
    for name, found in passes.items():
        rows.append(
            [
                name,
                Spread.of(images / p.wall_s for p in found),
                Spread.of(1e3 * p.cpu_s / images for p in found),
                # Passes of one round follow each other, so that a busy moment strikes them alike.
                Spread.of(a.wall_s / p.wall_s for a, p in zip(single, found, strict=True)),
                Spread.of(a.wall_s / p.wall_s for a, p in zip(batched, found, strict=True)),
                f"{max(_difference(single[0], p) for p in found):.1e}",
            ]
        )
    about = (
        f"{images} {title}; fp32 on the CPU; marcod with batches of a measured size and "
        f"{SETTINGS.threads} decoding threads, claims, decoding and database included; {len(single)} passes of "
        "each in turn. The last column is the largest difference of any probability from the first row's."
    )
    columns = ["way", "images/s", "processor ms an image", "against 1 a call", "against 8 a call", "difference"]
    return Table("The published model as tools call it, and through marcod", about, columns, rows)


def _difference(reference: Pass, other: Pass) -> float:
    assert reference.scores.keys() == other.scores.keys()
    return max(float(np.abs(reference.scores[name] - other.scores[name]).max()) for name in reference.scores)

"""The published MARCO in every precision, against the published SavedModel as tools call it: speed, and what changes.

Needs the published model: ``MARCOD_MARCO_SAVED_MODEL`` names its folder. ``MARCOD_REAL_PLATES`` may name a folder with
plates ``rigaku`` and ``xchem``, which are timed, and ``photographs`` with labels, which are compared too; without it
rendered drops are. The versions are derived by `marcod model convert`, on the same images as a lab's.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import marco, photographs, plates
from benchmarks.bench import Bench, open_source, utc_now
from benchmarks.marco import Pass, Scores
from benchmarks.tables import Cell, Spread, Table
from marcod.domain import CLASSES, CRYSTALS, Precision
from marcod.model import bundle, convert
from marcod.model.engines import Setting
from marcod.model.registry import Registry
from marcod.settings.environment import child_environment, one_thread_an_operation, quiet_tensorflow
from marcod.store import serving
from marcod.watch.scan import scan_once

ROOT: Final = Path(__file__).resolve().parent.parent
TIMED: Final = ("rigaku", "xchem")
CALIBRATE: Final = 300
FROM_MEMORY: Final = 12
"""Batches that are predicted from memory in each pass, to know the network's own share."""

TABLE: Final = photographs.FOLDER


@dataclass(frozen=True, slots=True)
class Files:
    """The lab's images in a tree that a layout reads: all, those that are timed, and labels of some."""

    folder: Path
    every: list[Path]
    timed: list[Path]
    labels: Mapping[Path, int]


@dataclass(frozen=True, slots=True)
class Way:
    """A version by an engine, with the process that scores with it."""

    name: str
    path: Path
    engine: Setting
    scorer: ProcessPoolExecutor


def run(bench: Bench) -> Iterator[Table]:
    """Derive the versions, time all in turns on the same files, then compare their scores of all images."""
    saved_model = os.environ.get(marco.SAVED_MODEL)
    if not saved_model:
        bench.say(f"precisions: nothing measured; {marco.SAVED_MODEL} must name the folder of the published SavedModel")
        return
    with bench.place("precisions") as place, ExitStack() as stack:
        files = _laid_out(bench, place / "all" / "plates")
        timed = _timed_tree(files, place / "timed" / "plates")
        parent = convert.import_model(saved_model, place / "models", name="marco").path
        derived = _derived(bench, place, files.folder, parent)
        spawn = multiprocessing.get_context("spawn")
        tools = stack.enter_context(ProcessPoolExecutor(1, spawn, quiet_tensorflow))
        ways = [
            Way(*way, stack.enter_context(ProcessPoolExecutor(1, spawn, one_thread_an_operation)))
            for way in _ways(parent, derived)
        ]
        yield _speed(bench, place, Path(saved_model), tools, ways, timed)
        yield from _changes(bench, place, ways, files)


def _laid_out(bench: Bench, folder: Path) -> Files:
    real = os.environ.get(TABLE)
    found = sorted(Path(real).rglob("*.jpg"))[:: bench.size(1, 12)] if real else []
    data = [path.read_bytes() for path in found]
    if not data:
        pool = plates.rendered(bench.size(48, 8))
        data = [plates.marked(pool[n % len(pool)], str(n)) for n in range(bench.size(480, 60))]
    paths = [folder / path for (path, _), _ in zip(plates.composites(), data, strict=False)]
    for path, content in zip(paths, data, strict=True):
        plates.write(path, content)
    return Files(folder, paths, *_parts(real, found, paths))


def _parts(real: str | None, found: Sequence[Path], paths: list[Path]) -> tuple[list[Path], dict[Path, int]]:
    if not real or not found:
        return paths, {}
    timed = [path for path, source in zip(paths, found, strict=True) if set(TIMED) & set(source.parts)]
    labels = photographs.classes(Path(real) / "photographs")
    return timed, {path: labels[s] for path, s in zip(paths, found, strict=True) if s in labels}


def _timed_tree(files: Files, folder: Path) -> list[Path]:
    paths = [folder / path.relative_to(files.folder) for path in files.timed]
    for path, source in zip(paths, files.timed, strict=True):
        plates.write(path, source.read_bytes())
    return paths


def _derived(bench: Bench, place: Path, folder: Path, parent: Path) -> dict[Precision, Path]:
    """Derive what this machine can serve, on the lab's images, by the command."""
    made: dict[Precision, Path] = {}
    with bench.database("SQLite") as db:
        registry = Registry(db, place / "models")
        version = registry.register(parent.parent.name, parent.name, utc_now())
        db.write(lambda c: serving.promote(c, version, actor="bench", now=utc_now()))
        scan_once(db, open_source(db, folder), 0.0)
        environment = child_environment(
            MARCOD_STORE__URL=db.url.render_as_string(hide_password=False),
            MARCOD_MODELS__FOLDER=str(place / "models"),
            MARCOD_LOG__LEVEL="error",
            PYTHONPATH=str(ROOT),
        )
        for precision in (Precision.BFLOAT16, Precision.INT8):
            bench.say(f"precisions: deriving {precision}")
            words = ["model", "convert", "marco:1", "--precision", precision]
            words += ["--calibrate", str(bench.size(CALIBRATE, 50))] if precision is Precision.INT8 else []
            command = [sys.executable, "-P", "-m", "marcod", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                bench.say(f"precisions: without {precision}: {done.stderr.strip().splitlines()[-1]}")
                continue
            made[precision] = max(parent.parent.iterdir(), key=lambda path: int(path.name))
    return made


def _ways(parent: Path, derived: Mapping[Precision, Path]) -> Iterator[tuple[str, Path, Setting]]:
    yield "float32, TensorFlow", parent, "tensorflow"
    yield "float32, OpenVINO", parent, "openvino"
    if Precision.BFLOAT16 in derived:
        yield "bfloat16, TensorFlow", derived[Precision.BFLOAT16], "tensorflow"
        yield "bfloat16, OpenVINO", derived[Precision.BFLOAT16], "openvino"
    if Precision.INT8 in derived:
        yield "int8, OpenVINO", derived[Precision.INT8], "auto"


def _speed(
    bench: Bench, place: Path, saved_model: Path, tools: ProcessPoolExecutor, ways: Sequence[Way], timed: list[Path]
) -> Table:
    passes: list[tuple[Pass, list[Pass], list[float]]] = []
    for number in range(bench.size(3, 1)):
        bench.say(f"precisions: pass {number + 1}")
        single = marco.baseline(tools, saved_model, timed, 1)
        found = [marco.scored(bench, w.scorer, "SQLite", place / "timed", w.path, w.engine) for w in ways]
        alone = [w.scorer.submit(_from_memory, w.path, w.engine, timed).result() for w in ways]
        passes.append((single, found, alone))
    images = len(timed)
    rows: list[list[Cell]] = [["SavedModel, 1 a call", *_rates([p[0] for p in passes], images), "", "", ""]]
    for i, way in enumerate(ways):
        its = [found[i] for _, found, _ in passes]
        rows.append(
            [
                way.name,
                *_rates(its, images),
                # Passes of one round follow each other, so that a busy moment strikes them alike.
                Spread.of(single.wall_s / found[i].wall_s for single, found, _ in passes),
                Spread.of(alone[i] for _, _, alone in passes),
                Spread.of(100 * alone[i] / (1e3 * found[i].cpu_s / images) for _, found, alone in passes),
            ]
        )
    about = (
        f"{images} files of two plates, from claims to score rows on SQLite, batches of a measured size, "
        f"{marco.SETTINGS.threads} decoding threads; {len(passes)} passes of each in turn. The share is the "
        "network's processor time from memory against all of it."
    )
    columns = ["way", "images/s", "processor ms", "against 1 a call", "network alone, ms", "network's share, %"]
    return Table("The published MARCO by precision", about, columns, rows)


def _rates(passes: Sequence[Pass], images: int) -> list[Cell]:
    rates = Spread.of(images / p.wall_s for p in passes)
    return [rates, Spread.of(1e3 * p.cpu_s / images for p in passes)]


def _from_memory(path: Path, engine: Setting, files: Sequence[Path]) -> float:
    """Return the milliseconds of processor time that the network takes for an image."""
    predictor = marco.loaded(path, engine)
    size = marco.SETTINGS.tried_images
    batch = [predictor.prepare(file.read_bytes()) for file in files[:size]]
    start = time.process_time()
    for _ in range(FROM_MEMORY):
        predictor.predict(batch)
    return 1e3 * (time.process_time() - start) / FROM_MEMORY / len(batch)


def _changes(bench: Bench, place: Path, ways: Sequence[Way], files: Files) -> Iterator[Table]:
    """Compare all images' classes, then show each image of crystals that only one of two versions finds."""
    bench.say("precisions: scoring every image")
    scores = [marco.scored(bench, w.scorer, "SQLite", place / "all", w.path, w.engine).scores for w in ways]
    thresholds = [bundle.read(way.path).threshold.crystal for way in ways]
    rows = [
        _agreement(way.name, files, scores[0], its, (thresholds[0], threshold))
        for way, its, threshold in zip(ways[1:], scores[1:], thresholds[1:], strict=True)
    ]
    crystals = sum(label == CRYSTALS for label in files.labels.values())
    yield Table(
        "Scores by precision against float32 of TensorFlow",
        f"{len(files.every)} images, {crystals} of them labelled crystals; each version at its own threshold.",
        [
            "way",
            "same class, %",
            "mean change",
            "largest",
            "threshold",
            "hits",
            "hits changed",
            "crystals found",
            "lost",
        ],
        rows,
    )
    flips = [row for n, way in enumerate(ways) if n for row in _flips(way.name, scores[0], scores[n])]
    if flips:
        yield Table("Classes that changed", "From float32's class to the other's.", ["way", "classes", "images"], flips)


def _agreement(name: str, files: Files, before: Scores, after: Scores, thresholds: tuple[float, float]) -> list[Cell]:
    names = [str(path) for path in files.every]
    old, new = (np.stack([scores[one] for one in names]) for scores in (before, after))
    hits = old[:, CRYSTALS] >= thresholds[0], new[:, CRYSTALS] >= thresholds[1]
    is_crystal = np.array([files.labels.get(path) == CRYSTALS for path in files.every])
    found = is_crystal & hits[0]
    same = np.mean(old.argmax(1) == new.argmax(1))
    change = np.abs(old - new)
    return [
        name,
        float(100 * same),
        float(change.mean()),
        float(change.max()),
        thresholds[1],
        f"{hits[0].sum()}, {hits[1].sum()}",
        int((hits[0] != hits[1]).sum()),
        f"{found.sum()}, {(is_crystal & hits[1]).sum()}",
        int((found & ~hits[1]).sum()),
    ]


def _flips(name: str, before: Scores, after: Scores) -> Iterator[list[Cell]]:
    changed = Counter(
        (_class(before[file]), _class(after[file])) for file in before if _class(before[file]) != _class(after[file])
    )
    for (old, new), number in changed.most_common():
        yield [name, f"{old} to {new}", number]


def _class(row: NDArray[np.float32]) -> str:
    return str(CLASSES[int(row.argmax())])

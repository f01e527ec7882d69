"""A host that only scores: its size, its first score, its memory, and its scores beside those of a whole installation.

The light wheel is built and installed into an environment of its own by pip. ``MARCOD_REAL_PLATES`` may name a folder
of JPEGs; without it rendered drops are scored. The published MARCO is fetched where it is not in the cache.
"""

import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from benchmarks import plates
from benchmarks.bench import Bench, Kind, open_source
from benchmarks.tables import Cell, Table
from marcod.database.engine import Database
from marcod.database.schema import image, score
from marcod.domain import CLASSES, COLUMN_OF_CLASS
from marcod.settings.environment import child_environment
from marcod.watch.scan import scan_once

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = ("marco:1", "lite0:1")
RENDERED: Final = 48

Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Run:
    """One `marcod score`: seconds to the first score and to the last, megabytes, and the score of every file."""

    first_s: float
    all_s: float
    resident_mb: float
    scores: Scores


def run(bench: Bench) -> Iterator[Table]:
    """The installation, then each model on both databases."""
    with bench.place("light") as place:
        bench.say("building and installing the light wheel")
        light = _installed(place)
        yield Table(
            "The light installation",
            "All of its environment on the disk, with pip and what pip came with, and without.",
            ("what", "MB"),
            [
                ["with pip", _megabytes(light.parent.parent)],
                ["without", _megabytes(light.parent.parent, "pip", "setuptools")],
            ],
        )
        count = _lay_out(bench, place / "plates")
        yield Table(
            "Scores of a light host",
            f"{count} files through `marcod score`, a process each. First: from the process's start to the first row. "
            "Resident: the most there was. Difference: the largest of any probability from TensorFlow's.",
            ("model and database", "engine", "batch", "first, s", "all, s", "resident, MB", "difference"),
            [
                row
                for model in MODELS[: bench.size(2, 1)]
                for kind in bench.kinds
                for row in _rows(bench, place, light, model, kind)
            ],
        )


def _installed(place: Path) -> Path:
    subprocess.run(
        [sys.executable, str(ROOT / "wheels" / "light.py"), str(place / "dist")], check=True, capture_output=True
    )
    venv.create(place / "environment", with_pip=True)
    python = place / "environment" / "bin" / "python"
    [wheel] = (place / "dist").glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True)
    return python


def _megabytes(folder: Path, *without: str) -> float:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_blocks * 512 for path in files if not set(without) & set(path.parts)) / 1e6


def _lay_out(bench: Bench, folder: Path) -> int:
    real = os.environ.get("MARCOD_REAL_PLATES")
    found = sorted(Path(real).rglob("*.jpg"))[:: bench.size(1, 20)] if real else []
    data = [path.read_bytes() for path in found] or plates.rendered(bench.size(RENDERED, 8))
    for (path, _), content in zip(plates.composites(), data, strict=False):
        plates.write(folder / path, content)
    return len(data)


def _rows(bench: Bench, place: Path, light: Path, model: str, kind: Kind) -> Iterator[list[Cell]]:
    whole = _scored(bench, place, Path(sys.executable), model, kind, 16)
    for engine, batch, done in (
        ("tensorflow", 16, whole),
        ("openvino", 16, _scored(bench, place, light, model, kind, 16)),
        ("openvino", 4, _scored(bench, place, light, model, kind, 4)),
    ):
        assert done.scores.keys() == whole.scores.keys()
        apart = max(float(np.abs(done.scores[path] - whole.scores[path]).max()) for path in whole.scores)
        yield [f"{model}, {kind}", engine, batch, done.first_s, done.all_s, done.resident_mb, f"{apart:.1g}"]


def _scored(bench: Bench, place: Path, python: Path, model: str, kind: Kind, batch: int) -> Run:
    bench.say(f"{model}, {kind}, batches of {batch}, {python}")
    with bench.database(kind) as db:
        environment = child_environment(
            MARCOD_STORE__URL=db.url.render_as_string(hide_password=False),
            MARCOD_MODELS__FOLDER=str(place / "models"),
            MARCOD_SCORE__BATCH_SIZE=str(batch),
            MARCOD_LOG__LEVEL="error",
        )
        if model == MODELS[0]:
            # The light host finds it in the folder, as if it had been copied there.
            _call(Path(sys.executable), environment, "model", "fetch", "marco", "--no-promote")
        _call(python, environment, "model", "promote", model)
        scan_once(db, open_source(db, place / "plates"), 0.0)
        begun = datetime.now(UTC)
        start = time.perf_counter()
        peak = _peak_of(python, environment, "score")
        all_s = time.perf_counter() - start
        first = db.read(lambda c: c.execute(sa.select(sa.func.min(score.c.scored_at))).scalar_one())
        return Run((first - begun).total_seconds(), all_s, peak / 1e3, _stored(db))


def _call(python: Path, environment: dict[str, str], *words: str) -> None:
    command, own = _command(python, environment, words)
    subprocess.run(command, env=own, check=True, capture_output=True, cwd="/")


def _command(python: Path, environment: dict[str, str], words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command of this checkout, or of the light environment, which must not see it."""
    whole = python == Path(sys.executable)
    return [str(python), "-P", "-m", "marcod", *words], {**environment, "PYTHONPATH": str(ROOT) if whole else ""}


def _peak_of(python: Path, environment: dict[str, str], *words: str) -> int:
    """Run a command; return the most memory that it had, in kilobytes."""
    command, own = _command(python, environment, words)
    with subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, cwd="/") as started:
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = status
    assert status == 0
    return used.ru_maxrss


def _stored(db: Database) -> Scores:
    columns = [image.c.path, *(score.c[COLUMN_OF_CLASS[one]] for one in CLASSES)]
    found = sa.select(*columns).join(score, score.c.image_id == image.c.id)
    return {row[0]: np.array(row[1:]) for row in db.read(lambda c: c.execute(found).all())}

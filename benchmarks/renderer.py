"""A network that knows photographs, asked about rendered drops: does it see in them what was drawn?

``MARCOD_MARCO_BUNDLE`` names the folder of its bundle, as ``marcod model fetch marco`` writes it.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Table
from marcod.domain import CLASSES, DropClass
from marcod.evaluate import metrics
from marcod.model import bundle
from marcod.model.predictor import Predictor
from marcod.synthetic import random_scene, render

BUNDLE: Final = "MARCOD_MARCO_BUNDLE"
SIZE: Final = (990, 810)
SEED: Final = 5_000_000
QUALITY: Final = 90


def run(bench: Bench) -> Iterator[Table]:
    """The same drops of each class, called by the network."""
    folder = os.environ.get(BUNDLE)
    if not folder:
        bench.say(f"renderer: nothing measured; {BUNDLE} must name the folder of a bundle, such as models/marco/1")
        return
    predictor = bundle.load(Path(folder), 1)
    each = bench.size(30, 3)
    scores: dict[DropClass, NDArray[np.float32]] = {}
    for label in CLASSES:
        bench.say(f"renderer: {each} drops of {label}")
        scores[label] = _scored(predictor, label, each)
    yield _table(scores, predictor.record.name)


def _scored(predictor: Predictor, label: DropClass, each: int) -> NDArray[np.float32]:
    """Return a row of probabilities for each drop, in the order of the classes."""
    rows = [predictor.predict(predictor.prepare(jpeg(SEED + n, label))[None])[0] for n in range(each)]
    return predictor.fold(np.stack(rows))


def jpeg(seed: int, label: DropClass) -> bytes:
    """One drop of a class as a file."""
    buffer = BytesIO()
    Image.fromarray(render(random_scene(seed, label), SIZE)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _table(scores: dict[DropClass, NDArray[np.float32]], name: str) -> Table:
    rows: list[list[Cell]] = []
    for label, found in scores.items():
        called = np.bincount(found.argmax(axis=1), minlength=len(CLASSES))
        rows.append([label.value, *(int(count) for count in called)])
    truth = np.repeat(np.arange(len(CLASSES)), [len(found) for found in scores.values()])
    every = np.concatenate(list(scores.values()))
    crystals = CLASSES.index(DropClass.CRYSTALS)
    ranking = metrics.auc(every[:, crystals].astype(np.float64), truth == crystals)
    agreed = float((every.argmax(axis=1) == truth).mean())
    about = (
        f"{len(truth)} drops of {SIZE[0]} x {SIZE[1]} called by {name}, seeds from {SEED}. "
        f"Crystals AUC {ranking or 0:.3f}; class agreed {agreed:.1%}."
    )
    return Table("Rendered drops as a network trained on photographs calls them", about, ["drawn", *CLASSES], rows)

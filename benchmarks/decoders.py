"""JPEGs through the decoder that marcod uses and through TensorFlow's, which the published graph calls: every bit.

``MARCOD_REAL_PLATES`` may name a folder whose JPEGs are compared too, each at every ratio.
"""

import io
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks import plates
from benchmarks.bench import Bench, timed
from benchmarks.tables import Cell, Table
from marcod.errors import ImageError
from marcod.model import preprocess
from marcod.model.preprocess import DECODE_RATIOS, Preprocessing

FILES: Final = 10_000
SCENES: Final = 24
SEED: Final = 3
MOST_PX: Final = 700
SUBSAMPLINGS: Final = ("4:4:4", "4:2:2", "4:2:0")
RARER: Final = ("440", "411")


def run(bench: Bench) -> Iterator[Table]:
    """Rendered drops in odd forms, then the real files."""
    rows = [_compared("rendered drops in odd forms", _odd_forms(bench.size(FILES, 100)))]
    real = os.environ.get("MARCOD_REAL_PLATES")
    if real:
        found = sorted(path for path in Path(real).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        rows.append(_compared("real photographs", (path.read_bytes() for path in found)))
    yield Table(
        "Two decoders, bit for bit",
        "At full size, a half, a quarter and an eighth. Odd forms: 1 to 700 pixels a side, grey and colour, five "
        "subsamplings, progressive or not, restart markers, optimized tables, qualities from 1 to 100.",
        ("files", "compared", "the same bits", "refused by both", "differ", "ms here", "ms TensorFlow's"),
        rows,
    )


def _compared(name: str, files: Iterator[bytes]) -> list[Cell]:
    found: Counter[str] = Counter()
    seconds = [0.0, 0.0]
    for data in files:
        for ratio in DECODE_RATIOS:
            ours, mine_s = _ours(data, ratio)
            theirs, its_s = _theirs(data, ratio)
            seconds[0] += mine_s
            seconds[1] += its_s
            found[_judged(ours, theirs)] += 1
    total = sum(found.values())
    times = [1e3 * spent / max(1, total) for spent in seconds]
    return [name, total, found["same"], found["refused"], found["differ"], *times]


def _judged(ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
    if ours is None and theirs is None:
        return "refused"
    return "same" if ours is not None and theirs is not None and np.array_equal(ours, theirs) else "differ"


def _ours(data: bytes, ratio: int) -> tuple[np.ndarray | None, float]:
    # Of one pixel, so that every image is decoded at the ratio.
    record = Preprocessing(1, "area", ratio)

    def decode() -> np.ndarray | None:
        try:
            return preprocess.decode(data, record)
        except ImageError:
            return None

    seconds, rgb = timed(decode)
    return rgb, seconds


def _theirs(data: bytes, ratio: int) -> tuple[np.ndarray | None, float]:
    import tensorflow as tf

    with Image.open(io.BytesIO(data)) as image:
        ratio = Preprocessing(1, "area", ratio).ratio(*image.size)

    def decode() -> np.ndarray | None:
        try:
            rgb: np.ndarray = tf.io.decode_jpeg(data, channels=3, ratio=ratio).numpy()
        except tf.errors.InvalidArgumentError:
            return None
        return rgb

    seconds, rgb = timed(decode)
    return rgb, seconds


def _odd_forms(count: int) -> Iterator[bytes]:
    chance = random.Random(SEED)
    scenes = [Image.open(io.BytesIO(data)).convert("RGB") for data in plates.rendered(SCENES)]
    for _ in range(count):
        size = (chance.randint(1, MOST_PX), chance.randint(1, MOST_PX))
        image = chance.choice(scenes).resize(size)
        options: dict[str, Any] = {
            "quality": chance.randint(1, 100),
            "progressive": chance.random() < 0.3,
            "optimize": chance.random() < 0.3,
            "restart_marker_blocks": chance.choice((0, 0, chance.randint(1, 9))),
        }
        if chance.random() < 0.2:
            # Pillow does not write these.
            pixels, rarer = np.asarray(image), chance.choice(RARER)
            yield simplejpeg.encode_jpeg(pixels, quality=options["quality"], colorsubsampling=rarer)
            continue
        if chance.random() < 0.2:
            image = image.convert("L")
        else:
            options["subsampling"] = chance.choice(SUBSAMPLINGS)
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        yield out.getvalue()

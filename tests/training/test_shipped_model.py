"""The shipped bundle's training, and one whole run in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
from training_images import IN_TF_DATA

from marcod.domain import CLASSES
from marcod.model import bundle, efficientnet, network
from marcod.model.published import Trunk, catalogue
from marcod.training import shipped_model
from marcod.training.shipped_model import Options


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    """Random weights in the place of the published ones; only their shapes and names matter here."""
    entry = catalogue()["efficientnet-lite0"]
    weights = network.variables(network.build(efficientnet.LITE0))
    own = {name: value for name, value in weights.items() if "Logits" not in name}
    return Trunk(own, "the text of a licence", entry.origin, entry.training_data, entry.citation)


def test_processes_draw_the_same_drops() -> None:
    tasks = [(50 + n, CLASSES[n]) for n in range(4)]
    one, two = (list(shipped_model.draw(tasks, n)) for n in (1, 2))
    assert one == two
    assert [label for _, label in one] == list(CLASSES)


def test_views_are_the_eight_positions() -> None:
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert np.array_equal(shipped_model.turned(image, 5, 0), image)
    others = {shipped_model.turned(image, seed, 1).tobytes() for seed in range(60)}
    assert len(others) == 7
    assert image.tobytes() not in others


@pytest.mark.story
@pytest.mark.filterwarnings(IN_TF_DATA)
def test_a_whole_run_in_miniature_writes_a_bundle_that_says_what_it_is(tmp_path: Path, trunk: Trunk) -> None:
    seen: list[str] = []
    path = shipped_model.train_synthetic(
        tmp_path, trunk, version=7, options=Options(images=32, held_out=12, epochs=2, processes=1, seed=3),
        progress=lambda what, _, __: seen.append(what),
    )  # fmt: skip
    predictor = bundle.load(path, batch_size=2)
    metrics = json.loads((path / "metrics.json").read_text())
    assert path == tmp_path / "lite0" / "7"
    assert predictor.record.synthetic
    assert predictor.record.licence_text == "the text of a licence"
    assert predictor.record.training_data.startswith("pretrained on ImageNet")
    assert metrics["synthetic"] is True
    assert np.sum(metrics["test"]["confusion"]) == metrics["test"]["images"] == 12
    assert {p.name for p in (path / "golden").glob("*.jpg")} == {f"synthetic-{c.value.lower()}.jpg" for c in CLASSES}
    assert seen[:-2] == ["rendering"] * (32 + 12 + 12)
    assert all(text.startswith("training, loss") for text in seen[-2:])

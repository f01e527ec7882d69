"""How the shipped bundle was made, and one whole run in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
from training_images import IN_TF_DATA

from marcod.domain import CLASSES
from marcod.fitting.recipes import SHIPPED
from marcod.model import bundle
from marcod.training import shipped_model


def test_processes_draw_the_same_drops() -> None:
    one, two = (shipped_model.render_examples(50, 4, 32, balanced=True, processes=n) for n in (1, 2))
    assert np.array_equal(one.images, two.images)
    assert one.labels.tolist() == two.labels.tolist() == [0, 1, 2, 3]


def test_the_rate_starts_again_after_two_thirds_of_the_passes() -> None:
    first, second = shipped_model.phases(18)
    assert (first.epochs, second.epochs, first.rate, second.rate) == (12, 6, SHIPPED.rate, 1.5e-3)
    assert [phase.epochs for phase in shipped_model.phases(1)] == [1]


@pytest.mark.story
@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings(IN_TF_DATA)
def test_a_whole_run_in_miniature_writes_a_bundle_that_says_what_it_is(tmp_path: Path) -> None:
    seen: list[str] = []
    path = shipped_model.train_synthetic(
        tmp_path, version=7, seed=3, images=32, epochs=1, held_out=12, processes=1,
        progress=lambda what, _, __: seen.append(what),
    )  # fmt: skip
    predictor = bundle.load(path, batch_size=2)
    metrics = json.loads((path / "metrics.json").read_text())
    assert path == tmp_path / "marco-small-synthetic" / "7"
    assert predictor.record.synthetic
    assert "never seen a photograph" in predictor.record.notice
    assert metrics["synthetic"] is True
    assert np.sum(metrics["test"]["confusion"]) == metrics["test"]["images"] == 12
    assert {p.name for p in (path / "golden").glob("*.jpg")} == {f"synthetic-{c.value.lower()}.jpg" for c in CLASSES}
    assert seen[:-1] == ["rendering"] * (32 + 12 + 12) + ["training"]
    assert seen[-1].startswith("training, loss")

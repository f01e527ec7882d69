"""The recipe of the shipped bundle, and one whole run in miniature."""

import json
from pathlib import Path

import numpy as np

from marcod import bundle, train
from marcod.domain import CLASSES, DropClass


def test_drops_come_from_their_seeds() -> None:
    assert train.rendered_jpeg(7) == train.rendered_jpeg(7)
    assert train.rendered_jpeg(7)[0] != train.rendered_jpeg(8)[0]
    assert train.rendered_jpeg(7, DropClass.OTHER)[1] is DropClass.OTHER


def test_processes_draw_the_same_drops() -> None:
    one, two = (train.render_examples(50, 4, 32, balanced=True, processes=n) for n in (1, 2))
    assert np.array_equal(one.pictures, two.pictures)
    assert one.labels.tolist() == two.labels.tolist() == [0, 1, 2, 3]


def test_augmentation_is_seeded_and_stays_in_range() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    examples = train.Examples(pictures, np.arange(6, dtype=np.int32) % 4)
    first, again, other = (next(iter(train._augmented(examples, 48, seed, 4)))[0].numpy() for seed in (1, 1, 2))
    assert first.shape == (4, 48, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= -1
    assert first.max() <= 1


def test_a_whole_run_in_miniature_writes_a_bundle_that_says_what_it_is(tmp_path: Path) -> None:
    seen: list[str] = []
    path = train.train_synthetic(
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
    assert seen[:-1] == ["rendering"] * (32 + 12 + 12)
    assert seen[-1].startswith("training, loss")

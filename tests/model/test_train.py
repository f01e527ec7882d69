"""The recipe of the shipped bundle: its measures against brute force, and one whole run in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod import bundle, train
from marcod.domain import CLASSES, DropClass

SCORES = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=2, max_size=40)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs], np.float32), np.array([p for _, p in pairs])


@given(SCORES.filter(lambda pairs: len({p for _, p in pairs}) == 2))
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    wins = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert train.auc(scores, positive) == pytest.approx(np.mean(wins))


def test_average_precision() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    assert train.average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert train.average_precision(scores, np.zeros(4, bool)) == 0.0


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_threshold_keeps_its_recall_and_is_the_highest(scores: list[float], recall: float) -> None:
    values = np.array(scores, np.float32)
    threshold = train.recall_threshold(values, recall)
    assert (values >= threshold).mean() >= recall - 1e-9
    assert (values >= threshold + 2e-4).mean() < recall or threshold + 2e-4 > 1


def test_no_crystals_no_threshold() -> None:
    assert train.recall_threshold(np.zeros(0, np.float32), 0.95) == 0.0


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20_000, 4)).astype(np.float32)
    odds = bundle.softmax(logits).cumsum(axis=1)
    labels = (rng.random((len(logits), 1)) > odds).sum(axis=1).clip(0, 3)
    assert train.fit_temperature(logits * true_temperature, labels) == pytest.approx(true_temperature, rel=0.05)


def test_calibration_error_of_a_known_case() -> None:
    scores = np.tile(np.array([[0.8, 0.2, 0.0, 0.0]], np.float32), (10, 1))
    labels = np.array([0] * 5 + [1] * 5, np.int32)
    assert train.calibration_error(scores, labels) == pytest.approx(0.3, abs=1e-6)
    assert train.calibration_error(scores, np.array([0] * 8 + [1] * 2, np.int32)) == pytest.approx(0.0, abs=1e-6)


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

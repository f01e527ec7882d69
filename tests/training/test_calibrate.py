"""Temperature and threshold of a new model: on what they stand, and what is said of it."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from marcod.domain import CLASSES
from marcod.evaluate import calibration
from marcod.fitting import adapt, steps
from marcod.fitting.batches import one_hot
from marcod.model import probabilities
from marcod.model.bundle import BundleRecord, Threshold
from marcod.training import calibrate
from marcod.training.calibrate import Calibrated
from marcod.training.data import TrainingSet

CRYSTALS = 1
FORMER = Threshold(crystal=0.31, recall=0.9, measured_on="former drops")


def rows(
    labels: NDArray[np.intp],
    domains: list[str] | None = None,
    drops: list[str] | None = None,
    chosen: NDArray[np.bool_] | None = None,
    weights: NDArray[np.float32] | None = None,
) -> TrainingSet:
    """Rows of a lab; each is a drop of its own unless told."""
    count = len(labels)
    return TrainingSet(
        files=(Path("a.jpg"),) * count,
        hashes=("",) * count,
        labels=labels,
        targets=one_hot(labels, len(CLASSES)),
        weights=np.ones(count, np.float32) if weights is None else weights,
        domains=tuple(domains or ["cellar"] * count),
        plates=("cellar/P1",) * count,
        drops=tuple(drops or map(str, range(count))),
        chosen=np.zeros(count, bool) if chosen is None else chosen,
        persons=({},) * count,
    )


def said(labels: NDArray[np.intp], seed: int = 1, clear: float = 2.0) -> NDArray[np.float32]:
    """Logits that are calibrated for equal shares of the classes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (len(labels), len(CLASSES)))
    return (clear * (np.eye(len(CLASSES))[labels] * clear + noise)).astype(np.float32)


def found(
    logits: NDArray[np.float32], given: TrainingSet, natural: NDArray[np.float64] | None = None, recall: float = 0.9
) -> Calibrated:
    return calibrate.calibrate(logits, given, natural, None, FORMER, recall)


def crystal_scores(logits: NDArray[np.float32], made: Calibrated) -> NDArray[np.float32]:
    return probabilities.softmax(logits / made.temperature)[:, CRYSTALS]


def test_the_threshold_keeps_the_recall_on_all_and_on_each_large_domain() -> None:
    """One imager's crystals score low; on too few of an imager nothing can be promised for it alone."""
    labels = np.tile(np.arange(4), 150)
    domains = ["old"] * 400 + ["dim"] * 180 + ["few"] * 20
    logits = said(labels)
    logits[400:, CRYSTALS] -= 2.0
    made = found(logits, rows(labels, domains))
    scores = crystal_scores(logits, made)
    for part in (np.arange(600), np.arange(400), np.arange(400, 580)):
        crystals = scores[part][labels[part] == CRYSTALS]
        allowed = calibration.allowed_misses(len(crystals), 0.9, None)
        assert (crystals < made.threshold.crystal).sum() <= allowed
    dim = np.sort(scores[400:580][labels[400:580] == CRYSTALS])
    assert made.threshold.crystal == pytest.approx(dim[calibration.allowed_misses(45, 0.9, None)], abs=1e-5)
    assert made.threshold.recall == (scores[labels == CRYSTALS] >= made.threshold.crystal).mean()
    assert "150 crystals, one a drop, of the validation side: " in made.threshold.measured_on
    assert "recall of 0.9 expected of new drops" in made.threshold.measured_on


def test_drops_chosen_by_score_say_nothing_of_a_recall() -> None:
    labels = np.tile(np.arange(4), 100)
    logits = said(labels)
    lowest = np.zeros(400, bool)
    crystals = np.flatnonzero(labels == CRYSTALS)
    lowest[crystals[np.argsort(logits[crystals, CRYSTALS])[:40]]] = True
    with_them, without = found(logits, rows(labels)), found(logits, rows(labels, chosen=lowest))
    assert without.threshold.crystal > with_them.threshold.crystal
    assert "60 crystals" in without.threshold.measured_on
    assert without.temperature == with_them.temperature
    alone = found(logits, rows(labels, chosen=np.ones(400, bool)))
    assert alone.threshold == with_them.threshold


def test_a_drop_counts_once_by_its_most_crystalline_image() -> None:
    labels = np.full(80, CRYSTALS)
    logits = said(labels)
    made = found(logits, rows(labels, drops=[str(i // 4) for i in range(80)]))
    best = crystal_scores(logits, made).reshape(20, 4).max(axis=1)
    assert made.threshold.crystal == pytest.approx(np.sort(best)[calibration.allowed_misses(20, 0.9, None)], abs=1e-5)
    assert "20 crystals" in made.threshold.measured_on
    assert (
        "20 crystals"
        in found(logits, rows(labels, ["a", "b"] * 40, [str(i // 8) for i in range(80)])).threshold.measured_on
    )


def test_too_few_crystals_are_a_wish() -> None:
    labels = np.array([0, 1, 1, 2, 3, 0])
    made = found(said(labels), rows(labels), recall=0.95)
    assert made.threshold.recall == 1.0
    assert "it takes 19 crystals to promise it" in made.threshold.measured_on


@pytest.mark.parametrize("count", [0, 12])
def test_without_crystals_the_former_threshold_stays_and_promises_nothing(count: int) -> None:
    labels = np.zeros(count, np.intp)
    made = found(said(labels) if count else np.zeros((0, 4), np.float32), rows(labels))
    assert made.threshold.crystal == FORMER.crystal
    assert made.threshold.recall is None
    assert made.threshold.measured_on == "nothing: no labelled drop with crystals"
    assert (made.measured["validation"] is None) == (count == 0)


def test_weights_bring_the_labels_to_natural_shares() -> None:
    labels = np.array([0] * 10 + [1] * 30 + [3] * 60)
    given = np.random.default_rng(1).uniform(0.2, 1, 100).astype(np.float32)
    natural = np.array([0.5, 0.05, 0.05, 0.4])
    weights = calibrate.natural_weights(labels, given, natural)
    share = np.bincount(labels, weights=weights, minlength=4) / weights.sum()
    assert share == pytest.approx(np.array([0.5, 0.05, 0, 0.4]) / 0.95, abs=1e-5)
    assert weights[:10] / given[:10] == pytest.approx(weights[0] / given[0])
    assert calibrate.natural_weights(labels, given, None) is given


def test_a_shift_to_natural_shares_makes_probabilities_of_a_lab_s_images_right() -> None:
    """Logits learned with equal shares, images with others: after the shift, classes come as often as said."""
    natural = np.array([0.6, 0.05, 0.05, 0.3])
    labels = np.random.default_rng(3).choice(4, 6000, p=natural)
    logits, equal = said(labels), np.full(4, 0.25)
    shift = calibrate.natural_shift(equal, natural, rows(labels[:0]))
    shares = probabilities.softmax(logits + shift).mean(axis=0)
    assert shares == pytest.approx(natural, abs=0.01)
    assert probabilities.softmax(logits).mean(axis=0) != pytest.approx(natural, abs=0.01)
    made = found(logits + shift, rows(labels), natural)
    assert made.temperature == pytest.approx(1, abs=0.1)
    assert made.measured["natural_shares"] == natural.tolist()
    of_labels = calibrate.natural_shift(equal, None, rows(labels))
    assert of_labels == pytest.approx(np.log(adapt.shares(one_hot(labels, 4), np.ones(6000)) / equal), abs=1e-5)
    assert not calibrate.natural_shift(equal, None, rows(labels[:0])).any()


def test_a_temperature_is_found_again_at_natural_shares() -> None:
    natural = np.array([0.6, 0.05, 0.05, 0.3])
    labels = np.tile(np.arange(4), 1500)
    logits = (said(labels) + calibrate.natural_shift(np.full(4, 0.25), natural, rows(labels[:0]))) * 2
    assert found(logits, rows(labels), natural).temperature == pytest.approx(2, rel=0.1)


def test_weights_that_did_not_change_keep_their_classes() -> None:
    names = ("clear", "needles", "plates", "skin", "light")
    parent = BundleRecord(
        name="six",
        version=1,
        classes=names,
        temperature=1.7,
        training_data="none",
        licence="Apache-2.0",
        synthetic=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture={"family": "none"},
        preprocessing={"size": 1},
        folding=dict(zip(names, (CLASSES[0], CLASSES[1], CLASSES[1], CLASSES[2], CLASSES[3]), strict=True)),
        threshold=FORMER,
    )
    own = np.tile(np.arange(5), 80)
    logits = 3 * np.eye(5, dtype=np.float32)[own] + np.random.default_rng(1).normal(0, 1, (400, 5)).astype(np.float32)
    labels = np.array([0, 1, 1, 2, 3])[own]
    made = calibrate.calibrate(logits, rows(labels), None, parent, FORMER, 0.9)
    assert (made.classes, made.folding) == (names, parent.folding)
    scores = probabilities.softmax(logits / made.temperature)[:, [1, 2]].sum(axis=1)
    assert (scores[labels == CRYSTALS] < made.threshold.crystal).sum() == calibration.allowed_misses(160, 0.9, None)
    nothing = calibrate.calibrate(logits[:0], rows(labels[:0]), None, parent, FORMER, 0.9)
    assert (nothing.temperature, nothing.threshold.crystal) == (1.7, FORMER.crystal)


def test_half_of_the_false_alarms_that_are_saved_go_into_recall() -> None:
    labels = np.tile(np.arange(4), 200)
    logits = said(labels, clear=1.0)
    plain = found(logits, rows(labels))
    others = crystal_scores(logits, plain)[labels != CRYSTALS]
    now = float((others >= plain.threshold.crystal).mean())
    spent = calibrate.calibrate(logits, rows(labels), None, None, FORMER, 0.9, min(1.0, now + 0.2))
    assert spent.threshold.crystal < plain.threshold.crystal
    assert spent.threshold.recall is not None
    assert plain.threshold.recall is not None
    assert spent.threshold.recall > plain.threshold.recall
    assert now < (others >= spent.threshold.crystal).mean() < now + 0.2
    stricter = calibrate.calibrate(logits, rows(labels), None, None, FORMER, 0.9, 0.0)
    assert stricter.threshold.crystal <= plain.threshold.crystal


def test_a_layer_that_kept_crystals_keeps_the_mean_of_their_log_odds() -> None:
    logits = np.random.default_rng(4).normal(0, 3, (50, 4)).astype(np.float32)
    shift = calibrate.keep_crystals(np.array([0.5, -2.0, -1.0, 0.7], np.float32), logits)
    assert shift.tolist()[0::2] == pytest.approx([0.5, -1.0])
    moved = steps.crystal_odds(logits + shift) - steps.crystal_odds(logits)
    assert moved.mean() == pytest.approx(0, abs=1e-5)
    assert calibrate.keep_crystals(shift, logits[:0])[CRYSTALS] == 0

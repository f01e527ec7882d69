"""Candidates of a tiny network from few labels: what is taken, what is refused, and what stays unseen."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from lab_snapshots import item, snapshot, written
from tiny import TINY

from marcod.domain import CLASSES, CRYSTALS, DropClass, Split
from marcod.fitting import adapt
from marcod.fitting.checkpoint import Weights
from marcod.model.bundle import BundleRecord, Threshold
from marcod.settings import TrainSettings
from marcod.training import candidate, rehearsal
from marcod.training.candidate import Candidate, TrainContext
from marcod.training.tiers import Tier

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images for normalization, and short trainings of the layers that doubt labels."""
    monkeypatch.setattr(adapt, "HEAD_EPOCHS", 10)
    monkeypatch.setattr(adapt, "HEAD_RATE", 1e-2)
    monkeypatch.setattr(candidate, "NORMALIZED", 64)


SIDES = [Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALIDATION]
"""Of each four plates, of ten drops each."""


def made(
    folder: Path,
    weights: Weights,
    said: Callable[[int], DropClass],
    tier: Tier = "head",
    count: int = 80,
    seeds: tuple[int, ...] = (),
) -> Candidate:
    """A candidate from the labels that a person gave to coloured images, a colour to each class."""
    labels = [said(n) for n in range(count)]
    items = [
        replace(
            written(item(n, folder / "plates")), side=SIDES[n // 10 % 4], label=label, persons={"ada": label},
            shares=tuple(float(label is c) for c in CLASSES),
        )
        for n, label in enumerate(labels)
    ]  # fmt: skip
    record = BundleRecord(
        name="tiny", version=1, classes=tuple(CLASSES), temperature=1.0, training_data="none", licence="none",
        synthetic=True, created_at=datetime(2026, 1, 1, tzinfo=UTC), architecture=TINY.to_dict(),
        preprocessing={"size": TINY.input_size, "resize": "area"}, folding={c: c for c in CLASSES},
        threshold=Threshold(crystal=0.5, measured_on="nothing"),
    )  # fmt: skip
    context = TrainContext(
        settings=TrainSettings(folder=folder, epochs=1), snapshot=snapshot(items), rehearsal_set=rehearsal.NOTHING,
        folder=folder, roots={}, parent=record, parent_folder=folder, parent_weights=weights, threads=1,
        stop=threading.Event(), progress=lambda *step: None, seeds=seeds,
    )  # fmt: skip
    return candidate.train_candidate(
        context, tier, lambda: np.zeros((0, TINY.input_size, TINY.input_size, 3), np.uint8)
    )


def truth(number: int) -> DropClass:
    return CLASSES[number % 4]


def test_labels_that_a_last_layer_can_learn_change_it(tmp_path: Path, tiny_weights: Weights) -> None:
    found = made(tmp_path, tiny_weights, truth)
    assert found.tier in ("offsets", "classes", "head")
    assert found.own_issues is not None
    assert found.own_issues.judged
    listed = found.measured["steps"]
    assert [one["chosen"] for one in listed].count(True) == 1
    assert listed[0] == {
        "step": "parent",
        "trunk": "champion",
        "gain": 0.0,
        "error": 0.0,
        "harm": None,
        "chosen": False,
    }
    taken = next(one for one in listed if one["chosen"])
    assert taken["gain"] > taken["error"]
    assert taken["harm"] is None


def test_labels_drawn_by_lot_leave_the_champion_as_it_is_or_are_doubted(tmp_path: Path, tiny_weights: Weights) -> None:
    rng = np.random.default_rng(3)
    lot = [CLASSES[i] for i in rng.integers(0, 4, 80)]
    found = made(tmp_path, tiny_weights, lambda n: lot[n])
    issues = found.own_issues or found.label_issues
    assert issues is not None
    assert found.tier == "recalibrate" or len(issues.suspects) > 0.25 * issues.judged


def test_the_highest_tier_is_not_passed(tmp_path: Path, tiny_weights: Weights) -> None:
    found = made(tmp_path, tiny_weights, truth, "offsets", 40)
    assert {one["step"] for one in found.measured["steps"]} == {"parent", "offsets"}
    assert all(
        "/moving_" in n or "Logits" in n for n, v in found.weights.items() if not np.array_equal(v, tiny_weights[n])
    )
    assert CRYSTALS == 1


@pytest.mark.story
def test_of_several_seeds_the_validation_side_chooses(tmp_path: Path, tiny_weights: Weights) -> None:
    found = made(tmp_path, tiny_weights, truth, "all", 40, seeds=(3, 5))
    listed = found.measured["seeds"]
    assert [one["seed"] for one in listed] == [3, 5]
    [chosen] = [one for one in listed if one["chosen"]]
    assert chosen["validation_loss"] == min(one["validation_loss"] for one in listed)
    assert min(point["validation_loss"] for point in found.measured["curve"]) == pytest.approx(
        chosen["validation_loss"], abs=1e-5
    )
    assert {"fit-3.npz", "fit-5.npz"} <= {file.name for file in tmp_path.iterdir()}

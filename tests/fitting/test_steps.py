"""Steps of a last layer: what each may change, and when labels speak for one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from marcod.domain import CRYSTALS
from marcod.evaluate import metrics
from marcod.fitting import batches, steps
from marcod.fitting.adapt import Features
from marcod.fitting.steps import LastLayer, LayerStep, StepJudges


def parent_of(seed: int = 0, features: int = 12) -> LastLayer:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (features, 4)).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32)


def drawn(count: int, seed: int, features: int = 12) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Clouds that the parent of seed 0 tells apart, but that it calls class 3 where they are class 0."""
    rng = np.random.default_rng(seed)
    kernel, bias = parent_of(features=features)
    found = rng.normal(0, 2, (count, features)).astype(np.float32)
    logits = found @ kernel + bias
    logits[:, 0] += 6
    return found, logits.argmax(axis=1)


def features(found: NDArray[np.float32], labels: NDArray[np.intp]) -> Features:
    return Features(found, batches.one_hot(labels, 4), np.ones(len(labels), np.float32))


def fitted(step: LayerStep, count: int = 60) -> tuple[LastLayer, LastLayer]:
    found, labels = drawn(count, 1)
    parent = parent_of()
    odds = steps.crystal_odds(steps.logits(found, parent))
    return parent, steps.fit(features(found, labels), parent, step, odds)


def right(layer: LastLayer) -> float:
    found, labels = drawn(500, 2)
    return float((steps.logits(found, layer).argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("step", steps.LADDER, ids=str)
def test_each_step_changes_what_it_may(step: LayerStep) -> None:
    parent, found = fitted(step)
    changed = [not np.array_equal(a, b) for a, b in zip(parent, found, strict=True)]
    assert changed == {"parent": [False, False], "offsets": [False, True]}.get(step.kind, [True, True])
    assert (right(found) > right(parent) + 0.02) == (step.kind != "parent")
    again = fitted(step)[1]
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_harder_a_layer_is_held_the_less_it_changes() -> None:
    moved = [
        float(np.abs(found[0] - parent[0]).mean())
        for parent, found in (fitted(LayerStep("head", pull)) for pull in (0.01, 0.1, 1.0, 100.0))
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.02 * moved[0]


def test_crystals_stay_ranked_where_only_the_other_classes_may_change() -> None:
    """The labels call one cloud of crystals clear, which the step that changes all believes."""
    found, labels = drawn(200, 3)
    parent = parent_of()
    before = steps.crystal_odds(steps.logits(found, parent))
    wrong = np.where((labels == CRYSTALS) & (found[:, 0] > 0), 0, labels)
    after = {
        kind: steps.crystal_odds(
            steps.logits(found, steps.fit(features(found, wrong), parent, LayerStep(kind, 0.03), before))
        )
        for kind in ("classes", "head")
    }
    moved = {kind: float(np.abs(odds - before).mean()) for kind, odds in after.items()}
    assert moved["classes"] < 0.5 * moved["head"]


def judges(labels: NDArray[np.intp], lab: int, plates: int = 10) -> StepJudges:
    """The first ``lab`` images are an imager's, the others the base set's; each is a drop."""
    count = len(labels)
    return StepJudges(
        labels=labels,
        weights=np.ones(count, np.float32),
        domains=["cellar"] * lab + [""] * (count - lab),
        plates=[f"P{i % plates}" for i in range(count)],
        drops=[str(i) for i in range(count)],
        is_lab=np.arange(count) < lab,
    )


def believed(labels: NDArray[np.intp], sure: float, seed: int) -> NDArray[np.float64]:
    """Logits that lean towards the truth by ``sure`` in noise of deviation 1."""
    return np.eye(4)[labels] * sure + np.random.default_rng(seed).normal(0, 1, (len(labels), 4))


LABELS = np.arange(160) % 4


def test_the_simplest_of_the_good_ones_is_taken() -> None:
    poor, good = believed(LABELS, 0.5, 1), believed(LABELS, 3.0, 2)
    same = good * np.where(np.arange(160) % 8 < 4, 1.3, 0.75)[:, np.newaxis]
    index, found = steps.choose([poor, poor, good, same], judges(LABELS, 80), 0.025)
    assert index == 2
    assert found[2].gain > found[2].error > 0
    assert found[1].gain == 0
    best = believed(LABELS, 8.0, 4)
    assert steps.choose([poor, good, best], judges(LABELS, 80), 0.025)[0] == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_what_costs_crystals_or_another_imager_is_never_taken(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = [believed(LABELS, float(sure), seed + n) for n, sure in enumerate(rng.uniform(0, 3, 5))]
    judged = judges(LABELS, int(rng.integers(8, 150)))
    index, found = steps.choose(options, judged, 0.025)
    assert index == 0 or found[index].gain > found[index].error
    is_crystal = LABELS == CRYSTALS
    for part in (judged.is_lab, ~judged.is_lab):
        was, now = (metrics.auc(steps.crystal_odds(options[i])[part], is_crystal[part]) for i in (0, index))
        # Chance explains a loss of 0.25 on a dozen images, and of less on more.
        assert was is None or now is None or now >= was - 0.9 / np.sqrt(is_crystal[part].sum())


def test_the_areas_are_those_of_the_curve_and_chance_shrinks_with_the_labels() -> None:
    errors = []
    for count in (16, 160, 1600):
        labels = np.arange(count) % 4
        pair = believed(labels, 1.0, 1), believed(labels, 1.5, 2)
        was, now, error = steps._areas(*pair, labels == CRYSTALS)
        expected = [metrics.auc(steps.crystal_odds(one), labels == CRYSTALS) for one in pair]
        assert [was, now] == pytest.approx(expected)
        errors.append(error)
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0] + 0.02
    alone = np.zeros(8, bool)
    assert steps._areas(np.zeros((8, 4)), np.ones((8, 4)), alone) == (0, 0, 0)


def test_chance_rarely_leaves_the_parent_and_a_true_gain_on_many_labels_does() -> None:
    few, many = np.arange(16) % 4, np.arange(480) % 4
    pairs = [(believed(few, 1.0, 2 * seed), believed(few, 1.0, 2 * seed + 1)) for seed in range(30)]
    assert sum(steps.choose(pair, judges(few, 16), 0.025)[0] for pair in pairs) <= 6
    better = believed(many, 1.0, 5), believed(many, 1.6, 6)
    assert steps.choose(better, judges(many, 480, plates=40), 0.025)[0] == 1


def test_a_step_that_another_imager_pays_for_is_left_out() -> None:
    parent, better = believed(LABELS, 1.0, 1), believed(LABELS, 3.0, 2)
    forgetful = better.copy()
    forgetful[80:] = believed((LABELS + 1) % 4, 3.0, 3)[80:]
    index, found = steps.choose([parent, forgetful, better], judges(LABELS, 80), 0.025)
    assert index == 2
    assert found[1].harm is not None
    assert "on the rehearsal set" in found[1].harm

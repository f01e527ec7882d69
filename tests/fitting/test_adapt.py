"""Small steps from an old model to a new one, on simulated features: heads, balance, mixes and natural shares."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from tiny import TINY
from training_images import coloured

from marcod.fitting import adapt, batches
from marcod.fitting.adapt import Features
from marcod.fitting.checkpoint import Weights
from marcod.model import network, probabilities

NOTHING = np.zeros((12, 4), np.float32), np.zeros(4, np.float32)


def clouds(count: int, seed: int = 0, features: int = 12, apart: float = 3.0) -> tuple[NDArray, NDArray[np.intp]]:
    """Four clouds of features float32 [count, features], the same four for every seed, and which is whose."""
    centres = np.random.default_rng(99).normal(0, apart, (4, features))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return (centres[labels] + rng.normal(0, 1, (count, features))).astype(np.float32), labels


def seen(count: int, seed: int = 0) -> tuple[Features, NDArray[np.intp]]:
    features, labels = clouds(count, seed)
    return Features(features, batches.one_hot(labels, 4), np.ones(count, np.float32)), labels


@given(st.data())
def test_every_group_counts_the_same_and_in_it_every_class(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 60))
    labels = data.draw(arrays.arrays(np.intp, count, elements=st.integers(0, 3)))
    groups = data.draw(arrays.arrays(np.bool_, count))
    weights = data.draw(arrays.arrays(np.float32, count, elements=st.floats(0.125, 1, width=32)))
    found = adapt.balanced(batches.one_hot(labels, 4), weights, groups)
    assert found.mean() == pytest.approx(1, rel=1e-4)
    assert (found > 0).all()
    in_group = [found[groups == group].sum() for group in np.unique(groups)]
    assert in_group == pytest.approx([count / len(in_group)] * len(in_group), rel=1e-4)
    for group in np.unique(groups):
        inside, total = groups == group, weights[groups == group].sum()
        classes = [inside & (labels == c) for c in range(4) if (inside & (labels == c)).any()]
        sums = np.array([found[one].sum() for one in classes])
        boosts = np.array([found[one].sum() / weights[one].sum() for one in classes])
        if min(weights[one].sum() for one in classes) * adapt.LARGEST_BOOST > total:
            assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-4)
        assert boosts.max() / boosts.min() <= adapt.LARGEST_BOOST * 1.001
        for one in classes:
            assert found[one] / weights[one] == pytest.approx(found[one][0] / weights[one][0], rel=1e-4)


def test_a_very_rare_class_is_not_boosted_without_end() -> None:
    labels = np.array([1] + [0] * 999)
    found = adapt.balanced(batches.one_hot(labels, 4), np.ones(1000, np.float32), np.ones(1000, bool))
    assert found[0] / found[1] == pytest.approx(adapt.LARGEST_BOOST * 0.999, rel=1e-4)


def test_a_centred_head_predicts_every_class_as_often_as_it_weighs() -> None:
    rng = np.random.default_rng(3)
    features, labels = clouds(400, apart=0.7)
    given = Features(features, batches.one_hot(labels, 4), rng.uniform(0.2, 2, 400).astype(np.float32))
    before = rng.normal(0, 0.4, (12, 4)).astype(np.float32), np.array([3, 0, -2, 0], np.float32)
    kernel, bias = adapt.centred(given, before)
    predicted = np.average(probabilities.softmax(features @ kernel + bias), axis=0, weights=given.weights)
    assert np.array_equal(kernel, before[0])
    assert predicted == pytest.approx(adapt.shares(given.targets, given.weights), abs=0.01)


@pytest.fixture(scope="module")
def head() -> adapt.Head:
    return adapt.fit_head(seen(400)[0], NOTHING, seed=1, validation=seen(100, seed=5)[0])


def test_a_head_separates_what_can_be_separated(head: adapt.Head) -> None:
    held_out, labels = seen(300, seed=7)
    assert (head.logits(held_out.features).argmax(axis=1) == labels).mean() > 0.97
    assert [point["epoch"] for point in head.curve] == list(range(1, adapt.HEAD_EPOCHS + 1))
    assert head.curve[-1]["loss"] < 0.3 * head.curve[0]["loss"]
    assert head.curve[-1]["validation_loss"] < 0.3 * head.curve[0]["validation_loss"]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and longer steps: what a pass costs in Keras is most of the time with so few features."""
    monkeypatch.setattr(adapt, "HEAD_EPOCHS", 15)
    monkeypatch.setattr(adapt, "HEAD_RATE", 1e-2)


@pytest.mark.usefixtures("quickly")
def test_the_same_seed_gives_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "HEAD_EPOCHS", 2)
    first, again, other = (adapt.fit_head(seen(400)[0], NOTHING, seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(again.kernel, first.kernel, rtol=0, atol=1e-6)
    np.testing.assert_allclose(again.bias, first.bias, rtol=0, atol=1e-6)
    assert np.abs(other.kernel - first.kernel).max() > 1e-5
    assert set(again.curve[0]) == {"epoch", "loss"}


@pytest.mark.usefixtures("quickly")
def test_weights_and_soft_labels_decide_what_a_head_learns() -> None:
    """Every image is there twice, the second time with another label: once heavier, once lighter."""
    given, labels = seen(256)
    other = batches.one_hot((labels + 1) % 4, 4)
    half = np.where(labels < 2, 0.9, 0.1).astype(np.float32)[:, np.newaxis]
    soft = Features(given.features, half * given.targets + (1 - half) * other, given.weights)
    heavy = Features(given.features, other, np.full(256, 1e-4, np.float32))
    found = adapt.fit_head(adapt.joined([soft, heavy]), NOTHING, seed=1).logits(given.features).argmax(axis=1)
    assert (found == np.where(labels < 2, labels, (labels + 1) % 4)).mean() > 0.95


def test_a_head_begins_with_the_network_s_own_where_it_tells_the_four(tiny_weights: Weights) -> None:
    kernel, bias = adapt.first_head(tiny_weights, 4, own=True)
    assert np.array_equal(bias, tiny_weights["Inception/Logits/Conv2d_1c_1x1/biases"])
    six = network.with_head(tiny_weights, np.ones((len(kernel), 6)), np.ones(6))
    assert [part.shape for part in adapt.first_head(six, 4, own=False)] == [(len(kernel), 4), (4,)]
    assert not any(part.any() for part in adapt.first_head(six, 4, own=False))


@pytest.mark.usefixtures("quickly")
def test_a_fold_is_judged_by_a_head_that_never_saw_it() -> None:
    """Each fold has a feature of its own that gives its labels away; who had seen it would believe them."""
    count, folds = 200, 2
    features, truth = clouds(count, apart=1.5)
    of_fold = np.arange(count) % folds
    of_fold[-40:] = -1
    rng = np.random.default_rng(2)
    wrong = rng.random(count) < 0.5
    labels = np.where(wrong & (of_fold >= 0), (truth + 1) % 4, truth)
    given_away = np.zeros((count, folds * 4), np.float32)
    lab = np.flatnonzero(of_fold >= 0)
    given_away[lab, of_fold[lab] * 4 + labels[lab]] = 20
    both = np.concatenate([features, given_away], axis=1)
    start = np.zeros((both.shape[1], 4), np.float32), np.zeros(4, np.float32)
    known = Features(both, batches.one_hot(labels, 4), np.ones(count, np.float32))
    memorised = adapt.fit_head(known, start, seed=1).logits(both).argmax(axis=1)
    assert (memorised == labels)[lab].mean() > 0.9
    scores = adapt.out_of_fold(known, of_fold, start, seed=1)
    assert not scores[-40:].any()
    assert scores[lab].sum(axis=1) == pytest.approx(1, abs=1e-5)
    agreed = (scores.argmax(axis=1) == labels)[lab]
    assert agreed[wrong[lab]].mean() < 0.6


def test_normalization_gets_used_to_other_images(tiny_weights: Weights) -> None:
    """Means and variances are those of the batches given; nothing else is touched."""
    pixels, _ = coloured(8, TINY.input_size)
    given = [part.astype(np.float32) / 127.5 - 1 for part in (pixels[:4], pixels[4:])]
    found = adapt.recalibrated_bn(replace(TINY, auxiliary=True), tiny_weights, given)
    layer = "Inception/Conv2d_1a_3x3"
    changed = {name for name, value in found.items() if not np.array_equal(value, tiny_weights[name])}
    assert changed == {name for name in tiny_weights if "/moving_" in name}
    conv = [np.asarray(keras.ops.conv(part, tiny_weights[f"{layer}/weights"], 2, "valid")) for part in given]
    for kind, of in (("mean", np.mean), ("variance", np.var)):
        expected = np.mean([of(one, axis=(0, 1, 2)) for one in conv], axis=0)
        np.testing.assert_allclose(found[f"{layer}/BatchNorm/moving_{kind}"], expected, rtol=1e-3, atol=1e-5)


def test_a_mix_lies_between_two_networks_and_has_no_training_head() -> None:
    old = {"Inception/a": np.zeros(3, np.float32), "Inception/AuxLogits/b": np.zeros(2, np.float32)}
    new = {"Inception/a": np.arange(3, dtype=np.float32), "Inception/AuxLogits/b": np.ones(2, np.float32)}
    assert {name: value.tolist() for name, value in adapt.interpolated(old, new, 0.5).items()} == {
        "Inception/a": [0, 0.5, 1]
    }
    assert np.array_equal(adapt.interpolated(old, new, 1.0)["Inception/a"], new["Inception/a"])
    assert np.array_equal(adapt.interpolated(old, new, 0.0)["Inception/a"], old["Inception/a"])


def judged(per_domain: int = 60) -> tuple[NDArray[np.intp], list[str]]:
    """Labels and domains of validation images: two large domains, and one of a few images."""
    labels = np.arange(2 * per_domain + 4) % 4
    return labels, ["lab"] * per_domain + ["old"] * per_domain + ["few"] * 4


def sure(labels: NDArray[np.intp], right: NDArray[np.bool_], logit: float = 4.0) -> NDArray[np.float32]:
    """Logits that are right where they should be, and else for the next class."""
    return np.asarray(np.eye(4)[np.where(right, labels, (labels + 1) % 4)] * logit, np.float32)


def test_the_mix_with_the_least_loss_is_chosen() -> None:
    labels, domains = judged()
    everywhere = np.ones(len(labels), bool)
    strength = {0.0: 1.0, 0.2: 2.0, 0.6: 3.0, 1.0: 2.5}
    found = adapt.choose_interpolation(
        lambda s: sure(labels, everywhere, strength[s]), labels, domains, list(strength), 0.02
    )
    assert found.share == 0.6
    assert list(found.losses) == ["0", "0.2", "0.6", "1"]
    assert found.losses["0.6"] == min(found.losses.values())


def test_a_mix_that_loses_accuracy_on_a_large_domain_is_left_out() -> None:
    labels, domains = judged()
    is_old = np.array(domains) == "old"
    forgotten = is_old & (np.arange(len(labels)) % 60 < 12)
    poor = np.array(domains) == "few"

    def logits_of(share: float) -> NDArray[np.float32]:
        if share == 1.0:
            return sure(labels, ~forgotten, 3.0)
        return sure(labels, ~poor if share == 0.4 else np.ones(len(labels), bool), 0.5 + share / 2)

    assert adapt.choose_interpolation(logits_of, labels, domains, (0.0, 0.4, 1.0), margin=0.1).share == 0.4
    assert adapt.choose_interpolation(logits_of, labels, domains, (0.0, 0.4, 1.0), margin=0.25).share == 1.0
    assert adapt.choose_interpolation(logits_of, labels[:3], domains[:3], (0.0, 0.4, 1.0), margin=0.1).share == 1.0


def test_a_domain_counts_the_same_as_a_larger_one_and_a_class_as_a_more_frequent_one() -> None:
    """The new weights are better on the few images of one domain's rare class and worse on all others."""
    labels = np.array([0] * 90 + [1] * 10 + [0, 1] * 10)
    domains = ["old"] * 100 + ["lab"] * 20
    rare = (labels == 1) | (np.array(domains) == "lab")
    tried = {0.0: sure(labels, ~rare, 1.0), 1.0: sure(labels, rare, 1.0)}
    losses = adapt.choose_interpolation(lambda s: tried[s], labels, domains, (0.0, 1.0), margin=1.0).losses
    assert losses["1"] - losses["0"] == pytest.approx(-0.5, abs=1e-4)


def test_standardized_features_do_not_tell_domains_apart() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (300, 5)).astype(np.float32)
    features[:, 4] = 2.0
    domains = ["a"] * 100 + ["b"] * 200
    shifted = features.copy()
    shifted[100:] = shifted[100:] * 7 + 30
    found = adapt.standardized(shifted, domains)
    assert found.dtype == np.float32
    for part in (found[:100], found[100:]):
        assert np.abs(part.mean(axis=0)).max() < 1e-2
        assert part[:, :4].std(axis=0) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(found, adapt.standardized(features, domains), atol=0.02)


@pytest.mark.parametrize("true", [(0.55, 0.05, 0.1, 0.3), (0.25, 0.25, 0.25, 0.25), (0.1, 0.6, 0.1, 0.2)])
def test_natural_shares_are_found_again(true: tuple[float, ...]) -> None:
    """Probabilities of a calibrated model that was trained with equal shares, on images with other shares."""
    rng = np.random.default_rng(4)
    labels = rng.choice(4, 4000, p=true)
    values = np.eye(4)[labels] * 2.0 + rng.normal(0, 1, (4000, 4))
    # Of normal clouds of unit variance at 2 along their own axis these are the exact probabilities.
    scores = probabilities.softmax(2.0 * values).astype(np.float64)
    found = adapt.natural_shares(scores, np.full(4, 0.25))
    assert found == pytest.approx(true, abs=0.03)
    assert found.sum() == pytest.approx(1)
    assert scores.mean(axis=0) != pytest.approx(true, abs=0.03) or true[0] == 0.25


def test_no_class_is_taken_to_be_absent() -> None:
    scores = np.tile([0.97, 0.01, 0.01, 0.01], (500, 1))
    found = adapt.natural_shares(scores, np.full(4, 0.25))
    assert found.min() > 0.9 * adapt.LEAST_SHARE

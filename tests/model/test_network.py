"""The family of networks: the published names and shapes, and weights that travel by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from marcod.errors import BundleError
from marcod.model import families, network
from marcod.model.architecture import Architecture
from marcod.model.inception import MARCO, MARCO_SMALL, Inception
from marcod.model.weights import GLOBAL_STEP

Weights = dict[str, np.ndarray]

PUBLISHED = Path(__file__).with_name("marco-variables.txt")


def published_shapes() -> dict[str, tuple[int, ...]]:
    lines = (line.partition(" ") for line in PUBLISHED.read_text().splitlines())
    return {name: tuple(int(d) for d in dims.strip("[]").split(",") if d) for name, _, dims in lines}


def test_marco_has_exactly_the_published_variables() -> None:
    shapes = network.variable_shapes(network.build(MARCO, auxiliary=True))
    assert {GLOBAL_STEP: (), **shapes} == published_shapes()
    assert sum(int(np.prod(s)) for s in shapes.values()) == 11_476_584


def test_scoring_needs_no_auxiliary_head() -> None:
    model = network.build(MARCO)
    shapes = network.variable_shapes(model)
    assert not any("AuxLogits" in name for name in shapes)
    assert sum(int(np.prod(s)) for s in shapes.values()) == 8_964_068
    assert model.output_shape == (None, 4)


def test_batch_normalization_is_the_graph_s() -> None:
    norms = [layer for layer in network.build(TINY).layers if layer.name.endswith("BatchNorm")]
    assert len(norms) == 94
    assert {(layer.epsilon, layer.scale, layer.center) for layer in norms} == {(0.001, False, True)}


@pytest.mark.parametrize("size", [75, 76, 100, 139])
def test_small_inputs_leave_a_grid_for_every_layer(size: int) -> None:
    architecture = replace(TINY, input_size=size, auxiliary=True)
    model = network.build(architecture, auxiliary=True)
    assert [shape[1:] for shape in model.output_shape] == [(4,), (4,)]


@pytest.mark.parametrize("architecture", [replace(TINY, input_size=74), replace(TINY, entry=True, input_size=150)])
def test_too_small_an_input_is_refused(architecture: Architecture) -> None:
    with pytest.raises(BundleError, match="too small"):
        network.build(architecture)


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(BundleError, match="auxiliary"):
        network.build(TINY, auxiliary=True)


def test_depths_follow_limit_then_override_then_width() -> None:
    plain = Inception(599, 4, limits={"Mixed_6b": 128}, depths={"Mixed_6b/Branch_3/Conv2d_0b_1x1": 160})
    assert plain.depth("Mixed_6b/Branch_0/Conv2d_0a_1x1", 192) == 128
    assert plain.depth("Mixed_6b/Branch_3/Conv2d_0b_1x1", 192) == 160
    assert plain.depth("Mixed_6c/Branch_0/Conv2d_0a_1x1", 192) == 192
    assert replace(plain, width=0.25).depth("Mixed_6c/Branch_0/Conv2d_0a_1x1", 192) == 48
    assert replace(plain, width=0.01).depth("Mixed_6c/Branch_0/Conv2d_0a_1x1", 192) == 8


@pytest.mark.parametrize("architecture", [MARCO, MARCO_SMALL, TINY])
def test_architectures_travel_as_plain_values(architecture: Architecture) -> None:
    assert families.architecture(architecture.to_dict()) == architecture


def test_an_unknown_or_missing_key_is_named() -> None:
    with pytest.raises(BundleError, match="heads"):
        families.architecture({**TINY.to_dict(), "heads": 2})
    with pytest.raises(BundleError, match="input_size"):
        families.architecture({"classes": 4})


def test_weights_come_back_as_they_were_set(tiny_weights: Weights) -> None:
    model, weights = network.build(TINY), tiny_weights
    network.set_variables(model, weights)
    back = network.variables(model)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_folding_batch_norm_changes_no_score(tiny_weights: Weights) -> None:
    model = network.build(TINY)
    network.set_variables(model, tiny_weights)
    images = np.random.default_rng(4).uniform(-1, 1, (3, 75, 75, 3)).astype(np.float32)
    model.compile(jit_compile=False)
    plain = model.predict_on_batch(images)
    folded = network.compiled(TINY, tiny_weights)(images)
    assert np.abs(folded - plain).max() < 1e-5 * np.abs(plain).max()


NORM = "Inception/Conv2d_1a_3x3/BatchNorm/moving_variance"
BIAS = "Inception/Logits/Conv2d_1c_1x1/biases"
DAMAGE: dict[str, tuple[Callable[[Weights], object], str]] = {
    "missing": (lambda w: w.pop(BIAS), f"lack {BIAS}"),
    "missing norm": (lambda w: w.pop(NORM), f"lack {NORM}"),
    "extra": (lambda w: w.update({"Inception/Extra/weights": np.zeros(1)}), "hold Inception/Extra/weights"),
    "shape": (lambda w: w.update({BIAS: np.zeros(5, np.float32)}), r"biases has shape \(5,\)"),
    "norm shape": (lambda w: w.update({NORM: np.ones(3, np.float32)}), r"moving_variance has shape \(3,\)"),
    "not a number": (lambda w: w.update({BIAS: np.full(4, np.nan, np.float32)}), "not finite"),
    "norm infinite": (lambda w: w.update({NORM: w[NORM] * np.inf}), "not finite"),
    "norm negative": (lambda w: w.update({NORM: w[NORM] - 9}), "not finite"),
}


@pytest.fixture(scope="module")
def tiny_model() -> object:
    return network.build(TINY)


@pytest.mark.parametrize("kind", [k for k in DAMAGE if k != "norm negative"])
def test_weights_that_do_not_fit_are_named(tiny_model: object, tiny_weights: Weights, kind: str) -> None:
    weights = dict(tiny_weights)
    damage, message = DAMAGE[kind]
    damage(weights)
    with pytest.raises(BundleError, match=message):
        network.set_variables(tiny_model, weights)


@pytest.mark.parametrize("kind", [k for k in DAMAGE if "norm" in k])
def test_folding_names_what_does_not_fit(tiny_weights: Weights, kind: str) -> None:
    weights = dict(tiny_weights)
    damage, message = DAMAGE[kind]
    damage(weights)
    with pytest.raises(BundleError, match=message):
        network.compiled(TINY, weights)


def test_what_scoring_does_not_need_may_be_left_over(tiny_model: object, tiny_weights: Weights) -> None:
    more = {"Inception/AuxLogits/x/weights": np.zeros(1, np.float32), GLOBAL_STEP: np.array(7)}
    network.set_variables(tiny_model, {**tiny_weights, **more})

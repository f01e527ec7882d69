"""EfficientNet-lite0 computes what the published code computes, and its weights travel as every family's do.

Reference values: the package efficientnet-lite-pytorch with torch, ``from_name("efficientnet-lite0", image_size=64)``
in evaluation, its state set to :func:`published` and fed the images that the same generator draws last.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model import families, network
from marcod.model.efficientnet import GRID, LITE0, EfficientNetLite, from_published

Arrays = dict[str, NDArray[np.float32]]

OF_IMAGENET = EfficientNetLite(input_size=64, classes=1000)

LOGITS = (
    (-1.8831005096435547, -2.6729414463043213, -1.1465721130371094, -5.349575519561768, -4.085683345794678),
    (-0.4268210828304291, -3.3374969416046143, -2.0020220279693604, -3.5996804237365723, -3.7297074794769287),
)
FEATURES = (
    (0.0, 0.7271659970283508, 1.8552701473236084, 0.03626454621553421, 0.917823076248169),
    (0.0, 0.703754186630249, 2.277294635772705, 0.12104298174381256, 0.0),
)

STAGES = ((1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320))


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published arrays, in their order."""
    yield "_conv_stem.weight", (32, 3, 3, 3)
    yield from norm("_bn0", 32)
    number, entering = 0, 32
    for blocks, side, expansion, leaving in STAGES:
        for _ in range(blocks):
            block, wide = f"_blocks.{number}", entering * expansion
            if expansion > 1:
                yield f"{block}._expand_conv.weight", (wide, entering, 1, 1)
                yield from norm(f"{block}._bn0", wide)
            yield f"{block}._depthwise_conv.weight", (wide, 1, side, side)
            yield from norm(f"{block}._bn1", wide)
            yield f"{block}._project_conv.weight", (leaving, wide, 1, 1)
            yield from norm(f"{block}._bn2", leaving)
            number, entering = number + 1, leaving
    yield "_conv_head.weight", (1280, 320, 1, 1)
    yield from norm("_bn1", 1280)
    yield "_fc.weight", (1000, 1280)
    yield "_fc.bias", (1000,)


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The arrays of one batch normalization."""
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{kind}", (channels,)


def published(rng: np.random.Generator) -> Arrays:
    """Arrays as published ones, drawn in their order."""
    found: Arrays = {}
    for name, shape in shapes():
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = rng.uniform(-0.5, 0.5, shape) + float("_bn" in name and name.endswith(".weight"))
        else:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        found[name] = values.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def given() -> tuple[Arrays, Arrays, NDArray[np.float32]]:
    """Published arrays, the same as our weights, and two images."""
    rng = np.random.default_rng(15)
    arrays = published(rng)
    images = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    weights = from_published(arrays)
    root = f"{EfficientNetLite.root}/Logits/Conv2d_1c_1x1"
    weights |= {f"{root}/weights": arrays["_fc.weight"].T[None, None], f"{root}/biases": arrays["_fc.bias"]}
    return arrays, weights, images


def test_it_computes_what_the_published_code_computes(given: tuple[Arrays, Arrays, NDArray[np.float32]]) -> None:
    _, weights, images = given
    model = network.build(OF_IMAGENET)
    network.set_variables(model, weights)
    plain = np.asarray(model(images, training=False))
    folded = network.compiled(OF_IMAGENET, weights)(images)
    features = network.compiled_features(OF_IMAGENET, weights, 2)(images)
    # Outputs reach 9; float32 rounding over 49 layers makes some 1e-5 of that.
    assert np.abs(plain[:, :5] - LOGITS).max() < 1e-4
    assert np.abs(folded - plain).max() < 1e-4
    assert np.abs(features[:, :5] - FEATURES).max() < 1e-4
    kernel, bias = network.head(weights)
    assert np.abs(features @ kernel + bias - folded).max() < 1e-4


def test_trunk_and_tail_make_the_network(given: tuple[Arrays, Arrays, NDArray[np.float32]]) -> None:
    _, weights, images = given
    tail = network.build_tail(OF_IMAGENET)
    network.set_variables(tail, {name: weights[name] for name in network.variable_shapes(tail)})
    grid = network.compiled_until(OF_IMAGENET, weights, GRID, 2)(images)
    assert grid.shape == (2, 2, 2, 192)
    assert np.abs(np.asarray(tail(grid, training=False)) - network.compiled(OF_IMAGENET, weights)(images)).max() < 1e-4


def test_the_weights_have_the_networks_own_names_and_shapes(given: tuple[Arrays, Arrays, NDArray[np.float32]]) -> None:
    _, weights, _ = given
    assert network.variable_shapes(network.build(OF_IMAGENET)) == {n: v.shape for n, v in weights.items()}
    assert sum(v.size for n, v in weights.items() if "Logits" not in n) == 3_413_024


def test_what_is_missing_is_named(given: tuple[Arrays, Arrays, NDArray[np.float32]]) -> None:
    arrays, _, _ = given
    with pytest.raises(BundleError, match=r"the published weights lack _blocks\.7\._bn1\.running_mean"):
        from_published({n: v for n, v in arrays.items() if n != "_blocks.7._bn1.running_mean"})


def test_it_travels_as_plain_values_and_is_distinguished_from_the_other_family() -> None:
    assert families.architecture(LITE0.to_dict()) == LITE0
    assert LITE0.to_dict()["family"] == "efficientnet-lite0"
    with pytest.raises(BundleError, match=r"is of family 'vit'; this version of marcod knows inception and efficientn"):
        families.architecture({"family": "vit", "input_size": 224, "classes": 4})


@pytest.mark.parametrize(("size", "auxiliary"), [(31, False), (64, True)])
def test_what_it_cannot_be_is_refused(size: int, auxiliary: bool) -> None:
    with pytest.raises(BundleError, match=r"too small|no auxiliary head"):
        network.build(EfficientNetLite(size, 4, auxiliary=True), auxiliary=auxiliary)
    with pytest.raises(BundleError, match=r"too small|no auxiliary head"):
        network.build(EfficientNetLite(size, 4), auxiliary=auxiliary)

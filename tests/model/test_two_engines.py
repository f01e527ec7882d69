"""What TensorFlow and Keras calculate, OpenVINO and NumPy calculate too: networks to rounding, pixels bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import ARCHITECTURES, images_of, values_of

from marcod.errors import is_out_of_memory
from marcod.model import backend, network, openvino_network, resize, weights
from marcod.model.architecture import Architecture
from marcod.model.efficientnet import LITE0
from marcod.model.inception import MARCO, MARCO_SMALL


@pytest.mark.parametrize("architecture", [MARCO, MARCO_SMALL, LITE0, tiny.TINY], ids=lambda one: str(one.input_size))
def test_both_have_weights_of_the_same_names_and_shapes(architecture: Architecture) -> None:
    assert weights.shapes(architecture) == network.variable_shapes(network.build(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: f"{one.family}-{one.input_size}")
def test_both_give_the_same_logits(architecture: Architecture) -> None:
    values, batch = values_of(architecture), images_of(architecture, 5)
    wanted = network.compiled(architecture, values, 4)(batch)
    found = openvino_network.compiled(architecture, values, 4)(batch)
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


@given(st.integers(1, 300), st.integers(1, 200), st.integers(0, 99))
@settings(max_examples=100)
def test_the_resize_gives_the_graphs_bits(side: int, size: int, seed: int) -> None:
    square = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    wanted = tf.raw_ops.ResizeBilinear(
        images=square[np.newaxis], size=(size, size), align_corners=False, half_pixel_centers=False
    )[0].numpy()
    assert np.array_equal(resize.bilinear(square, size), wanted)


@pytest.mark.parametrize("side", [599, 1024, 1920, 2400])
def test_the_resize_gives_the_graphs_bits_at_the_sizes_of_imagers(side: int) -> None:
    wide = np.random.default_rng(side).integers(0, 256, (side, side + 31, 3), dtype=np.uint8)
    square = wide[:, 15 : side + 15]
    theirs = backend.bilinear()
    found = resize.bilinear(square, 599)
    assert found.dtype == np.float32
    if theirs is not None:
        assert np.array_equal(found, theirs(square, 599))


@pytest.mark.parametrize("engine", [network, openvino_network], ids=["keras", "openvino"])
def test_images_that_lie_apart_get_the_bits_of_those_laid_together(engine: ModuleType) -> None:
    architecture = ARCHITECTURES[0]
    batch = images_of(architecture, 7)
    score = engine.compiled(architecture, values_of(architecture), 8)
    wanted = score(batch)
    for image in batch:
        image.flags.writeable = False
    assert np.array_equal(score(list(batch)), wanted)
    # Larger ones first, whose memory is kept.
    alone = [score([image])[0] for image in batch[::-1]][::-1]
    assert np.array_equal(alone, wanted)
    # Where no engine can take them as they lie.
    moved = np.empty(batch.nbytes + 4, np.uint8)[4:].view(np.float32).reshape(batch.shape)
    moved[:] = batch
    moved.flags.writeable = False
    assert np.array_equal(score(moved), wanted)


def test_many_threads_resize_each_its_own_image() -> None:
    squares = [np.random.default_rng(n).integers(0, 256, (64 + n, 64 + n, 3), dtype=np.uint8) for n in range(40)]
    theirs = backend.bilinear() or resize.bilinear
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda square: theirs(square, 40), squares))
    assert all(np.array_equal(one, resize.bilinear(s, 40)) for one, s in zip(found, squares, strict=True))


def test_tensorflows_lack_of_memory_is_known_as_such() -> None:
    assert is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))

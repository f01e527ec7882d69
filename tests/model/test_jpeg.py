"""JPEGs in every form that an imager may write: the same bits as the published graph's decoder gives."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from marcod.errors import ImageError
from marcod.model import jpeg, preprocess
from marcod.model.preprocess import DECODE_RATIOS


def drop(width: int, height: int, seed: int) -> Image.Image:
    """Noise over a gradient, so that no block is like another."""
    rng = np.random.default_rng(seed)
    base = np.add.outer(np.linspace(40, 200, height), np.linspace(-30, 30, width))[..., None]
    return Image.fromarray(np.clip(base + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


@st.composite
def jpegs(draw: st.DrawFn) -> tuple[bytes, int, int]:
    # Of fewer than 8 pixels several parts have the same size, and no network is as small as that.
    width, height = draw(st.integers(8, 130)), draw(st.integers(8, 130))
    image = drop(width, height, draw(st.integers(0, 99)))
    options: dict[str, Any] = {
        "quality": draw(st.integers(1, 100)),
        "progressive": draw(st.booleans()),
        "optimize": draw(st.booleans()),
        "restart_marker_blocks": draw(st.integers(0, 9)),
    }
    if draw(st.booleans()):
        return encoded(image.convert("L"), **options), width, height
    subsampling = draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]))
    return encoded(image, subsampling=subsampling, keep_rgb=False, **options), width, height


@given(jpegs(), st.sampled_from(DECODE_RATIOS))
@settings(max_examples=150)
def test_the_same_bits_as_the_graphs_decoder(made: tuple[bytes, int, int], ratio: int) -> None:
    data, width, height = made
    wanted = tf.io.decode_jpeg(data, channels=3, ratio=ratio).numpy()
    with jpeg.decoded(data, width, height, ratio) as rgb:
        assert np.array_equal(rgb, wanted)


def test_rgb_that_is_stored_as_such() -> None:
    data = encoded(drop(90, 70, 1), keep_rgb=True, subsampling="4:4:4")
    with jpeg.decoded(data, 90, 70) as rgb:
        assert np.array_equal(rgb, tf.io.decode_jpeg(data, channels=3).numpy())


def test_an_image_decoded_within_anothers_block_has_a_buffer_of_its_own() -> None:
    one, other = encoded(drop(90, 70, 1)), encoded(drop(90, 70, 2))
    with jpeg.decoded(one, 90, 70) as first:
        before = first.copy()
        with jpeg.decoded(other, 90, 70) as second:
            assert not np.array_equal(first, second)
        assert np.array_equal(first, before)


def test_a_small_image_after_a_large_one() -> None:
    for width in (120, 30, 120):
        data = encoded(drop(width, 70, width))
        with jpeg.decoded(data, width, 70) as rgb:
            assert np.array_equal(rgb, tf.io.decode_jpeg(data, channels=3).numpy())


def test_what_a_decoder_complains_of_is_judged_by_the_rule_for_all_images() -> None:
    data = encoded(drop(200, 160, 3))
    extra = data[:-2] + b"\x11" * 9 + data[-2:]
    with jpeg.decoded(extra, 200, 160) as rgb:
        assert np.array_equal(rgb, preprocess.decode(data))
    for damaged in (data[:-900], data[:-900] + b"\xff\xd9", data[:-2] + data[1000:4000] + data[-2:]):
        with pytest.raises(ImageError, match="truncated or damaged") as refused, jpeg.decoded(damaged, 200, 160):
            pass
        assert refused.value.retryable


def test_one_without_its_end_marker_is_whole() -> None:
    data = encoded(drop(200, 160, 4))
    with jpeg.decoded(data[:-2], 200, 160) as rgb:
        assert np.array_equal(rgb, preprocess.decode(data))


def test_photographs_of_imagers() -> None:
    """Where real plates are named, a tenth of their files at every ratio; each file is in the benchmark."""
    named = os.environ.get("MARCOD_REAL_PLATES")
    for path in sorted(Path(named).rglob("*.jpg"))[::10] if named else ():
        data = path.read_bytes()
        for ratio in DECODE_RATIOS:
            wanted = tf.io.decode_jpeg(data, channels=3, ratio=ratio).numpy()
            with Image.open(path) as image, jpeg.decoded(data, *image.size, ratio) as rgb:
                assert np.array_equal(rgb, wanted), path

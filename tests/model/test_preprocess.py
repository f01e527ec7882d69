"""The arithmetic that decides parity with the published graph, against the same sums written in NumPy."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import jpeg

from marcod import images
from marcod.errors import BundleError, ImageError
from marcod.model import preprocess
from marcod.model.preprocess import Preprocessing

SIZE = 59


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tf1_bilinear(square: np.ndarray, size: int) -> np.ndarray:
    """Output pixel i looks at input i * side / size, without half-pixel centres, between its two neighbours."""
    at = np.arange(size, dtype=np.float32) * np.float32(len(square) / size)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(square) - 1), (at - low)
    x = square.astype(np.float64)
    rows = x[low] * (1 - part)[:, None, None] + x[high] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, high] * part[None, :, None]


@pytest.mark.parametrize(
    ("height", "width"), [(100, 100), (100, 131), (131, 100), (101, 200), (200, 101), (31, 40), (59, 59), (1, 7)]
)
def test_the_published_preprocessing_is_the_formula(height: int, width: int) -> None:
    rgb = noise(height, width)
    side, top, left = min(height, width), max(0, height - width) // 2, max(0, width - height) // 2
    expected = (tf1_bilinear(rgb[top : top + side, left : left + side], SIZE) / 255 - 0.5) * 2
    got = preprocess.prepare(rgb, Preprocessing(SIZE, "bilinear-tf1"))
    assert got.dtype == np.float32
    assert got.shape == (SIZE, SIZE, 3)
    assert np.abs(got - expected).max() < 2e-6


def test_it_is_not_the_resize_of_tensorflow_2() -> None:
    rgb = noise(120, 120)
    newer = (tf.image.resize(rgb / 255.0, (SIZE, SIZE)).numpy() - 0.5) * 2
    assert np.abs(preprocess.prepare(rgb, Preprocessing(SIZE, "bilinear-tf1")) - newer).max() > 0.1


def test_scaling_after_the_resize_equals_the_graph_scaling_before_it() -> None:
    rgb = noise(240, 320)
    scaled = preprocess.centre_square(rgb).astype(np.float32) * np.float32(1 / 255)
    resized = tf.compat.v1.image.resize_bilinear(scaled[None], (SIZE, SIZE))[0].numpy()
    graph = (resized - 0.5) * 2
    assert np.abs(preprocess.prepare(rgb, Preprocessing(SIZE, "bilinear-tf1")) - graph).max() < 1e-6


def test_area_averages_every_pixel_under_an_output_pixel() -> None:
    rgb = noise(177, 200)
    blocks = preprocess.centre_square(rgb).reshape(SIZE, 3, SIZE, 3, 3).astype(np.float64)
    expected = blocks.mean(axis=(1, 3)) / 127.5 - 1
    assert np.abs(preprocess.prepare(rgb, Preprocessing(SIZE, "area")) - expected).max() < 1 / 127.5


def test_area_keeps_a_needle_that_bilinear_loses() -> None:
    rgb = np.full((590, 590, 3), 255, np.uint8)
    rgb[:, 305] = 0
    assert preprocess.prepare(rgb, Preprocessing(SIZE, "area")).min() < 0.9
    assert preprocess.prepare(rgb, Preprocessing(SIZE, "bilinear-tf1")).min() == 1.0


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_crop_is_square_and_central(height: int, width: int) -> None:
    rgb = np.zeros((height, width, 3), np.uint8)
    square = preprocess.centre_square(rgb)
    side = min(height, width)
    assert square.shape == (side, side, 3)
    offset = square.__array_interface__["data"][0] - rgb.__array_interface__["data"][0]
    assert offset == ((height - side) // 2 * width + (width - side) // 2) * 3


def test_jpeg_is_decoded_as_the_graph_decodes_it() -> None:
    data = jpeg(5, 400, 300)
    assert np.array_equal(preprocess.decode(data), tf.io.decode_jpeg(data, channels=3, dct_method="").numpy())


def test_grey_jpeg_has_three_equal_channels() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 50)).convert("L").save(buffer, "JPEG")
    rgb = preprocess.decode(buffer.getvalue())
    assert rgb.shape == (40, 50, 3)
    assert np.array_equal(rgb[:, :, 0], rgb[:, :, 2])


@pytest.mark.parametrize(("mode", "format_"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "TIFF"), ("P", "GIF")])
def test_everything_else_is_read_by_the_other_reader(mode: str, format_: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 50)).convert(mode).save(buffer, format_)
    assert np.array_equal(preprocess.decode(buffer.getvalue()), images.to_rgb(buffer.getvalue()))


def test_a_truncated_jpeg_may_still_be_arriving() -> None:
    data = jpeg(1, 400, 300)
    with pytest.raises(ImageError, match="truncated") as caught:
        preprocess.decode(data[: len(data) // 2])
    assert caught.value.retryable


def test_what_is_not_an_image_stays_none() -> None:
    with pytest.raises(ImageError) as caught:
        preprocess.decode(b"not an image at all")
    assert not caught.value.retryable


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12), st.floats(0, 1))
def test_damaged_jpegs_raise_nothing_but_image_errors(changes: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(jpeg(3))
    for where, value in changes:
        data[int(where * len(data))] = value
    with suppress(ImageError):
        assert preprocess.decode(bytes(data[: max(1, int(keep * len(data)))])).ndim == 3


@pytest.mark.parametrize("resize", ["bilinear-tf1", "area"])
def test_threads_do_not_disturb_each_other(resize: preprocess.Resize) -> None:
    images = [jpeg(seed, 300 + 7 * seed, 200 + 5 * seed) for seed in range(12)]
    record = Preprocessing(SIZE, resize)
    alone = [preprocess.prepare(preprocess.decode(p), record) for p in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: preprocess.prepare(preprocess.decode(p), record), images * 3))
    assert all(np.array_equal(alone[i % 12], t) for i, t in enumerate(together))


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [((1224, 1024), 4, 4), ((1224, 895), 4, 2), ((1224, 1024), 2, 2), ((1224, 1024), 1, 1), ((300, 230), 8, 1)],
)
def test_a_jpeg_is_decoded_as_small_as_the_network_allows(size: tuple[int, int], ratio: int, expected: int) -> None:
    record = Preprocessing(224, "area", decode_ratio=ratio)
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(buffer, "JPEG", quality=95)
    found = preprocess.decode(buffer.getvalue(), record)
    assert found.shape[:2] == (-(-size[1] // expected), -(-size[0] // expected))
    whole = preprocess.prepare(preprocess.decode(buffer.getvalue()), record)
    assert np.abs(preprocess.read(buffer.getvalue(), record) - whole).max() < 0.05


def test_other_files_are_decoded_whole() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((1224, 1024)).save(buffer, "PNG")
    assert preprocess.decode(buffer.getvalue(), Preprocessing(224, "area", decode_ratio=4)).shape == (1024, 1224, 3)


@pytest.mark.parametrize("ratio", [0, 3, 16, "2"])
def test_a_ratio_that_no_decoder_has_is_refused(ratio: object) -> None:
    with pytest.raises(BundleError, match=r"has decode_ratio .*, not 1, 2, 4, 8"):
        Preprocessing.from_dict({"size": 224, "resize": "area", "decode_ratio": ratio})


def test_records_travel_as_plain_values() -> None:
    record = Preprocessing(599, "bilinear-tf1")
    assert Preprocessing.from_dict(record.to_dict()) == record
    with pytest.raises(BundleError, match="lanczos"):
        Preprocessing.from_dict({"size": 599, "resize": "lanczos"})
    with pytest.raises(BundleError, match="preprocessing"):
        Preprocessing.from_dict({"size": 599})

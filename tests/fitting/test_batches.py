"""What training sees: files kept or read again, patches, distortions, and batches that a seed decides."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from tiny import jpeg
from training_images import coloured

from marcod.errors import MarcodError
from marcod.fitting import batches as fitting_batches
from marcod.fitting.batches import Images, augment, batches
from marcod.fitting.recipes import GENTLE, PAPER, Augmentation
from marcod.model import preprocess
from marcod.model.preprocess import Preprocessing

SIZE = 16
SMALL = Preprocessing(24, "area")
PLAIN = Augmentation(
    patch=None, brightness=0.0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0.0, quarter_turns=False
)
"""Flips alone."""


def augmented(pixels: NDArray[np.uint8], how: Augmentation, seed: int = 0, size: int = SIZE) -> NDArray[np.float32]:
    """Images after augmentation, in 0..1."""
    drawn = augment(tf.constant(pixels), how, size, tf.constant([seed, 1], tf.int64))
    return (np.asarray(drawn) + 1) / 2


def image(seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """Noise, in which every place is another."""
    return np.random.default_rng(seed).integers(30, 226, (size, size, 3), np.uint8)


def copies(of: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return np.repeat(of[np.newaxis], count, axis=0)


def positions(square: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The eight ways in which a square can lie: as it is, flipped, and the same transposed."""
    flipped = [square[::down, ::across] for down in (1, -1) for across in (1, -1)]
    return [*flipped, *(np.swapaxes(one, 0, 1) for one in flipped)]


@pytest.mark.parametrize("turns", [False, True])
def test_every_position_comes_equally_often_and_nothing_else_changes(turns: bool) -> None:
    count, square = 2000, image()
    drawn = augmented(copies(square, count), replace(PLAIN, quarter_turns=turns)) * 255
    distance = np.array([[np.abs(one - way).max() for way in positions(square)] for one in drawn])
    assert distance.min(axis=1).max() < 0.01
    found = Counter(distance.argmin(axis=1).tolist())
    ways = 8 if turns else 4
    assert set(found) == set(range(ways))
    assert all(abs(n / count - 1 / ways) < 0.05 for n in found.values())


def test_distortions_fill_the_paper_s_ranges_and_no_more() -> None:
    count, grey = 1500, np.full((SIZE, SIZE, 3), 128, np.uint8)
    level = augmented(copies(grey, count), replace(PLAIN, brightness=PAPER.augmentation.brightness)).mean(axis=(1, 2))
    check_range(level.mean(axis=1) - 128 / 255, -32 / 255, 32 / 255)
    halves = np.full((SIZE, SIZE, 3), 100, np.uint8)
    halves[:, SIZE // 2 :] = 140
    spread = np.ptp(augmented(copies(halves, count), replace(PLAIN, contrast=(0.5, 1.5))), axis=(1, 2, 3))
    check_range(spread / (40 / 255), 0.5, 1.5)
    pale = np.full((SIZE, SIZE, 3), (160, 120, 120), np.uint8)
    after = augmented(copies(pale, count), replace(PLAIN, saturation=(0.5, 1.5)))[:, 0, 0]
    check_range((1 - after.min(axis=1) / after.max(axis=1)) / 0.25, 0.5, 1.5)
    red = np.full((SIZE, SIZE, 3), (200, 40, 40), np.uint8)
    turned = np.asarray(tf.image.rgb_to_hsv(augmented(copies(red, count), replace(PLAIN, hue=0.2))))[:, 0, 0, 0]
    check_range((turned + 0.5) % 1 - 0.5, -0.2, 0.2)


def check_range(values: NDArray[np.floating], low: float, high: float) -> None:
    """All between the two, close to both, and as many in each quarter."""
    assert low - 1e-3 <= values.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < values.max() <= high + 1e-3
    counts, _ = np.histogram(values, bins=4, range=(low - 2e-3, high + 2e-3))
    assert (abs(counts / len(values) - 0.25) < 0.06).all()


def test_hue_and_saturation_are_tensorflow_s() -> None:
    pixels = copies(image(3), 4)
    drawn = augmented(pixels, replace(PLAIN, hue=0.2))
    unflipped = [np.asarray(tf.image.adjust_hue(tf.constant(pixels[0]) / 255, d)) for d in np.linspace(-0.2, 0.2, 801)]
    for one in drawn:
        nearest = min(np.abs(one - way).max() for whole in unflipped for way in positions(whole)[:4])
        assert nearest < 0.01


@pytest.mark.parametrize("how", [PAPER.augmentation, replace(GENTLE, contrast=(3.0, 5.0))])
def test_whatever_is_done_the_network_gets_its_range_and_size(how: Augmentation) -> None:
    drawn = augmented(copies(image(1, 24), 64), how)
    assert drawn.shape == (64, SIZE, SIZE, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_patches_are_as_large_as_asked_and_lie_anywhere() -> None:
    slope = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, np.newaxis, np.newaxis] * 4, (64, 64, 3))
    drawn = augmented(copies(slope, 800), replace(PLAIN, patch=(0.5, 0.75))) * 255 / 4
    ends = np.sort(drawn[:, [0, -1], 0, 0], axis=1)
    check_range((ends[:, 1] - ends[:, 0]) / 63, 0.5, 0.75)
    assert ends.min() < 2
    assert ends.max() > 61


def numbered(count: int, side: int = 20) -> Images:
    """Images of one grey each, their number, so that a batch tells which they are."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3))
    given = fitting_batches.in_memory(pixels, fitting_batches.one_hot(np.arange(count) % 4, 4))
    return replace(given, weights=np.linspace(0.5, 1.5, count).astype(np.float32))


def drawn(given: Images, epoch: int = 0, seed: int = 1, how: Augmentation = PLAIN, **more: int) -> list[tuple]:
    made, left = batches(given, how, SIZE, batch_size=4, seed=seed, epoch=epoch, **more)
    found = [tuple(tf.nest.map_structure(np.asarray, batch)) for batch in made]
    assert len(found) == left
    return found


def numbers(found: list[tuple]) -> list[int]:
    return [round(float(x.mean() + 1) * 127.5) for batch in found for x in batch[0]]


def same(one: list[tuple], other: list[tuple]) -> bool:
    flat = [tf.nest.flatten(batches) for batches in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*flat, strict=True))


def test_a_seed_and_an_epoch_decide_every_batch() -> None:
    given, how = numbered(22), PAPER.augmentation
    first = drawn(given, how=how)
    assert len(first) == 5
    assert same(first, drawn(given, how=how))
    assert not same(first, drawn(given, epoch=1, how=how))
    assert not same(first, drawn(given, seed=2, how=how))
    for skip in range(6):
        assert same(first[skip:], drawn(given, how=how, skip=skip))


def test_an_epoch_shows_every_image_once_with_its_label_and_weight() -> None:
    given = numbered(24)
    found = drawn(given)
    order = numbers(found)
    assert sorted(order) == list(range(24)) != order
    assert np.array_equal(np.concatenate([batch[1] for batch in found]), given.targets[order])
    assert np.array_equal(np.concatenate([batch[2] for batch in found]), given.weights[order])


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    [batch] = drawn(numbered(3))
    assert len(batch[0]) == len(batch[1]) == len(batch[2]) == 3


def test_images_drawn_by_weight_count_the_same() -> None:
    shares = np.array([0, 1, 1, 1, 1, 1, 1, 6], np.float32)
    given = replace(numbered(240), weights=np.tile(shares, 30), by_weight=True)
    found = [batch for epoch in range(4) for batch in drawn(given, epoch=epoch)]
    order = numbers(found)
    assert {weight for batch in found for weight in batch[2].tolist()} == {1.0}
    assert np.array_equal(np.concatenate([batch[1] for batch in found]), given.targets[order])
    times = Counter(number % 8 for number in order)
    assert [times[i] / len(order) for i in range(8)] == pytest.approx((shares / 12).tolist(), abs=0.05)


def test_two_heads_get_the_same_labels_and_weights() -> None:
    given = numbered(8)
    for one, two in zip(drawn(given), drawn(given, heads=2), strict=True):
        assert np.array_equal(one[0], two[0])
        assert all(np.array_equal(one[1], targets) for targets in two[1])
        assert all(np.array_equal(one[2], weights) for weights in two[2])
        assert len(two[1]) == len(two[2]) == 2


def png(pixels: NDArray[np.uint8], path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_the_paper_s_patches_are_a_image_s_own_pixels(tmp_path: Path) -> None:
    whole = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    rows = fitting_batches.patches([png(whole, tmp_path / "a.png"), png(whole[:8, :12], tmp_path / "small.png")], SIZE)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (SIZE, SIZE), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    places = set()
    for seed in range(60):
        [patch] = rows(np.array([0]), seed)
        [place] = np.argwhere((windows == patch).all(axis=(2, 3, 4)))
        places.add(tuple(place.tolist()))
    assert len(places) > 50
    assert {top for top, _ in places} >= {min(t for t, _ in places)}
    assert max(top for top, _ in places) > 18
    assert max(left for _, left in places) > 36
    assert np.array_equal(rows(np.array([0, 1]), 7), rows(np.array([0, 1]), 7))
    assert rows(np.array([1]), 0).shape == (1, SIZE, SIZE, 3)
    [through] = augmented(rows(np.array([0]), 3), PLAIN)
    assert min(np.abs(through * 255 - way).max() for way in positions(rows(np.array([0]), 3)[0])[:4]) < 1e-3


def test_a_damaged_file_is_black_and_one_that_is_gone_ends_the_training(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff")
    assert not fitting_batches.patches([damaged], SIZE)(np.array([0]), 1).any()
    with pytest.raises(FileNotFoundError):
        fitting_batches.patches([tmp_path / "gone.jpg"], SIZE)(np.array([0]), 1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four images; the second is damaged and the third is gone."""
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(i))
    paths[1].write_bytes(jpeg(1)[:300])
    paths[2].unlink()
    return paths


def test_kept_images_are_centre_squares_and_what_cannot_be_read_is_named(files: list[Path], tmp_path: Path) -> None:
    done: list[int] = []
    pixels, wrong = fitting_batches.kept(files, SMALL, tmp_path / "kept.npy", threads=2, done=done.append)
    assert pixels.shape == (4, 24, 24, 3)
    assert done == [1, 2, 3, 4]
    assert set(wrong) == {1, 2}
    assert "damaged" in wrong[1]
    assert wrong[2] == "No such file or directory"
    assert not pixels[[1, 2]].any()
    for i in (0, 3):
        square = preprocess.centre_square(preprocess.decode(files[i].read_bytes()))
        expected = Image.fromarray(square).resize((24, 24), Image.Resampling.BOX)
        assert np.array_equal(pixels[i], np.asarray(expected))


def test_an_image_smaller_than_the_network_s_input_is_kept_as_it_is_scored(tmp_path: Path) -> None:
    """Enlarged thumbnails look like mosaics if every pixel becomes a square, and no score of them is like that."""
    file = tmp_path / "thumbnail.jpg"
    file.write_bytes(jpeg(1))
    how = Preprocessing(300, "bilinear-tf1")
    pixels, _ = fitting_batches.kept([file], how, tmp_path / "kept.npy", threads=1)
    scored = preprocess.read(file.read_bytes(), how)
    assert np.abs(fitting_batches.prepared(pixels, how)[0] - scored).max() <= 1.01 / 255


def test_kept_images_are_read_once(files: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "kept.npy"
    first, wrong = fitting_batches.kept(files, SMALL, place, threads=1)
    for file in files:
        file.unlink(missing_ok=True)
    again, still = fitting_batches.kept(files, SMALL, place, threads=1)
    assert np.array_equal(first, again)
    assert still == wrong
    with pytest.raises(MarcodError, match=r"kept\.npy holds other images than this run's; remove it"):
        fitting_batches.kept(files[:2], SMALL, place, threads=1)


def test_images_for_which_there_is_no_room_are_not_started(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MarcodError, match=r"images to train on take 1200000\.0 GB in .*make room there"):
        fitting_batches.kept(files, replace(SMALL, size=10**7), tmp_path / "kept.npy", threads=1)
    assert not list(tmp_path.glob("kept*"))


def test_a_stop_while_reading_leaves_nothing_that_looks_whole(files: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "kept.npy"
    with pytest.raises(InterruptedError):
        fitting_batches.kept(files, SMALL, place, threads=1, stopped=lambda: True)
    assert not place.exists()
    pixels, _ = fitting_batches.kept(files, SMALL, place, threads=1)
    assert pixels[0].any()


def test_kept_images_are_prepared_as_for_scoring() -> None:
    pixels, _ = coloured(2, 24)
    record = preprocess.Preprocessing(SIZE, "area")
    found = fitting_batches.prepared(pixels, record)
    assert found.dtype == np.float32
    for one, expected in zip(found, pixels, strict=True):
        assert np.array_equal(one, preprocess.prepare(expected, record))
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "PNG")
    assert np.array_equal(found[0], preprocess.prepare(preprocess.decode(buffer.getvalue()), record))

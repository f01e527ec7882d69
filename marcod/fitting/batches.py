"""Batches of training images from files or rendered drops, with tf.data on the CPU.

Guarantees:

* An image is decoded as for scoring.
* The same seed, epoch and step give the same batch, so that a killed training resumes where it was.
* Imagers' shares are read once: images are kept in the run's folder, shrunk to little more than the network takes.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from marcod import images
from marcod.errors import ImageError, MarcodError
from marcod.fitting.recipes import Augmentation
from marcod.model import preprocess
from marcod.model.backend import Share
from marcod.model.preprocess import Preprocessing

KEPT_SHARE: Final = 1.6
"""Side of a kept image over the network's, so that a patch of it still has the detail the network sees."""

WHOLE: Final = Share()

Pixels = NDArray[np.uint8]
ReadPixels = Callable[[NDArray[np.int64], int], Pixels]


@dataclass(frozen=True)
class Images:
    """Training images: soft labels float32 [n, classes], a weight each float32 [n], and the reader of pixels.

    ``rows(indices, seed)`` gives uint8 [k, side, side, 3]. With ``by_weight`` an image is drawn as often as it weighs
    and then counts 1; otherwise every image comes once an epoch and counts what it weighs.
    """

    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    rows: ReadPixels
    by_weight: bool = False

    def __len__(self) -> int:
        return len(self.targets)


def in_memory(pixels: Pixels, targets: NDArray[np.float32]) -> Images:
    """Wrap images uint8 [n, side, side, 3] that are in memory; each counts the same."""
    return Images(targets, np.ones(len(targets), np.float32), lambda chosen, _seed: pixels[chosen])


def one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.float32]:
    """Encode class indices [n] as certain soft labels float32 [n, classes]."""
    return np.asarray(np.eye(classes)[labels], np.float32)


def kept(
    files: Sequence[Path],
    how: Preprocessing,
    place: Path,
    *,
    threads: int,
    done: Callable[[int], None] = lambda count: None,
    stopped: Callable[[], bool] = lambda: False,
    packed: Callable[[int], Pixels | None] = lambda index: None,
) -> tuple[Pixels, dict[int, str]]:
    """Keep image files, prepared as ``how`` says, as a memory-mapped file at ``place``.

    What ``packed`` returns for an index is taken instead of the file. Returns uint8 [n, size, size, 3] and what could
    not be read, by index; those rows are black. What a killed run left whole is used again. Raises InterruptedError
    when ``stopped``.
    """
    shape, failures = (len(files), how.size, how.size, 3), place.with_suffix(".failures")
    if not place.exists():
        _require_room(place.parent, int(np.prod(shape)))
        unfinished = place.with_suffix(".part")
        pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        wrong = _fill(pixels, files, how, threads, done, stopped, packed)
        pixels.flush()
        del pixels
        failures.write_text("".join(f"{i}\t{text}\n" for i, text in wrong.items()), encoding="utf-8")
        unfinished.rename(place)
    found = np.load(place, mmap_mode="r")
    if found.shape != shape:
        raise MarcodError(f"{place} holds other images than this run's; remove it")
    lines = (line.split("\t", 1) for line in failures.read_text(encoding="utf-8").splitlines())
    return found, {int(index): text for index, text in lines}


def kept_again(place: Path) -> Pixels:
    """Load what :func:`kept` left at ``place``, without unreadable images."""
    found = np.load(place, mmap_mode="r")
    failures = place.with_suffix(".failures").read_text(encoding="utf-8").splitlines()
    wrong = {int(line.split("\t", 1)[0]) for line in failures}
    return np.asarray(found[[i for i in range(len(found)) if i not in wrong]])


def _require_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise MarcodError(
            f"the images to train on take {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "make room there, or choose another train.folder"
        )


def _fill(
    pixels: Pixels,
    files: Sequence[Path],
    how: Preprocessing,
    threads: int,
    done: Callable[[int], None],
    stopped: Callable[[], bool],
    packed: Callable[[int], Pixels | None],
) -> dict[int, str]:
    def one(index: int) -> str | None:
        try:
            found = packed(index)
            pixels[index] = as_kept(images.read(files[index]), how) if found is None else found
        except ImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or "cannot be read"
        return None

    wrong: dict[int, str] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for index, problem in enumerate(pool.map(one, range(len(files)))):
            if stopped():
                pool.shutdown(cancel_futures=True)
                raise InterruptedError
            if problem is not None:
                wrong[index] = problem.replace("\n", " ")
            done(index + 1)
    return wrong


def as_kept(data: bytes, how: Preprocessing) -> Pixels:
    """Return the pixels of an image file as they are kept. Raises ImageError."""
    return np.asarray(np.rint((preprocess.read(data, how) + 1) * 127.5), np.uint8)


def shrunk(rgb: Pixels, side: int) -> Pixels:
    """Return the centre square uint8 [side, side, 3], averaged over areas as the ``area`` resize does."""
    square = Image.fromarray(preprocess.centre_square(rgb))
    return np.asarray(square.resize((side, side), Image.Resampling.BOX))


def patches(files: Sequence[Path], size: int) -> ReadPixels:
    """Read random patches of ``size`` of an image's own pixels from its file each time: the paper's patches.

    An image with a shorter side is enlarged to it. One that is damaged is black. Raises OSError when a file cannot be
    read, as when its share is offline.
    """

    def one(index: int, seed: int) -> Pixels:
        try:
            rgb = preprocess.decode(images.read(files[index]))
        except ImageError:
            return np.zeros((size, size, 3), np.uint8)
        if min(rgb.shape[:2]) < size:
            return shrunk(rgb, size)
        rng = np.random.default_rng((seed, index))
        top, left = (int(rng.integers(0, extent - size + 1)) for extent in rgb.shape[:2])
        return rgb[top : top + size, left : left + size]

    return lambda chosen, seed: np.stack([one(int(index), seed) for index in chosen])


def prepared(pixels: Pixels, record: Preprocessing) -> NDArray[np.float32]:
    """Prepare kept images uint8 [n, side, side, 3] as for scoring, float32 [n, size, size, 3]."""
    return np.stack([preprocess.prepare(image, record) for image in pixels])


def batches(
    images: Images,
    augmentation: Augmentation,
    size: int,
    *,
    batch_size: int,
    heads: int = 1,
    seed: int,
    epoch: int,
    skip: int = 0,
    share: Share = WHOLE,
) -> tuple[Any, int]:
    """Return the rest of an epoch's batches after ``skip`` of them, and their number.

    Of each batch, or of this process's ``share`` of it, which is changed as in the whole: images float32
    [b, size, size, 3] in -1..1, soft labels and weights, both once for every head.
    """
    count = max(1, len(images) // batch_size)
    order, counts = _drawn(images, count * batch_size, seed, epoch)
    numbered = tf.data.Dataset.range(skip, count)
    epoch_seed = int(np.random.default_rng((seed, epoch, 1)).integers(2**31))

    def read(step: Any) -> tuple[Pixels, NDArray[np.float32], NDArray[np.float32]]:
        chosen = order[int(step) * batch_size : (int(step) + 1) * batch_size]
        chosen = chosen[share.part(len(chosen))]
        return images.rows(chosen, epoch_seed), images.targets[chosen], counts[chosen]

    def batch(step: Any) -> Any:
        pixels, targets, weights = tf.numpy_function(read, [step], (tf.uint8, tf.float32, tf.float32), stateful=False)
        pixels.set_shape([None, None, None, 3])
        targets.set_shape([None, images.targets.shape[1]])
        weights.set_shape([None])
        x = augment(pixels, augmentation, size, tf.stack([tf.cast(epoch_seed, tf.int64), step]), share)
        return (x, targets, weights) if heads == 1 else (x, (targets,) * heads, (weights,) * heads)

    made = numbered.map(
        tf.autograph.experimental.do_not_convert(batch), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return made.prefetch(2), count - skip


def _drawn(images: Images, size: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw the images of an epoch in their order, and the weight of each image."""
    rng = np.random.default_rng((seed, epoch))
    if not images.by_weight:
        return rng.permutation(len(images))[:size], images.weights
    chance = images.weights.astype(np.float64) / images.weights.sum(dtype=np.float64)
    return rng.choice(len(images), size, p=chance), np.ones(len(images), np.float32)


def augment(images: Any, how: Augmentation, size: int, seed: Any, share: Share = WHOLE) -> Any:
    """Augment a batch, uint8 [b, side, side, 3] to float32 [b, size, size, 3] in -1..1: patch, flips, turns, colour.

    ``images`` are a share of it, and are changed as they would be in the whole.
    """
    count = tf.shape(images)[0]
    seeds = iter(tf.unstack(tf.random.split(seed, 12)))

    def draw(low: float, high: float, *shape: int) -> Any:
        whole = tf.random.stateless_uniform([count * share.of, *shape], next(seeds), low, high)
        return whole[share.number * count : (share.number + 1) * count]

    patch = (1.0, 1.0) if how.patch is None else how.patch
    boxes = _boxes(draw, patch)
    x = tf.image.crop_and_resize(tf.cast(images, tf.float32) / 255.0, boxes, tf.range(count), (size, size))
    if how.quarter_turns:
        # With the flips of the boxes a transposition makes all eight positions equally likely.
        x = tf.where(draw(0, 1, 1, 1, 1) < 0.5, tf.transpose(x, [0, 2, 1, 3]), x)
    x = x + draw(-how.brightness, how.brightness, 1, 1, 1)
    x = _coloured(tf.clip_by_value(x, 0.0, 1.0), draw, how)
    level = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
    x = level + (x - level) * draw(*how.contrast, 1, 1, 1)
    return tf.clip_by_value(x, 0.0, 1.0) * 2.0 - 1.0


def _coloured(x: Any, draw: Callable[..., Any], how: Augmentation) -> Any:
    """Change hue and saturation per image, as ``tf.image.adjust_hue`` and ``adjust_saturation``."""
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(x), axis=3)
    hue = tf.math.floormod(hue + draw(-how.hue, how.hue, 1, 1), 1.0)
    saturation = tf.clip_by_value(saturation * draw(*how.saturation, 1, 1), 0.0, 1.0)
    return tf.image.hsv_to_rgb(tf.stack([hue, saturation, value], axis=3))


def _boxes(draw: Callable[..., Any], patch: tuple[float, float]) -> Any:
    """Draw square patches with a side in the range ``patch``, half flipped up-down, half left-right."""
    side = draw(*patch)
    top, left = draw(0.0, 1.0) * (1.0 - side), draw(0.0, 1.0) * (1.0 - side)
    y, x = tf.stack([top, top + side], 1), tf.stack([left, left + side], 1)
    y = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(y, [1]), y)
    x = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(x, [1]), x)
    return tf.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1)

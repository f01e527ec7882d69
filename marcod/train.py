"""Training from scratch on rendered drops: the recipe behind the bundle that ships with the project.

Hides rendering, augmentation, fitting, calibration and the measuring of the result. Promises that every
picture comes from a seed, that training, validation and test seeds never meet, and that the bundle says
loudly that it has never seen a photograph. Sources: the augmentation and the running average of weights
are the paper's (Bruno et al., PLOS ONE 2018); temperature scaling is Guo et al., arXiv 1706.04599.
"""

import io
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from marcod import network, preprocess, synthetic
from marcod.domain import CLASSES, DropClass
from marcod.network import MARCO_SMALL
from marcod.preprocess import Preprocessing

PREPROCESSING: Final = Preprocessing(MARCO_SMALL.input_size, "area")

# A million seeds for each purpose, so that no picture is ever in two sets.
TRAINING, VALIDATION, TEST, GOLDEN = 1_000_000, 2_000_000, 3_000_000, 4_000_000

_SIZES: Final = ((330, 270), (330, 270), (330, 270), (330, 270), (660, 540))

_PEAK_RATE: Final = 2e-3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examples:
    """Rendered drops: uint8 [n, size, size, 3], and class indices int32 [n] in the order of domain.CLASSES."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int32]


def render_examples(first_seed: int, count: int, *, balanced: bool, progress: Progress | None = None) -> Examples:
    """``count`` drops from the seeds following ``first_seed``, each class equally often or as often as in nature.

    Rendered by two spawned processes, since a fork of a process that runs TensorFlow may hang.
    """
    tasks = [(first_seed + i, CLASSES[i % len(CLASSES)] if balanced else None) for i in range(count)]
    pictures = np.empty((count, PREPROCESSING.size, PREPROCESSING.size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for i, (picture, label) in enumerate(pool.imap(_example, tasks, chunksize=8)):
            pictures[i], labels[i] = picture, label
            if progress is not None:
                progress("rendering", i + 1, count)
    return Examples(pictures, labels)


def rendered_jpeg(seed: int, label: DropClass | None = None) -> tuple[bytes, DropClass]:
    """One synthetic drop as an imager would write it, and its true class."""
    scene = synthetic.random_scene(seed, label)
    pixels = synthetic.render(scene, _SIZES[seed % len(_SIZES)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), synthetic.scene_label(scene)


def _example(task: tuple[int, DropClass | None]) -> tuple[NDArray[np.uint8], int]:
    data, label = rendered_jpeg(*task)
    ready = preprocess.prepare(preprocess.decode(data), PREPROCESSING)
    return np.rint((ready + 1) * 127.5).astype(np.uint8), CLASSES.index(label)


def fit(
    examples: Examples, *, seed: int, epochs: int, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, NDArray[np.float32]]:
    """The weights, by checkpoint name, of :data:`MARCO_SMALL` trained from scratch on ``examples``.

    Adam with a short warm-up and cosine decay; what is returned is the running average of the weights.
    """
    keras.utils.set_random_seed(seed)
    model = network.build(MARCO_SMALL)
    steps = epochs * (len(examples.labels) // batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(_schedule(steps), use_ema=True, ema_momentum=0.995),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    callbacks = [] if progress is None else [_report(progress, epochs)]
    batches = _augmented(examples, seed, batch_size)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps // epochs, callbacks=callbacks, verbose=0)
    return network.variables(model)


def _schedule(steps: int) -> Any:
    return keras.optimizers.schedules.CosineDecay(
        1e-4, steps, warmup_target=_PEAK_RATE, warmup_steps=min(300, steps // 10), alpha=0.005
    )


def _report(progress: Progress, epochs: int) -> Any:
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: progress(
            f"training, loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.3f}", epoch + 1, epochs
        )
    )


def _augmented(examples: Examples, seed: int, batch_size: int) -> Any:
    """Endless shuffled batches of float32 pictures in -1..1 and labels, the same ones for the same seed."""
    pictures, labels = tf.constant(examples.pictures), tf.constant(examples.labels)

    def batch(step: Any, chosen: Any) -> tuple[Any, Any]:
        return _augment(tf.gather(pictures, chosen), tf.stack([tf.cast(seed, tf.int64), step])), tf.gather(
            labels, chosen
        )

    order = tf.data.Dataset.range(len(examples.labels)).shuffle(len(examples.labels), seed=seed).repeat()
    numbered = order.batch(batch_size, drop_remainder=True).enumerate()
    return numbered.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _augment(pictures: Any, seed: Any) -> Any:
    """The paper's augmentation on a batch, uint8 to float32 in -1..1: patch, flips, turns, light and colour."""
    count, side = tf.shape(pictures)[0], pictures.shape[1]
    seeds = iter(tf.unstack(tf.random.split(seed, 10)))

    def draw(low: float, high: float, *shape: int) -> Any:
        return tf.random.stateless_uniform([count, *shape], next(seeds), low, high)

    x = tf.image.crop_and_resize(tf.cast(pictures, tf.float32) / 255.0, _boxes(draw), tf.range(count), (side, side))
    x = tf.where(draw(0, 1, 1, 1, 1) < 0.5, tf.transpose(x, [0, 2, 1, 3]), x)
    x = tf.image.adjust_hue(x, tf.random.stateless_uniform([], next(seeds), -0.1, 0.1))
    grey = tf.reduce_mean(x, axis=3, keepdims=True)
    x = grey + (x - grey) * draw(0.5, 1.5, 1, 1, 1)
    level = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
    x = level + (x - level) * draw(0.6, 1.4, 1, 1, 1) + draw(-32 / 255, 32 / 255, 1, 1, 1)
    return tf.clip_by_value(x, 0.0, 1.0) * 2.0 - 1.0


def _boxes(draw: Callable[..., Any]) -> Any:
    """Random square patches of 0.85 to 1 of the side, half of them flipped up-down, half left-right."""
    side = draw(0.85, 1.0)
    top, left = draw(0.0, 1.0) * (1.0 - side), draw(0.0, 1.0) * (1.0 - side)
    y, x = tf.stack([top, top + side], 1), tf.stack([left, left + side], 1)
    y = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(y, [1]), y)
    x = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(x, [1]), x)
    return tf.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1)

"""Images that the smallest network can learn in a few steps: each class is a colour in noise."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tiny import TINY

from marcod.domain import CLASSES
from marcod.fitting import batches, recipes
from marcod.fitting.batches import Images
from marcod.fitting.recipes import Recipe

IN_TF_DATA = "ignore:Even though the `tf.config:UserWarning"
"""What TensorFlow says of its input pipeline, which it does not run eagerly."""

COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
HEADS = replace(TINY, auxiliary=True)
"""The smallest network with its training head."""


def coloured(count: int, side: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Images uint8 [count, side, side, 3] and their class indices, the classes in turn."""
    labels = np.arange(count) % len(CLASSES)
    noise = np.random.default_rng(seed).integers(0, 40, (count, side, side, 3), np.uint8)
    return noise + COLOURS[labels][:, np.newaxis, np.newaxis], labels


def learnable(count: int) -> Images:
    """The same as training takes them."""
    pixels, labels = coloured(count, 90)
    return batches.in_memory(pixels, batches.one_hot(labels, len(CLASSES)))


def paper(*, epochs: int, batch_size: int = 8) -> Recipe:
    """The paper's recipe for the smallest network."""
    return recipes.scratch(TINY.input_size, epochs=epochs, batch_size=batch_size, quarter_turns=True)

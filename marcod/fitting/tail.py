"""Training of a network's last layers on grids of features, which the layers before them gave once.

A grid costs as much as scoring its image; a pass over the last layers costs a tenth of that. So a network is trained
in minutes without a GPU. Batch normalization keeps its statistics, since those of a few thousand images are no better.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from marcod.fitting.checkpoint import Weights
from marcod.model import backend, network
from marcod.model.efficientnet import GRID, EfficientNetLite

GRID_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class TailRecipe:
    """Numbers of a training of the last layers: AdamW with a rate that rises, then falls along a cosine."""

    epochs: int = 4
    batch_size: int = 32
    rate: float = 5e-4
    warmup_steps: int = 50
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05


def extract_grids(
    architecture: EfficientNetLite, weights: Mapping[str, NDArray[np.float32]], images: Iterable[NDArray[np.float32]]
) -> NDArray[np.float16]:
    """Compute the grids [n, side, side, channels] of prepared images, float32 [size, size, 3] each."""
    extract = network.compiled_until(architecture, weights, GRID, GRID_BATCH)
    given, parts = iter(images), []
    while batch := list(islice(given, GRID_BATCH)):
        # Padded, so that there is one shape to compile.
        full = np.stack(batch + [batch[0]] * (GRID_BATCH - len(batch)))
        parts.append(extract(full)[: len(batch)].astype(np.float16))
    return np.concatenate(parts)


def train_tail(
    architecture: EfficientNetLite,
    weights: Mapping[str, NDArray[np.float32]],
    grids: NDArray[np.float16],
    targets: NDArray[np.float32],
    recipe: TailRecipe,
    *,
    seed: int,
    done: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Weights:
    """Train the last block, the last convolution and the head on grids with soft labels [n, classes].

    ``weights`` are the whole network's; the result is the whole network's too. ``done`` is called after each epoch
    with their number and the loss.
    """
    keras.utils.set_random_seed(seed)
    tail = network.build_tail(architecture)
    own = {**network.variables(tail), **{n: v for n, v in weights.items() if n in network.variable_shapes(tail)}}
    network.set_variables(tail, own)
    for layer in tail.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    steps = max(1, len(grids) // recipe.batch_size)
    optimizer = _optimizer(recipe, steps)
    optimizer.build(tail.trainable_variables)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    tail.compile(optimizer, loss, jit_compile=backend.training_compiler())
    for epoch in range(recipe.epochs):
        data = _batches(grids, targets, recipe.batch_size, steps, (seed, epoch))
        found = tail.fit(data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        done(epoch + 1, float(found.history["loss"][0]))
    return {**weights, **network.variables(tail)}


def _optimizer(recipe: TailRecipe, steps: int) -> Any:
    total = recipe.epochs * steps
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.rate / 10, total, warmup_target=recipe.rate, warmup_steps=min(recipe.warmup_steps, total // 10),
        alpha=0.01,
    )  # fmt: skip
    optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _batches(
    grids: NDArray[np.float16], targets: NDArray[np.float32], size: int, steps: int, seed: tuple[int, int]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    order = np.random.default_rng(seed).permutation(len(grids))
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        yield grids[chosen].astype(np.float32), targets[chosen]


def logits(
    architecture: EfficientNetLite, weights: Mapping[str, NDArray[np.floating[Any]]], grids: NDArray[np.float16]
) -> NDArray[np.float32]:
    """Return the logits float32 [n, classes] of grids."""
    tail = network.build_tail(architecture)
    network.set_variables(tail, {name: weights[name] for name in network.variable_shapes(tail)})
    tail.compile(jit_compile=backend.training_compiler())
    parts = (grids[start : start + 256] for start in range(0, len(grids), 256))
    return np.concatenate([np.asarray(tail.predict_on_batch(part.astype(np.float32))) for part in parts])

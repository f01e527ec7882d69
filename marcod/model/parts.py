"""Parts of a batch that run at once, each on one thread of a CPU and all of one shape."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

Scoring = Callable[[np.ndarray], np.ndarray]
"""Function from float32 [n, size, size, 3] to logits [n, classes]."""

PIXELS: Final = 2 * 599 * 599
"""Pixels that one thread on a CPU takes at a time: 2 images of the published network.

Larger parts leave its caches, and one call for all leaves cores idle between operations: on two cores, parts in two
threads predict a third more a second than 8 or 16 images in one call (docs/benchmarks.md).
"""

IMAGES: Final = 4
"""Images that one thread on a CPU takes at most: of a smaller network, 14 took one and a half times as long as 4."""


def size(side: int, batch_size: int | None) -> int:
    """Return how many images of so many pixels a side one thread takes at a time."""
    return min(max(1, PIXELS // side**2), IMAGES, batch_size or IMAGES)


def threads() -> int:
    """Return the processor's threads that this process may use."""
    return len(os.sched_getaffinity(0))


def filled(score: Scoring, shape: Callable[[int], int]) -> Scoring:
    """Pad batches with black images to ``shape(n)``."""

    def score_filled(batch: np.ndarray) -> np.ndarray:
        wanted = shape(len(batch))
        if wanted == len(batch):
            return score(batch)
        full = np.zeros((wanted, *batch.shape[1:]), batch.dtype)
        full[: len(batch)] = batch
        return score(full)[: len(batch)]

    return score_filled


def at_once(score: Scoring, part: int) -> Scoring:
    """Split a batch into parts that run at once; frameworks release the GIL meanwhile."""
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="predict")

    def score_all(batch: np.ndarray) -> np.ndarray:
        if len(batch) <= part:
            return score(batch)
        pieces = [batch[start : start + part] for start in range(0, len(batch), part)]
        return np.concatenate(list(pool.map(score, pieces)))

    return score_all

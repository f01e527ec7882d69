"""Parts of a batch that run at once, each on one thread of a CPU and all of one shape."""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

Images = np.ndarray | Sequence[np.ndarray]
"""Prepared images, float32 [n, size, size, 3], in one array or apart."""

Scoring = Callable[[Images], np.ndarray]
"""Function from prepared images to logits [n, classes]."""

ALIGNED: Final = 64
"""Bytes of which the place of an array is a multiple, where TensorFlow takes it without a copy."""

_of_thread = threading.local()

PIXELS: Final = 2 * 599 * 599
"""Pixels that one thread on a CPU takes at a time: 2 images of the published network.

Larger parts leave its caches, and one call for all leaves cores idle between operations: on two cores, parts in two
threads predict a third more a second than 8 or 16 images in one call (docs/benchmarks.md).
"""

IMAGES: Final = 4
"""Images that one thread on a CPU takes at most: of a smaller network, 14 took one and a half times as long as 4."""


def size(side: int, batch_size: int | None, pixels: int = PIXELS) -> int:
    """Return how many images of so many pixels a side one thread takes at a time."""
    return min(max(1, pixels // side**2), IMAGES, batch_size or IMAGES)


def threads() -> int:
    """Return the processor's threads that this process may use."""
    return len(os.sched_getaffinity(0))


def laid(images: Images) -> np.ndarray:
    """Lay images into one array, which is valid until this thread's next call; what lies so already stays.

    A thread keeps the memory: the kernel takes longer to find new pages than to copy.
    """
    if isinstance(images, np.ndarray):
        return images
    if len(images) == 1:
        return images[0][np.newaxis]
    shape = images[0].shape
    room: np.ndarray | None = getattr(_of_thread, "room", None)
    if room is None or len(room) < len(images) or room.shape[1:] != shape:
        room = _of_thread.room = aligned((len(images), *shape), np.float32)
    return np.stack(images, out=room[: len(images)])


def aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Return new memory that begins at a multiple of :data:`ALIGNED`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNED, np.uint8)
    return room[-room.ctypes.data % ALIGNED :][:size].view(dtype).reshape(shape)


def filled(score: Callable[[np.ndarray], np.ndarray], shape: Callable[[int], int]) -> Scoring:
    """Pad batches with black images to ``shape(n)``."""

    def score_filled(images: Images) -> np.ndarray:
        batch = laid(images)
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

    def score_all(batch: Images) -> np.ndarray:
        if len(batch) <= part:
            return score(batch)
        pieces = [batch[start : start + part] for start in range(0, len(batch), part)]
        return np.concatenate(list(pool.map(score, pieces)))

    return score_all

"""The smallest member of the family, random weights for it, and images made from a seed."""

import io

import numpy as np
from PIL import Image

from marcod.model import weights as arrays
from marcod.model.architecture import Architecture
from marcod.model.inception import Inception

TINY = Inception(input_size=75, classes=4, entry=False, width=0.05, auxiliary=False)


def jpeg(seed: int, width: int = 120, height: int = 100) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def random_weights(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Well-conditioned numbers, as if trained, so that different images get different scores."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in arrays.shapes(architecture).items():
        if name.endswith("weights"):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif name.endswith("moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        weights[name] = value.astype(np.float32)
    return weights

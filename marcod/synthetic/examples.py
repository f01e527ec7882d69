"""Single drops as files, to train and try a model without photographs."""

import io
from typing import Final

from PIL import Image

from marcod.domain import DropClass
from marcod.synthetic.fields import rng_of
from marcod.synthetic.image import render
from marcod.synthetic.sampling import random_scene
from marcod.synthetic.scene import scene_label

SIZES: Final = ((330, 270), (360, 270), (330, 270), (320, 256), (660, 540))
"""Width and height by seed; imagers' images are larger, which would only take longer to draw."""
QUALITIES: Final = (70, 96)
"""Bounds of the JPEG quality, drawn by seed."""


def drop_jpeg_of(task: tuple[int, DropClass | None]) -> tuple[bytes, DropClass]:
    """:func:`drop_jpeg` of a seed and a class in one, for pools of processes."""
    return drop_jpeg(*task)


def drop_jpeg(seed: int, label: DropClass | None = None) -> tuple[bytes, DropClass]:
    """One synthetic drop as an imager would write it, and its true class; drawn at its natural rate when not given."""
    scene = random_scene(seed, label)
    quality = int(rng_of(seed, 40).integers(*QUALITIES))
    buffer = io.BytesIO()
    Image.fromarray(render(scene, SIZES[seed % len(SIZES)])).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), scene_label(scene)

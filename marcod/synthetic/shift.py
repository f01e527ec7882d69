"""An imager that no shipped model has seen: another lamp, other optics, another plate."""

from dataclasses import replace
from typing import Final

from marcod.synthetic.fields import rng_of
from marcod.synthetic.scene import Scene

TINT: Final = (0.6, 1.0, 1.2)
DEFOCUS: Final = (0.001, 0.0035)
"""Blur radius in image heights that comes on top; from 0.014 on an image counts as out of focus."""


def another_imager(scene: Scene) -> Scene:
    """Return the drop on an imager with a blue-green lamp, softer focus, more noise and a smaller, lower well."""
    rng = rng_of(scene.seed, 50)
    red, green, blue = (channel * gain for channel, gain in zip(scene.well.colour, TINT, strict=True))
    well = replace(
        scene.well,
        colour=(red, green, blue),
        radius=scene.well.radius * float(rng.uniform(0.74, 0.84)),
        centre=(scene.well.centre[0], scene.well.centre[1] + 0.05),
        variant=scene.well.variant + 1,
    )
    camera = replace(
        scene.camera,
        exposure=scene.camera.exposure * float(rng.uniform(0.5, 0.7)),
        defocus=scene.camera.defocus + float(rng.uniform(*DEFOCUS)),
        grey=False,
        noise=scene.camera.noise * 1.5,
        vignette=min(0.75, scene.camera.vignette + 0.25),
    )
    return replace(scene, well=well, camera=camera)

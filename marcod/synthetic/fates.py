"""The fate of a drop over weeks: its contents, when they start, how fast they grow."""

import math
from dataclasses import replace
from typing import Final

import numpy as np

from marcod.synthetic.fields import rng_of
from marcod.synthetic.looks import random_camera
from marcod.synthetic.sampling import (
    empty_scene,
    random_crystals,
    random_film,
    random_oil,
    random_precipitate,
)
from marcod.synthetic.scene import VISIBLE_PRECIPITATE, Camera, Growth, ImagerStyle, Scene

# Of the drops without crystals: the shares of MARCO's other classes, rounded.
_CLEAR: Final = 0.40
_PRECIPITATED: Final = 0.53
_DISSOLVING: Final = 0.12


def random_fate(seed: int, imager: ImagerStyle, hit_rate: float, last_d: float, lens: int) -> Scene:
    """Draw a drop and its changes until ``last_d`` at random; ``lens`` picks the look of its well."""
    # The story has a generator of its own, so that it stays the same when drops are drawn in another way.
    story, looks = rng_of(seed, 21), rng_of(seed, 23)
    scene = empty_scene(looks, seed, imager, variant=lens)
    span = max(last_d, 1.0)
    if story.random() < hit_rate:
        return _with_crystals(scene, story, looks, span)
    kind, growth = story.random(), _early(story, span)
    if kind < _CLEAR:
        return scene
    if kind < _CLEAR + _PRECIPITATED:
        amount = float(story.uniform(VISIBLE_PRECIPITATE, 1.4))
        return replace(scene, precipitate=(random_precipitate(looks, amount, growth),))
    if kind < 0.965:
        return replace(scene, oil=random_oil(looks, growth))
    if kind < 0.985:
        return replace(scene, film=random_film(looks, Growth(span * float(story.uniform(0.2, 0.8)), span / 8)))
    return replace(scene, drop=None)


def reshoot(scene: Scene, shot: int) -> Camera:
    """Return the camera at one inspection: a little off in light, focus and position from the last time."""
    rng = rng_of(scene.seed, 22, shot)
    fresh = random_camera(rng, scene.imager, shot)
    shift = (float(rng.normal(0, 0.003)), float(rng.normal(0, 0.003)))
    steady = scene.camera.exposure * float(rng.normal(1.0, 0.015))
    usual = scene.camera
    fresh = replace(fresh, vignette=usual.vignette, grey=usual.grey, rows=None, jpeg_quality=None)
    return replace(fresh, exposure=steady, shift=shift)


def _early(rng: np.random.Generator, span: float) -> Growth:
    """Precipitate and oil mostly come at once, sometimes days later."""
    start = -0.5 if rng.random() < 0.7 else span * float(rng.uniform(0.05, 0.5))
    return Growth(start, math.exp(float(rng.uniform(-1.5, 1.0))))


def _with_crystals(scene: Scene, story: np.random.Generator, looks: np.random.Generator, span: float) -> Scene:
    start = span * float(story.uniform(0.03, 0.6))
    tau = span * float(story.uniform(0.05, 0.25))
    dissolve = start + span * float(story.uniform(0.2, 0.5)) if story.random() < _DISSOLVING else None
    scene = replace(scene, crystals=(random_crystals(looks, scene, Growth(start, tau, dissolve)),))
    if story.random() < 0.3:
        part = random_precipitate(looks, float(story.uniform(0.05, 0.5)), _early(story, span))
        scene = replace(scene, precipitate=(part,))
    return scene

"""Random scenes of each class, with the frequency of each feature.

The boundaries between classes are meant to be as unclear as in the laboratory: clear drops carry fibres, bubbles
and haze, crystals may be small, faint or hidden in precipitate or under skins.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np

from marcod.domain import DropClass
from marcod.synthetic.fields import rng_of
from marcod.synthetic.looks import between, new_seed, random_camera, random_debris, random_drop, random_well
from marcod.synthetic.scene import (
    FOAM,
    VISIBLE_PRECIPITATE,
    Crystals,
    Film,
    Grain,
    Growth,
    Habit,
    ImagerStyle,
    Oil,
    Precipitate,
    Scene,
)

# The shares of the MARCO training set (Bruno et al., PLOS ONE 2018, 10.1371/journal.pone.0198883), rounded.
PREVALENCE: Final = {
    DropClass.CLEAR: 0.34,
    DropClass.CRYSTALS: 0.13,
    DropClass.OTHER: 0.05,
    DropClass.PRECIPITATE: 0.48,
}
AGE_D: Final = 14.0
_TINT: Final = (0.6, 1.0, 1.2)
"""Gains of red, green and blue by the lamp of :func:`another_imager`."""
_DEFOCUS: Final = (0.001, 0.0035)
"""Blur radius in image heights that :func:`another_imager` adds; from 0.014 on an image counts as out of focus."""
_SIZES: Final = {
    Habit.MICRO: (0.011, 0.026),
    Habit.NEEDLE: (0.06, 0.4),
    Habit.SHEAF: (0.08, 0.32),
    Habit.URCHIN: (0.08, 0.36),
    Habit.PRISM: (0.05, 0.34),
    Habit.PLATE: (0.04, 0.3),
    Habit.BIPYRAMID: (0.045, 0.24),
    Habit.WEDGE: (0.045, 0.2),
    Habit.CUBE: (0.045, 0.26),
    Habit.HEXAGON: (0.045, 0.22),
}
_COUNTS: Final = {
    Habit.MICRO: (20, 140),
    Habit.NEEDLE: (2, 90),
    Habit.SHEAF: (1, 8),
    Habit.URCHIN: (1, 9),
}
_THIN: Final = (Habit.NEEDLE, Habit.SHEAF, Habit.URCHIN)
_SOLIDS: Final = (1, 100)
_COVERED: Final = 0.55
"""Share of the drop that crystals cover at most, as if none overlapped."""

Rng = np.random.Generator


def random_scene(seed: int, label: DropClass | None = None, imager: ImagerStyle | None = None) -> Scene:
    """Draw a scene of a class on an imager; each is drawn at its natural rate when not given.

    One seed on one imager shows the same well, drop outline and dust under every class, so keep the seeds of
    training and validation apart.
    """
    rng = rng_of(seed, 20)
    imagers, labels = list(ImagerStyle), list(PREVALENCE)
    picked_imager = imagers[int(rng.integers(len(imagers)))]
    picked_label = labels[int(rng.choice(len(labels), p=list(PREVALENCE.values())))]
    imager, label = imager or picked_imager, label or picked_label
    scene = empty_scene(rng, seed, imager)
    fill = {
        DropClass.CLEAR: _clear,
        DropClass.CRYSTALS: _crystals,
        DropClass.OTHER: _other,
        DropClass.PRECIPITATE: _precipitated,
    }[label]
    return fill(scene, rng)


def empty_scene(rng: Rng, seed: int, imager: ImagerStyle, variant: int | None = None) -> Scene:
    """Draw a well with a clear drop, dust and an ordinary camera; ``variant`` is the look of the well."""
    well = random_well(rng, imager, variant)
    drop, debris = random_drop(rng, imager, well), random_debris(rng)
    return Scene(imager, seed, AGE_D, well, drop, debris=debris, camera=random_camera(rng, imager))


def _clear(scene: Scene, rng: Rng) -> Scene:
    if rng.random() < 0.2:
        haze = random_precipitate(rng, float(rng.uniform(0.02, VISIBLE_PRECIPITATE * 0.6)))
        return replace(scene, precipitate=(replace(haze, grain=Grain.SMOOTH, relief=0.0),))
    return scene


def random_crystals(rng: Rng, scene: Scene, growth: Growth | None = None) -> Crystals:
    """Draw a group of crystals that will be visible when grown."""
    habit = list(Habit)[int(rng.integers(len(Habit)))]
    size, count = _sizes(rng, scene, habit)
    many = min(1.0, math.log(count + 1) / 3.0)
    return Crystals(
        habit,
        count,
        size,
        centre=(float(rng.uniform(-0.5, 0.5)) * (1 - 0.8 * many), float(rng.uniform(-0.5, 0.5)) * (1 - 0.8 * many)),
        spread=float(rng.uniform(0.3 + 0.2 * many, 0.95)) * (0.4 + 0.6 * many),
        aspect=float(rng.uniform(0, 1)),
        contrast=max(between(rng, 0.75 if habit in _THIN else 0.55, 0.95), min(0.95, 0.03 / size)),
        rim=between(rng, 0.025, 0.12),
        opening=between(rng, 1.2, 7.0),
        at_edge=float(rng.choice([0.0, 0.2, 0.8], p=[0.5, 0.35, 0.15])),
        colour=_hue(rng, scene),
        growth=growth or Growth(0.0, AGE_D / 5),
        seed=new_seed(rng),
    )


def _sizes(rng: Rng, scene: Scene, habit: Habit) -> tuple[float, int]:
    """Return the largest member's length, large enough for the camera to resolve, and how many there is room for."""
    size, count = between(rng, *_SIZES[habit]), round(between(rng, *_COUNTS.get(habit, _SOLIDS)))
    radius = min(scene.drop.radius, 0.5) if scene.drop else 0.2
    if scene.camera.rows is not None:
        size = max(size, (4.0 if habit is Habit.MICRO else 22.0 if habit in _THIN else 11.0) / scene.camera.rows)
    if size > radius * 0.9:
        size, count = radius * 0.9, min(count, 3)
    if habit not in (Habit.MICRO, Habit.NEEDLE):
        count = max(1, min(count, round(_COVERED * 4 * (radius / size) ** 2)))
    return size, count


def _hue(rng: Rng, scene: Scene) -> tuple[float, float, float]:
    """Return the tint of birefringence, strong where the imager has a polariser."""
    vivid = 0.04 + 0.5 * scene.well.polariser
    red, green, blue = rng.uniform(-1, 1, 3) * vivid * (1.0 if rng.random() < 0.5 else 0.15)
    return float(red), float(green), float(blue)


def random_precipitate(rng: Rng, amount: float, growth: Growth | None = None) -> Precipitate:
    """Draw a precipitate of a given final amount: smooth clouds, fine or coarse grains, clumps, networks."""
    grain = list(Grain)[int(rng.choice(5, p=[0.26, 0.3, 0.18, 0.18, 0.08]))]
    cells = between(rng, 28, 90) if grain in (Grain.CLUMPED, Grain.NETWORK) else between(rng, 80, 240)
    ring = float(rng.choice([0.0, rng.uniform(0.3, 0.9), rng.uniform(-0.9, -0.3)], p=[0.55, 0.25, 0.2]))
    return Precipitate(
        grain,
        amount,
        cells,
        patchy=float(rng.uniform(0.05, 0.5)),
        ring=ring,
        brown=float(rng.uniform(0, 1)) if rng.random() < 0.6 else 0.1,
        relief=0.0 if grain is Grain.SMOOTH else between(rng, 0.1, 0.6),
        growth=growth or Growth(-1.0, 0.5),
        seed=new_seed(rng),
    )


def _crystals(scene: Scene, rng: Rng) -> Scene:
    groups = tuple(random_crystals(rng, scene) for _ in range(1 if rng.random() < 0.8 else 2))
    scene = replace(scene, crystals=groups)
    if rng.random() < 0.15:
        scene = replace(scene, crystals=tuple(map(_bold, groups)), film=random_film(rng))
    elif rng.random() < 0.35:
        # In a thick precipitate only large, clear-cut crystals are seen at all, and so labelled.
        part = random_precipitate(rng, between(rng, 0.05, 0.5))
        scene = replace(scene, crystals=tuple(map(_bold, groups)), precipitate=(part,))
    return scene


def _bold(group: Crystals) -> Crystals:
    size = max(group.size, 0.016 if group.habit is Habit.MICRO else 0.08)
    return replace(group, contrast=max(group.contrast, 0.7), size=size)


def _precipitated(scene: Scene, rng: Rng) -> Scene:
    amount = between(rng, VISIBLE_PRECIPITATE * 1.15, 1.5)
    parts = [random_precipitate(rng, amount)]
    if rng.random() < 0.3:
        parts.append(random_precipitate(rng, float(rng.uniform(0.1, 0.6))))
    return replace(scene, precipitate=tuple(parts))


def _other(scene: Scene, rng: Rng) -> Scene:
    kind = int(rng.choice(7, p=[0.36, 0.31, 0.08, 0.13, 0.03, 0.03, 0.06]))
    if kind == 0:
        return replace(scene, oil=random_oil(rng))
    if kind == 1:
        return replace(scene, film=random_film(rng))
    if kind == 2:
        return replace(scene, drop=None, debris=replace(scene.debris, fibres=int(rng.poisson(0.8))))
    if kind == 3:
        return replace(scene, debris=replace(scene.debris, bubbles=int(rng.integers(FOAM, 32))))
    spoiled = {
        4: replace(scene.camera, exposure=float(rng.uniform(0.1, 0.4)), failed=True),
        5: replace(scene.camera, exposure=float(rng.uniform(1.6, 2.6)), failed=True),
        6: replace(scene.camera, defocus=float(rng.uniform(0.014, 0.05)), failed=True),
    }[kind]
    inside = random_precipitate(rng, float(rng.uniform(0.1, 0.8)))
    return replace(scene, camera=spoiled, precipitate=(inside,) if rng.random() < 0.5 else ())


def random_oil(rng: Rng, growth: Growth | None = None) -> Oil:
    """Phase separation, from a fine emulsion to a few large droplets."""
    size = between(rng, 0.005, 0.04)
    count = int(min(200, max(8, rng.uniform(0.05, 0.2) / size**1.6)))
    contrast, dark = between(rng, 0.35, 0.95), between(rng, 0.12, 0.5)
    return Oil(count, size, contrast, dark, growth or Growth(-1.0, 0.5), new_seed(rng))


def random_film(rng: Rng, growth: Growth | None = None) -> Film:
    """Draw a skin, from faint folds to a thick crumpled one."""
    crumple = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.5 else 0.0
    return Film(float(rng.uniform(0.45, 1.1)), between(rng, 3, 12), crumple, growth or Growth(-1.0, 2.0), new_seed(rng))


def another_imager(scene: Scene) -> Scene:
    """Return the drop on an imager that no shipped model has seen.

    It has a blue-green lamp, softer focus, more noise and a smaller, lower well.
    """
    rng = rng_of(scene.seed, 50)
    red, green, blue = (channel * gain for channel, gain in zip(scene.well.colour, _TINT, strict=True))
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
        defocus=scene.camera.defocus + float(rng.uniform(*_DEFOCUS)),
        grey=False,
        noise=scene.camera.noise * 1.5,
        vignette=min(0.75, scene.camera.vignette + 0.25),
    )
    return replace(scene, well=well, camera=camera)

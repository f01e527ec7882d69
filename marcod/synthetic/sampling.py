"""Random scenes, with the frequency of each feature per imager and class.

The boundaries between classes are meant to be as unclear as in the laboratory: clear drops carry fibres and
haze, crystals may be small, faint or hidden in precipitate.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np

from marcod.domain import DropClass
from marcod.synthetic.fields import rng_of
from marcod.synthetic.scene import (
    VISIBLE_PRECIPITATE,
    Camera,
    Colour,
    Crystals,
    Debris,
    Drop,
    Film,
    Grain,
    Growth,
    Habit,
    Imager,
    Oil,
    Precipitate,
    Scene,
    Well,
)

# The shares of the MARCO training set (Bruno et al., PLOS ONE 2018, 10.1371/journal.pone.0198883), rounded.
PREVALENCE: Final = {
    DropClass.CLEAR: 0.34,
    DropClass.CRYSTALS: 0.13,
    DropClass.OTHER: 0.05,
    DropClass.PRECIPITATE: 0.48,
}
AGE_D: Final = 14.0
_SIZES_AND_COUNTS: Final = {
    Habit.MICRO: ((0.010, 0.024), (25, 220)),
    Habit.NEEDLE: ((0.05, 0.34), (2, 70)),
    Habit.SHEAF: ((0.06, 0.30), (1, 8)),
    Habit.URCHIN: ((0.05, 0.26), (1, 9)),
    Habit.ROD: ((0.04, 0.30), (1, 25)),
    Habit.PLATE: ((0.035, 0.26), (1, 18)),
    Habit.BLOCK: ((0.03, 0.26), (1, 16)),
}
"""Bounds of the length of a crystal, in image heights, and of the number in a group."""

Rng = np.random.Generator


def random_scene(seed: int, label: DropClass | None = None, imager: Imager | None = None) -> Scene:
    """Draw a scene of a class on an imager; each is drawn at its natural rate when not given.

    One seed on one imager shows the same well, drop outline and dust under every class, so keep the seeds of
    training and validation apart.
    """
    rng = rng_of(seed, 20)
    imagers, labels = list(Imager), list(PREVALENCE)
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


def empty_scene(rng: Rng, seed: int, imager: Imager, variant: int | None = None) -> Scene:
    """Draw a well with a clear drop, dust and an ordinary camera; ``variant`` is the look of the well."""
    well = _well(rng, imager, variant)
    drop, debris = _drop(rng, imager, well), _debris(rng, imager)
    return Scene(imager, seed, AGE_D, well, drop, debris=debris, camera=random_camera(rng, imager))


def random_camera(rng: Rng, imager: Imager, shot: int = 0) -> Camera:
    """Draw an ordinary exposure: nearly in focus, nearly well lit."""
    return Camera(
        exposure=float(rng.normal(1.0, 0.07 if imager is not Imager.HWI else 0.12)),
        defocus=float(min(0.006, rng.exponential(0.0014))),
        noise=_pick(rng, 0.4, 2.2),
        vignette=float(rng.uniform(0.0, 0.35)),
        jpeg_quality=int(rng.integers(55, 96)) if rng.random() < 0.5 else None,
        shot=shot,
    )


def _pick(rng: Rng, low: float, high: float) -> float:
    """Log-uniform: as often between 1 and 2 as between 2 and 4."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _seed(rng: Rng) -> int:
    return int(rng.integers(2**31))


def _well(rng: Rng, imager: Imager, variant: int | None) -> Well:
    drawn = int(rng.integers(3))
    variant = drawn if variant is None else variant % 3
    jitter = (float(rng.normal(0, 0.018)), float(rng.normal(0, 0.012)))
    if imager is Imager.FORMULATRIX:
        grey = float(rng.uniform(160, 196))
        colour: Colour = (grey, grey * float(rng.uniform(1.02, 1.08)), grey * float(rng.uniform(1.06, 1.22)))
        return Well(_seed(rng), (jitter[0] - 0.02, jitter[1] - 0.005), float(rng.uniform(0.43, 0.462)), 0, colour)
    if imager is Imager.RIGAKU:
        grey = float(rng.uniform(128, 152))
        colour = (grey, grey * 0.957, grey * float(rng.uniform(0.76, 0.82)))
        x = (0.2, 0.14, 0.11)[variant] + jitter[0]
        return Well(_seed(rng), (x, jitter[1] - 0.02), float(rng.uniform(0.49, 0.54)), variant, colour)
    grey = float(rng.uniform(115, 185))
    warm = float(rng.uniform(-0.04, 0.06))
    colour = (grey * (1 + warm), grey, grey * (1 - warm))
    return Well(_seed(rng), jitter, float(rng.uniform(0.42, 0.56)), variant, colour)


def _drop(rng: Rng, imager: Imager, well: Well) -> Drop:
    wobble = _pick(rng, 0.012, 0.12) if imager is not Imager.HWI else _pick(rng, 0.005, 0.03)
    radius = {
        Imager.FORMULATRIX: _pick(rng, 0.19, 0.38),
        Imager.RIGAKU: float(np.clip(rng.normal(0.222, 0.032), 0.14, 0.33)),
        Imager.HWI: float(rng.uniform(0.5, 0.88)) * well.radius,
    }[imager]
    if imager is Imager.FORMULATRIX and rng.random() < 0.35:
        radius, wobble = well.radius * 1.12, 0.01
    harmonics = tuple(
        (k, float(rng.normal(0, wobble / (k - 1))), float(rng.uniform(0, 2 * math.pi))) for k in (2, 3, 4, 5)
    )
    room = max(0.0, well.radius * (0.8 if imager is Imager.RIGAKU else 0.93) - radius)
    angle, away = rng.uniform(0, 2 * math.pi), room * math.sqrt(rng.uniform(0, 0.8))
    centre = (well.centre[0] + float(math.cos(angle) * away), well.centre[1] + float(math.sin(angle) * away * 0.6))
    lens = {
        Imager.FORMULATRIX: _pick(rng, 0.02, 0.4),
        Imager.RIGAKU: float(rng.beta(1.3, 1.6)) * 0.95,
        Imager.HWI: _pick(rng, 0.02, 0.3),
    }[imager]
    return Drop(
        centre=centre,
        radius=radius,
        harmonics=harmonics,
        tips=_tips(rng, imager) if radius < well.radius else (),
        lens=lens,
        tilt=float(rng.uniform(0.12, 0.5)) if imager is Imager.RIGAKU else float(rng.uniform(-0.06, 0.06)),
        light=float(rng.normal(1.05, 0.3)),
        rim=float(rng.uniform(0.0, 0.17)) if imager is Imager.RIGAKU else float(rng.uniform(0.15, 0.75)),
        haze=float(rng.uniform(0.0, 0.12)),
        satellites=int(rng.poisson(0.35)),
        seed=_seed(rng),
    )


def _tips(rng: Rng, imager: Imager) -> tuple[tuple[float, float, float], ...]:
    """Corners left by the dispensing needle."""
    if imager is Imager.HWI:
        return ()
    rate = 1.6 if imager is Imager.RIGAKU else 0.4
    at = [math.pi / 2, -math.pi / 2.6]
    tips = []
    for index in range(min(4, int(rng.poisson(rate)))):
        angle = float(rng.normal(at[index % 2], 0.45))
        tips.append((angle, float(rng.uniform(0.04, 0.22)), float(rng.uniform(0.06, 0.3))))
    return tuple(tips)


def _debris(rng: Rng, imager: Imager) -> Debris:
    return Debris(
        dust=int(rng.poisson(9 if imager is not Imager.HWI else 4)),
        fibres=int(rng.poisson(0.22)),
        scratches=int(rng.poisson(0.25)),
        bubbles=int(rng.poisson(0.18)),
        seed=_seed(rng),
    )


def _clear(scene: Scene, rng: Rng) -> Scene:
    if rng.random() < 0.22:
        haze = random_precipitate(rng, float(rng.uniform(0.02, VISIBLE_PRECIPITATE * 0.65)))
        scene = replace(scene, precipitate=(haze,))
    return scene


def random_crystals(rng: Rng, scene: Scene, growth: Growth | None = None) -> Crystals:
    """Draw a group of crystals that will be visible when grown."""
    habit = list(Habit)[int(rng.integers(len(Habit)))]
    sizes, counts = _SIZES_AND_COUNTS[habit]
    size = _pick(rng, *sizes)
    count = round(_pick(rng, *counts))
    many = min(1.0, math.log(count + 1) / 3.0)
    radius = scene.drop.radius if scene.drop else 0.2
    if size > radius * 0.9:
        size, count = radius * 0.9, min(count, 3)
    if habit not in (Habit.MICRO, Habit.NEEDLE):
        count = max(1, min(count, round(0.7 * (radius / size) ** 2 * 2)))
    vivid = {Imager.FORMULATRIX: 0.4, Imager.RIGAKU: 0.07, Imager.HWI: 0.1}[scene.imager]
    hue = rng.uniform(-1, 1, 3) * vivid * (1.0 if rng.random() < 0.6 else 0.15)
    colour = (1 + float(hue[0]), 1 + float(hue[1]), 1 + float(hue[2]))
    return Crystals(
        habit,
        count,
        size,
        centre=(float(rng.uniform(-0.45, 0.45)) * (1 - 0.7 * many), float(rng.uniform(-0.45, 0.45)) * (1 - 0.7 * many)),
        spread=float(rng.uniform(0.3, 0.85)) * (0.4 + 0.6 * many),
        aspect=float(rng.uniform(0, 1)),
        contrast=max(_pick(rng, 0.3, 0.95), min(0.9, (0.007 if habit is Habit.MICRO else 0.028) / size)),
        colour=colour,
        growth=growth or Growth(0.0, AGE_D / 5),
        seed=_seed(rng),
    )


def random_precipitate(rng: Rng, amount: float, growth: Growth | None = None) -> Precipitate:
    """Draw a precipitate of a given final amount."""
    grain = list(Grain)[int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))]
    cells = _pick(rng, 70, 170) if grain is Grain.FINE else _pick(rng, 28, 100)
    ring = float(rng.choice([0.0, rng.uniform(0.3, 0.9), rng.uniform(-0.9, -0.3)], p=[0.55, 0.25, 0.2]))
    return Precipitate(
        grain,
        amount,
        cells,
        patchy=float(rng.uniform(0.05, 0.5)),
        ring=ring,
        brown=float(rng.uniform(0, 1)) if rng.random() < 0.6 else 0.1,
        growth=growth or Growth(-1.0, 0.5),
        seed=_seed(rng),
    )


def _crystals(scene: Scene, rng: Rng) -> Scene:
    groups = tuple(random_crystals(rng, scene) for _ in range(1 if rng.random() < 0.85 else 2))
    scene = replace(scene, crystals=groups)
    if rng.random() < 0.4:
        # In a thick precipitate only large, clear-cut crystals are seen at all, and so labelled.
        groups = tuple(replace(group, contrast=max(group.contrast, 0.5), size=_bold(group)) for group in groups)
        scene = replace(scene, crystals=groups, precipitate=(random_precipitate(rng, _pick(rng, 0.05, 0.55)),))
    return scene


def _bold(group: Crystals) -> float:
    return max(group.size, 0.016 if group.habit is Habit.MICRO else 0.075)


def _precipitated(scene: Scene, rng: Rng) -> Scene:
    amount = _pick(rng, VISIBLE_PRECIPITATE * 1.15, 1.5)
    parts = [random_precipitate(rng, amount)]
    if rng.random() < 0.3:
        parts.append(random_precipitate(rng, float(rng.uniform(0.1, 0.6))))
    return replace(scene, precipitate=tuple(parts))


def _other(scene: Scene, rng: Rng) -> Scene:
    kind = int(rng.choice(6, p=[0.34, 0.26, 0.14, 0.07, 0.07, 0.12]))
    if kind == 0:
        return replace(scene, oil=random_oil(rng))
    if kind == 1:
        return replace(scene, film=random_film(rng))
    if kind == 2:
        return replace(scene, drop=None, debris=replace(scene.debris, fibres=int(rng.poisson(0.8))))
    spoiled = {
        3: replace(scene.camera, exposure=float(rng.uniform(0.1, 0.4)), failed=True),
        4: replace(scene.camera, exposure=float(rng.uniform(1.6, 2.6)), failed=True),
        5: replace(scene.camera, defocus=float(rng.uniform(0.014, 0.05)), failed=True),
    }[kind]
    inside = random_precipitate(rng, float(rng.uniform(0.1, 0.8)))
    return replace(scene, camera=spoiled, precipitate=(inside,) if rng.random() < 0.5 else ())


def random_oil(rng: Rng, growth: Growth | None = None) -> Oil:
    """Phase separation, from a fine emulsion to a few large droplets."""
    size = _pick(rng, 0.005, 0.035)
    count = int(min(260, max(5, rng.uniform(0.03, 0.12) / size**1.6)))
    return Oil(count, size, _pick(rng, 0.2, 0.7), growth or Growth(-1.0, 0.5), _seed(rng))


def random_film(rng: Rng, growth: Growth | None = None) -> Film:
    """Draw a skin, from faint folds to a thick wrinkled one."""
    return Film(float(rng.uniform(0.25, 0.8)), _pick(rng, 4, 16), growth or Growth(-1.0, 2.0), _seed(rng))

"""The plate around the drop: floor, wall, plastic, and the light that falls through.

:func:`backdrop` gives the light coming through the well's floor and how much of each pixel is floor; what is not
floor is covered by the wall. Drawn after 90 Formulatrix and Minstrel photographs; the under-oil wells from their
descriptions.
"""

from dataclasses import dataclass

import numpy as np

from marcod.synthetic.fields import Field, Light, Plane, coloured, fractal, noise, rng_of, smoothstep
from marcod.synthetic.scene import Colour, Imager, Scene, Well


@dataclass(frozen=True)
class Backdrop:
    """``floor`` and ``wall`` are light [3, h, w] in grey levels; ``open`` [h, w] is the floor's share of a pixel."""

    floor: Light
    wall: Light
    open: Field


def backdrop(scene: Scene, plane: Plane) -> Backdrop:
    """Draw the empty well of a scene."""
    looks = {Imager.FORMULATRIX: _round_well, Imager.RIGAKU: _vignetted_well, Imager.HWI: _oil_well}
    return looks[scene.imager](scene.well, plane)


def _superellipse(plane: Plane, centre: tuple[float, float], radii: tuple[float, float], power: float) -> Field:
    """1 on the outline, less inside."""
    x = np.abs((plane.x - np.float32(centre[0])) / np.float32(radii[0])) ** np.float32(power)
    y = np.abs((plane.y - np.float32(centre[1])) / np.float32(radii[1])) ** np.float32(power)
    outline: Field = (x + y) ** np.float32(1.0 / power)
    return outline


def _polarised(plane: Plane, rng: np.random.Generator, colour: Colour, strength: float) -> tuple[Light, Light]:
    """Light through stretched plastic between polarisers: broad patches of blue, yellow and pink.

    Given for the thin floor and for the thick plastic outside the ring.
    """
    bright, warm, pink = (noise(plane, rng, 3) for _ in range(3))

    def through(thickness: float) -> Light:
        light = 1.0 + bright * np.float32(0.085)
        red, violet = warm * np.float32(0.05 * thickness), pink * np.float32(0.02 * thickness)
        channels = [light + red + violet * 0.5, light + red * 0.25 - violet, light - red + violet * 0.5]
        return coloured(colour, np.stack(channels))

    return through(strength), through(-2.6 * strength)


def _round_well(well: Well, plane: Plane) -> Backdrop:
    rng = rng_of(well.seed, 1)
    strength = float(rng.uniform(0.3, 1.25))
    dx, dy, distance = plane.from_point(well.centre)
    inner = distance / np.float32(well.radius)
    floor, plastic = _polarised(plane, rng, well.colour, strength)
    edge_tint = smoothstep(inner, 0.55, 1.0) * noise(plane, rng, 4) * np.float32(0.09 * strength)
    floor = floor * (1.0 + coloured((0.8, 0.1, -0.9), edge_tint))
    # A drop filling the well ends in a meniscus: a thin dark line and a crescent where the wall is seen from inside.
    crescent_at = float(rng.choice([np.pi / 2, np.pi, -np.pi / 2], p=[0.7, 0.2, 0.1]))
    toward = (dx * np.float32(np.cos(crescent_at)) + dy * np.float32(np.sin(crescent_at))) / np.float32(well.radius)
    crescent = np.clip(toward, 0.0, 1.2) ** 6 * np.float32(rng.uniform(0.0, 0.05))
    soft = float(rng.uniform(0.006, 0.03))
    open_ = 1.0 - smoothstep(inner + crescent, 1.0 - soft, 1.0 + soft)
    # Light enters at a slant, so one side of the floor lies in the wall's half shadow.
    shade = rng.uniform(0, 2 * np.pi)
    slant = dx * np.float32(np.cos(shade)) + dy * np.float32(np.sin(shade))
    shadow = smoothstep(inner + slant * np.float32(0.2 / well.radius), 0.97, 1.2) * np.float32(rng.uniform(0.0, 0.9))
    floor = floor * (1.0 - shadow)
    line = np.exp(-(((inner - np.float32(rng.uniform(1.015, 1.04))) / 0.006) ** 2)) * np.float32(rng.uniform(0, 0.25))
    outer = _superellipse(plane, well.centre, (well.radius * 1.36, well.radius * 1.25), 2.7)
    outside = smoothstep(outer, 0.985, 1.02 + 2 * soft)
    plastic = plastic * (0.95 + fractal(plane, rng, 9, 2) * np.float32(0.05))
    dark = coloured((12, 11, 17), 1.0 + 0.14 * fractal(plane, rng, 30, 2)) + line * floor
    dark = dark + coloured((80, 84, 80), _glints(plane, rng, outer))
    return Backdrop(floor, dark + (plastic - dark) * outside, open_)


def _glints(plane: Plane, rng: np.random.Generator, outer: Field) -> Field:
    """Mould marks and burrs of the black ring."""
    band: Field = np.exp(-(((outer - 0.97) / 0.035) ** 2)) * np.float32(rng.uniform(0.3, 1.4))
    return band * smoothstep(noise(plane, rng, 18), 1.9, 3.0)


def _vignetted_well(well: Well, plane: Plane) -> Backdrop:
    rng = rng_of(well.seed, 2)
    square = well.variant != 0
    power = 2.7 if square else 2.05
    radii = (well.radius * 0.95, well.radius * 1.2) if square else (well.radius * 1.08, well.radius * 1.08)
    inner = _superellipse(plane, well.centre, radii, power)
    slope = plane.y * np.float32(-0.16) + plane.x * np.float32(rng.uniform(-0.03, 0.06))
    light = 1.02 + slope + noise(plane, rng, 3) * np.float32(0.012)
    light = light * (1.0 - 0.30 * smoothstep(inner, 0.62, 1.06))
    floor = coloured(well.colour, light)
    floor[2] += plane.y * np.float32(12.0)
    open_ = 1.0 - smoothstep(inner, 0.965 if square else 0.985, 1.05 if square else 1.03)
    ledge = np.float32(well.centre[0] - float(rng.uniform(1.12, 1.22)) * well.radius)
    outer = smoothstep(ledge - plane.x - 0 * plane.y, -0.012, 0.012) if square else smoothstep(inner, 1.29, 1.36)
    left = smoothstep(plane.x + 0 * plane.y, -0.2, -0.5)
    grain = noise(plane, rng, 80).mean(axis=0, keepdims=True) * 3 + fractal(plane, rng, 6, 2) * 0.15
    stripes = noise(plane, rng, 40)[plane.shape[0] // 2][None, :] if square else np.zeros((1, 1), np.float32)
    outside = coloured((100, 93, 78), np.clip(0.9 + 0.08 * grain + 0.16 * stripes, 0.3, 1.3)) * (0.35 + 0.65 * left)
    dark = coloured((28, 23, 19), 1.0 + 0.12 * fractal(plane, rng, 10, 2))
    return Backdrop(floor, dark + (outside - dark) * outer, open_)


def _oil_well(well: Well, plane: Plane) -> Backdrop:
    rng = rng_of(well.seed, 3)
    power = (2.2, 3.2, 4.5)[well.variant % 3]
    inner = _superellipse(plane, well.centre, (well.radius, well.radius), power)
    light = 1.0 + noise(plane, rng, 2) * np.float32(0.05) + plane.y * np.float32(rng.uniform(-0.15, 0.15))
    light = light * (1.0 - np.float32(rng.uniform(0.25, 0.6)) * smoothstep(inner, 0.45, 1.05))
    soft = float(rng.uniform(0.02, 0.07))
    open_ = 1.0 - smoothstep(inner, 1.0 - soft, 1.0 + soft)
    halo = np.exp(-(((inner - np.float32(1 + 2.4 * soft)) / 0.05) ** 2)) * np.float32(rng.uniform(0.1, 0.45))
    wall = coloured(well.colour, halo + np.float32(rng.uniform(0.12, 0.3)) + 0.04 * fractal(plane, rng, 8, 3))
    return Backdrop(coloured(well.colour, light), wall, open_)

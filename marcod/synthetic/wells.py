"""The plate around the drop: floor, wall, plastic, and the light that falls through.

:func:`backdrop` gives the light coming through the well's floor and how much of each pixel is floor; what is not
floor is covered by the wall.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from marcod.synthetic.fields import Field, Light, Plane, coloured, fractal, noise, rng_of, smoothstep
from marcod.synthetic.looks import between
from marcod.synthetic.scene import ImagerStyle, Scene, Well

Rng = np.random.Generator
_WAVELENGTHS_NM: Final = np.asarray([630.0, 540.0, 450.0], np.float32)[:, None, None]


@dataclass(frozen=True)
class Backdrop:
    """``floor`` and ``wall`` are light [3, h, w] in grey levels; ``open`` [h, w] is the floor's share of a pixel."""

    floor: Light
    wall: Light
    open: Field


def backdrop(scene: Scene, plane: Plane) -> Backdrop:
    """Draw the empty well of a scene."""
    return _LOOKS[scene.imager](scene.well, plane, rng_of(scene.well.seed, 1))


def _light(well: Well, plane: Plane, rng: Rng) -> Light:
    """Return the lamp's light, falling off across the image, coloured by stretched plastic between polarisers."""
    right, down = well.slope
    even = 1.0 + plane.x * np.float32(right) + plane.y * np.float32(down) + noise(plane, rng, 3) * np.float32(0.025)
    retardance = _retardance(well, plane, rng)
    coloured_by = 1.0 - np.float32(well.polariser) * np.sin(np.float32(math.pi) * retardance / _WAVELENGTHS_NM) ** 2
    coloured_by = coloured_by / np.float32(1.0 - 0.5 * well.polariser)
    light: Light = coloured(well.colour, np.clip(even, 0.04, 1.6)) * coloured_by
    return light


def _retardance(well: Well, plane: Plane, rng: Rng) -> Field:
    """Return by how many nanometres the plastic delays one polarisation: flowing patches, more at the wall."""
    base, span = rng.uniform(120, 900), rng.uniform(60, 320)
    patches: Field = np.float32(base) + np.float32(span) * noise(plane, rng, float(rng.choice([2, 2, 3])))
    return patches


def _superellipse(plane: Plane, centre: tuple[float, float], radii: tuple[float, float], power: float) -> Field:
    """1 on the outline, less inside."""
    x = np.abs((plane.x - np.float32(centre[0])) / np.float32(radii[0])) ** np.float32(power)
    y = np.abs((plane.y - np.float32(centre[1])) / np.float32(radii[1])) ** np.float32(power)
    outline: Field = (x + y) ** np.float32(1.0 / power)
    return outline


def _round_well(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw a well in a black ring, with plastic outside (Formulatrix)."""
    dx, dy, distance = plane.from_point(well.centre)
    inner = distance / np.float32(well.radius)
    floor = _light(well, plane, rng)
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
    dark = coloured((12, 11, 17), 1.0 + 0.14 * fractal(plane, rng, 30, 2)) + line * floor
    dark = dark + coloured((80, 84, 80), _glints(plane, rng, outer))
    plastic = floor * (0.95 + fractal(plane, rng, 9, 2) * np.float32(0.05))
    return Backdrop(floor, dark + (plastic - dark) * outside, open_)


def _glints(plane: Plane, rng: Rng, outer: Field) -> Field:
    """Mould marks and burrs of the black ring."""
    band: Field = np.exp(-(((outer - 0.97) / 0.035) ** 2)) * np.float32(rng.uniform(0.3, 1.4))
    return band * smoothstep(noise(plane, rng, 18), 1.9, 3.0)


def _vignetted_well(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw a round or squarish well in even brownish light, cut by the frame (Rigaku)."""
    square = well.variant != 0
    radii = (well.radius * 0.95, well.radius * 1.2) if square else (well.radius * 1.08, well.radius * 1.08)
    inner = _superellipse(plane, well.centre, radii, 2.7 if square else 2.05)
    floor = _light(well, plane, rng) * (1.0 - 0.30 * smoothstep(inner, 0.62, 1.06))
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


def _bright_well(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw a bright round floor under oil in a rough dark wall (HWI)."""
    dx, dy, distance = plane.from_point(well.centre)
    rough = fractal(plane, rng, 26, 3) * np.float32(between(rng, 0.001, 0.008))
    inner = distance / np.float32(well.radius) + rough
    floor = _light(well, plane, rng) * (1.0 - np.float32(rng.uniform(0.0, 0.25)) * smoothstep(inner, 0.4, 1.0))
    soft = float(rng.uniform(0.01, 0.04))
    open_ = 1.0 - smoothstep(inner, 1.0 - soft, 1.0 + soft)
    # The wall is turned plastic: a black band at the floor, then grey with fine rings that the lamp shines along.
    rings = noise(plane, rng, 130) * 0.12 + np.sin(distance * np.float32(rng.uniform(150, 320)) + rough * 300) * 0.09
    lit = np.abs(dx * np.float32(0.7) + dy * np.float32(0.7)) / (distance + np.float32(1e-3))
    grey = np.float32(rng.uniform(0.18, 0.42)) * smoothstep(inner, 1.0, 1.25 + 6 * soft) * (0.8 + 0.35 * lit)
    grey = grey * (1.0 + 0.5 * rings) + np.float32(0.05) * (1.0 + 0.6 * fractal(plane, rng, 40, 2))
    return Backdrop(floor, coloured(well.colour, np.maximum(grey, 0.02)), open_)


def _square_well(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw a square well: bright with cut corners in blurred plastic, or in black surroundings (three-lens plates)."""
    dx, dy = np.abs(plane.x - np.float32(well.centre[0])), np.abs(plane.y - np.float32(well.centre[1]))
    cut = float(rng.uniform(1.35, 1.6)) if well.variant != 1 else 1.9
    inner = np.maximum(np.maximum(dx, dy), (dx + dy) / np.float32(cut)) / np.float32(well.radius)
    floor = _light(well, plane, rng)
    soft = float(rng.uniform(0.004, 0.03))
    if well.variant == 1:
        ragged = inner + np.float32(0.003) * fractal(plane, rng, 45, 2)
        open_ = 1.0 - smoothstep(ragged, 1.0 - soft, 1.0 + soft)
        return Backdrop(floor, coloured((9, 9, 10), 1.0 + 0.5 * fractal(plane, rng, 20, 2)) + 6 * soft * floor, open_)
    open_ = 1.0 - smoothstep(inner, 1.0 - soft, 1.0 + soft)
    beyond = smoothstep(inner, 1.02, float(rng.uniform(1.1, 1.3)))
    mottled = np.clip(0.72 + 0.1 * fractal(plane, rng, 12, 3) + 0.12 * noise(plane, rng, 3), 0.2, 1.05)
    return Backdrop(floor, floor * (np.float32(0.2) + (mottled - np.float32(0.2)) * beyond), open_)


def _slanted_well(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw a wide well in slanting light: a wall at one side, darkness at the other; or no wall at all."""
    floor = _light(well, plane, rng)
    if well.variant == 2:
        _, _, distance = plane.from_point((float(rng.normal(0, 0.1)), float(rng.normal(0.1, 0.1))))
        ringed = smoothstep(distance, 0.1, 0.65) * np.float32(rng.uniform(0.2, 0.75))
        warm = np.asarray(rng.choice([[1.35, 0.75, 0.8], [1.2, 0.8, 1.15]]), np.float32)[:, None, None]
        floor = floor * (1.0 + (warm - 1.0) * ringed)
        return Backdrop(floor, floor, np.ones(plane.shape, np.float32))
    inner = _superellipse(plane, well.centre, (well.radius * 1.05, well.radius), float(rng.uniform(3.0, 6.0)))
    open_ = 1.0 - smoothstep(inner, 0.97, 1.04)
    steps = np.sin((plane.x + 0 * plane.y) * np.float32(rng.uniform(60, 130)) + noise(plane, rng, 3))
    wall = floor * np.clip(0.3 + 0.25 * steps + 0.25 * (plane.x < 0), 0.04, 0.9)
    return Backdrop(floor * (1.0 - 0.25 * smoothstep(inner, 0.7, 1.0)), wall, open_)


def _close_up(well: Well, plane: Plane, rng: Rng) -> Backdrop:
    """Draw the floor alone, closer than the wall."""
    floor = _light(well, plane, rng)
    return Backdrop(floor, floor, np.ones(plane.shape, np.float32))


_LOOKS: Final[dict[ImagerStyle, Callable[[Well, Plane, Rng], Backdrop]]] = {
    ImagerStyle.FORMULATRIX: _round_well,
    ImagerStyle.RIGAKU: _vignetted_well,
    ImagerStyle.HWI: _bright_well,
    ImagerStyle.SQUARE: _square_well,
    ImagerStyle.SLANTED: _slanted_well,
    ImagerStyle.CLOSE_UP: _close_up,
}

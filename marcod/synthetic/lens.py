"""The drop's outline and how its dome bends light: rim, shading, haze, satellite drops."""

from dataclasses import dataclass

import numpy as np

from marcod.synthetic.fields import Field, Plane, rng_of
from marcod.synthetic.scene import Drop

_TABLE = 720


@dataclass(frozen=True)
class Footprint:
    """``rho`` [h, w] is the distance from the centre as a share of the outline's; ``inside`` its soft mask."""

    rho: Field
    inside: Field


def outline(drop: Drop, angles: Field) -> Field:
    """The drop's radius in each direction."""
    radius = np.ones_like(angles)
    for order, amplitude, phase in drop.harmonics:
        radius += np.float32(amplitude) * np.cos(order * angles + np.float32(phase))
    for at, height, width in drop.tips:
        away = np.angle(np.exp(1j * (angles - at))).astype(np.float32)
        radius += np.float32(height) * np.exp(-np.abs(away / np.float32(width)) ** 1.4)
    return radius * np.float32(drop.radius)


def footprint(drop: Drop, plane: Plane) -> Footprint:
    """Where the drop is."""
    distance, angle = plane.polar(drop.centre)
    table = outline(drop, np.linspace(-np.pi, np.pi, _TABLE, dtype=np.float32))
    index = ((angle + np.float32(np.pi)) * np.float32((_TABLE - 1) / (2 * np.pi))).astype(np.intp)
    edge = table[np.clip(index, 0, _TABLE - 1)]
    inside = np.clip((edge - distance) * np.float32(plane.scale) + 0.5, 0.0, 1.0)
    return Footprint(distance / edge, inside)


def lens_gain(drop: Drop, shape: Footprint, plane: Plane) -> Field:
    """How the dome brightens and darkens the floor's light: 1 where there is no drop, [h, w]."""
    rho = np.minimum(shape.rho, 1.0)
    dx, dy = plane.x - np.float32(drop.centre[0]), plane.y - np.float32(drop.centre[1])
    toward = (dx * np.float32(np.cos(drop.light)) + dy * np.float32(np.sin(drop.light))) / np.float32(drop.radius)
    dome = 1.0 - np.float32(drop.haze) + np.float32(drop.tilt) * toward * (0.4 + 0.6 * rho)
    dome = dome - np.float32(drop.lens) * rho ** np.float32(2.0 + 4.0 * (1.0 - drop.lens)) * (1.0 - 0.45 * toward)
    dome = dome + np.float32(0.22 * drop.lens) * (1.0 - rho * rho)
    gain = 1.0 + (np.clip(dome, 0.1, 1.35) - 1.0) * shape.inside
    return gain * _rim(drop, shape, toward)


def _rim(drop: Drop, shape: Footprint, toward: Field) -> Field:
    """The refraction rim: dark at the contact line, a bright one just outside where the light is thrown."""
    side = 1.0 - 0.5 * np.clip(toward, -1.0, 1.0)
    dark = np.exp(-(((shape.rho - 0.99) / 0.016) ** 2)) * np.float32(drop.rim) * side
    bright = np.exp(-(((shape.rho - 1.035) / 0.018) ** 2)) * np.float32(0.35 * drop.rim) * (2.0 - side)
    return (1.0 - dark) * (1.0 + 0.4 * bright)


def satellites(drop: Drop) -> list[Drop]:
    """Small drops the dispenser left beside the large one."""
    rng = rng_of(drop.seed, 4)
    found = []
    for _ in range(drop.satellites):
        angle, away, size = rng.uniform(-np.pi, np.pi), rng.uniform(1.12, 1.4), float(rng.uniform(0.02, 0.12))
        centre = (
            drop.centre[0] + float(np.cos(angle) * away) * drop.radius,
            drop.centre[1] + float(np.sin(angle) * away) * drop.radius,
        )
        wobble = ((2, float(rng.uniform(0, 0.12)), float(rng.uniform(0, 6.0))),)
        found.append(
            Drop(centre, drop.radius * size, wobble, (), drop.lens, drop.tilt, drop.light, drop.rim, 0.0, 0, drop.seed)
        )
    return found

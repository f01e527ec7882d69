"""The drop's outline and how its dome bends light: rim, shading, haze."""

import math
from dataclasses import dataclass

import numpy as np

from marcod.synthetic.fields import Field, Plane, noise, rng_of, smoothstep
from marcod.synthetic.scene import DropShape

# The outline is tabulated over a stand-in for the angle that needs no arctangent: -2 to 2 once around.
_TABLE = 4096


@dataclass(frozen=True)
class Footprint:
    """``rho`` [h, w] is the distance from the centre as a share of the outline's; ``inside`` its soft mask."""

    rho: Field
    inside: Field


def outline(drop: DropShape, angles: Field) -> Field:
    """Return the drop's radius in each direction."""
    radius = np.ones_like(angles)
    for order, amplitude, phase in drop.harmonics:
        radius += np.float32(amplitude) * np.cos(order * angles + np.float32(phase))
    for at, height, width in drop.tips:
        away = np.angle(np.exp(1j * (angles - at))).astype(np.float32)
        radius += np.float32(height) * np.exp(-(np.abs(away / np.float32(width)) ** 1.4))
    return radius * np.float32(drop.radius)


def footprint(drop: DropShape, plane: Plane) -> Footprint:
    """Return the area of the drop."""
    dx, dy, distance = plane.from_point(drop.centre)
    slope = dy / (np.abs(dx) + np.abs(dy) + np.float32(1e-9))
    around = np.where(dx < 0, np.copysign(2.0 - np.abs(slope), dy), slope)
    index = ((around + 2.0) * np.float32((_TABLE - 1) / 4)).astype(np.intp)
    edge = outline(drop, _angles())[index]
    inside = np.clip((edge - distance) * np.float32(plane.scale) + 0.5, 0.0, 1.0)
    return Footprint(distance / edge, inside)


def _angles() -> Field:
    """Return the angle at each entry of the outline's table."""
    around = np.linspace(-2.0, 2.0, _TABLE)
    across = 1.0 - np.abs(around)
    along = np.where(np.abs(around) > 1.0, np.copysign(2.0 - np.abs(around), around), around)
    return np.arctan2(along, across).astype(np.float32)


def lens_gain(drop: DropShape, shape: Footprint, plane: Plane) -> Field:
    """Return the gain of the floor's light by the dome, [h, w]: 1 outside the drop."""
    rho = np.minimum(shape.rho, 1.0)
    dx, dy = plane.x - np.float32(drop.centre[0]), plane.y - np.float32(drop.centre[1])
    toward = (dx * np.float32(np.cos(drop.light)) + dy * np.float32(np.sin(drop.light))) / np.float32(drop.radius)
    dome = 1.0 - np.float32(drop.haze) + np.float32(drop.tilt) * toward * (0.4 + 0.6 * rho)
    dome = dome - np.float32(drop.lens) * rho ** np.float32(2.0 + 4.0 * (1.0 - drop.lens)) * (1.0 - 0.45 * toward)
    dome = dome + np.float32(0.22 * drop.lens) * (1.0 - rho * rho)
    # Drops that spread unevenly have lobes of their own.
    dome = dome + np.float32(0.22 * abs(drop.tilt)) * noise(plane, rng_of(drop.seed, 12), 8) * rho
    gain = 1.0 + (np.clip(dome, 0.1, 1.35) - 1.0) * shape.inside
    return gain * _rim(drop, shape, dx, dy, toward)


def _rim(drop: DropShape, shape: Footprint, dx: Field, dy: Field, toward: Field) -> Field:
    """Draw the refraction rim: a dark line, wide dark arcs where the edge is steep, and light thrown just outside."""
    side = 1.0 - 0.5 * np.clip(toward, -1.0, 1.0)
    inwards = np.maximum(1.0 - shape.rho, 0.0)
    dark = np.exp(-(((shape.rho - 0.99) / np.float32(drop.rim_width)) ** 2)) * np.float32(drop.rim) * side
    away = np.sqrt(dx * dx + dy * dy) + np.float32(1e-6)
    for angle, strength, width in drop.arcs:
        facing = (dx * np.float32(math.cos(angle)) + dy * np.float32(math.sin(angle))) / away
        along = np.maximum(facing, 0.0) ** 4
        reach = np.float32(width) * along * along + np.float32(drop.rim_width)
        arc = along * np.exp(-((inwards / reach) ** 2)) * np.float32(strength)
        dark = np.maximum(dark, arc)
    bright = np.exp(-(((shape.rho - 1.035) / 0.018) ** 2)) * np.float32(0.35 * drop.rim) * (2.0 - side)
    rim: Field = (1.0 - dark * np.maximum(shape.inside, smoothstep(shape.rho, 1.03, 1.0))) * (1.0 + 0.4 * bright)
    return rim

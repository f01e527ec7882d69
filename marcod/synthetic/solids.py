"""Convex crystals as solids: forms, turned and projected, and how light passes through them.

A solid is cut out by planes ``normal . x <= distance`` around the origin. Light that enters a slanted face leaves the
lens's opening, so that flat crystals are clear, steep faces dark, and every outline is a dark rim with a bright line.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from marcod.synthetic.fields import Field, Light

Array = NDArray[np.float64]
_PARALLEL = 1e-6


@dataclass(frozen=True, slots=True)
class Solid:
    """Outward ``normals`` [k, 3] of unit length, their ``distances`` [k], and the ``corners`` [n, 3]."""

    normals: Array
    distances: Array
    corners: Array

    def seen(self, scale: Array, turn: Array) -> "Solid":
        """Return it stretched along its axes by ``scale`` [3] and turned by the rotation ``turn`` [3, 3]."""
        normals = (self.normals / scale) @ turn.T
        length = np.linalg.norm(normals, axis=1)
        return Solid(normals / length[:, None], self.distances / length, (self.corners * scale) @ turn.T)


def solid(normals: Array, distances: Array) -> Solid:
    """Find the corners of the solid that planes [k, 3] at ``distances`` [k] cut out."""
    length = np.linalg.norm(normals, axis=1)
    normals, distances = normals / length[:, None], distances / length
    triples = np.array(list(combinations(range(len(normals)), 3)))
    planes = normals[triples]
    firm = np.abs(np.linalg.det(planes)) > _PARALLEL
    points = np.linalg.solve(planes[firm], distances[triples[firm]][:, :, None])[:, :, 0]
    within = (points @ normals.T <= distances + 1e-9).all(axis=1)
    return Solid(normals, distances, np.unique(points[within].round(7), axis=0))


def ring(sides: int, height: float = 0.0, turn: float = 0.0) -> Array:
    """Return normals [sides, 3] around the z axis, all rising by ``height``."""
    angles = 2 * math.pi * np.arange(sides) / sides + turn
    return np.stack([np.cos(angles), np.sin(angles), np.full(sides, height)], axis=1)


def rotation(around_z: float, tilt: float, tilt_at: float, roll: float = 0.0) -> Array:
    """Roll about the x axis, turn about z by ``around_z``, then lean by ``tilt`` towards ``tilt_at``."""
    axis = np.array([-math.sin(tilt_at), math.cos(tilt_at), 0.0])
    return _about(axis, tilt) @ _about(np.array([0.0, 0.0, 1.0]), around_z) @ _about(np.array([1.0, 0.0, 0.0]), roll)


def _about(axis: Array, angle: float) -> Array:
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


@dataclass(frozen=True, slots=True)
class Optics:
    """Light through a crystal: ``rim`` and ``blur`` are lengths, ``light`` the side (radians) that it comes from.

    ``opening`` is the slope at which light is lost, ``contrast`` the darkness of lines, ``colour`` a tint [3] and
    ``order`` how many interference colours a height of thickness shows.
    """

    rim: float
    blur: float
    light: float
    opening: float
    contrast: float
    colour: tuple[float, float, float]
    order: float


def crystal_gain(seen: Solid, x: Field, y: Field, optics: Optics) -> Light:
    """Return the gain [3, h, w] of the light around a solid; ``x`` [1, w] and ``y`` [h, 1] start at its centre."""
    edges = _outline(seen.corners[:, :2])
    depth, rim, bright = _rims(edges, x, y, optics)
    inside = np.clip(depth / np.float32(2 * optics.blur) + np.float32(0.5), 0.0, 1.0)
    body, thickness = _body(seen, x, y, optics)
    halo = np.exp(-(((depth + np.float32(0.5 * optics.rim)) / np.float32(0.45 * optics.rim)) ** 2))
    lines = (1.0 - rim) * (1.0 + bright * inside) * (1.0 + halo * (1.0 - inside) * np.float32(0.16 * optics.contrast))
    grey = (1.0 + (body - 1.0) * inside) * lines
    gain: Light = grey[None] * (1.0 + _tint(thickness, optics) * inside)
    return gain


def _tint(thickness: Field, optics: Optics) -> Light:
    """Return what birefringence adds to each colour, [3, h, w] or [3, 1, 1]."""
    hue: Light = np.asarray(optics.colour, np.float32)[:, None, None]
    if not optics.order:
        return hue
    waves = np.asarray([0.82, 1.0, 1.22], np.float32)[:, None, None] * thickness * np.float32(optics.order)
    strength = np.float32(0.5 * max(map(abs, optics.colour)))
    return (np.cos(waves * np.float32(2 * math.pi)) - 1.0) * strength + hue * np.float32(0.4)


def _body(seen: Solid, x: Field, y: Field, optics: Optics) -> tuple[Field, Field]:
    """Return the gain of the faces and the thickness, both [h, w]."""
    top, top_line, (right, down) = _side(seen, x, y, 1, optics)
    bottom, bottom_line, (left, up) = _side(seen, x, y, -1, optics)
    lean = 0.35 * optics.opening
    across = right - left - np.float32(lean * math.cos(optics.light))
    along = down - up - np.float32(lean * math.sin(optics.light))
    lost = np.exp(-(across * across + along * along) / np.float32(optics.opening**2))
    gain = np.float32(0.12) + np.float32(0.88 * math.exp(0.35**2)) * lost
    lines = 1.0 - np.float32(0.55 * optics.contrast) * top_line - np.float32(0.25 * optics.contrast) * bottom_line
    return gain * lines, np.maximum(top - bottom, 0.0)


def _side(seen: Solid, x: Field, y: Field, sign: int, optics: Optics) -> tuple[Field, Field, tuple[Field, Field]]:
    """Return one side's height, its inner edges as lines 0 to 1, and its slopes (right, down)."""
    facing = seen.normals[:, 2] * sign > 0.04
    normals = seen.normals[facing].astype(np.float32)
    steep = normals[:, :2] / normals[:, 2:]
    rise = (seen.distances[facing] / seen.normals[facing][:, 2]).astype(np.float32)
    heights = (rise[:, None, None] - steep[:, :1, None] * x - steep[:, 1:, None] * y) * np.float32(sign)
    face = heights.argmin(axis=0)
    slopes = -steep[:, 0][face], -steep[:, 1][face]
    low = heights.min(axis=0)
    if len(heights) < 2:
        return low * sign, np.zeros_like(low), slopes
    np.put_along_axis(heights, face[None], np.inf, axis=0)
    gap = heights.min(axis=0) - low
    width = np.float32(0.35 * optics.rim + 0.8 * optics.blur)
    return low * sign, np.exp(-((gap / width) ** 2)), slopes


def _rims(edges: Array, x: Field, y: Field, optics: Optics) -> tuple[Field, Field, Field]:
    """Return the distance inwards from the outline, and the dark and the bright line along it."""
    depth = np.full((y.shape[0], x.shape[1]), np.inf, np.float32)
    rim, bright = np.zeros_like(depth), np.zeros_like(depth)
    for cos, sin, distance in edges.tolist():
        away = np.float32(distance) - np.float32(cos) * x - np.float32(sin) * y
        lit = 0.5 + 0.5 * math.cos(math.atan2(sin, cos) - optics.light)
        width = np.float32(optics.rim * (0.55 + 0.45 * lit) + 0.6 * optics.blur)
        dark = np.exp(-(((away - 0.3 * width) / width) ** 2)) * np.float32(optics.contrast * (0.72 + 0.28 * lit))
        line = np.exp(-(((away - 1.9 * width) / (0.55 * width)) ** 2)) * np.float32(0.42 * (1.1 - lit))
        depth, rim, bright = np.minimum(depth, away), np.maximum(rim, dark), np.maximum(bright, line)
    outside = np.clip(1.0 + depth / np.float32(0.6 * optics.rim + optics.blur), 0.0, 1.0)
    return depth, rim * outside, bright


def _outline(points: Array) -> Array:
    """Return the convex outline's edges as (cos, sin, distance) of their outward normals, [m, 3]."""
    hull = _hull([(float(px), float(py)) for px, py in points])
    edges = []
    for (ax, ay), (bx, by) in zip(hull, [*hull[1:], hull[0]], strict=True):
        length = math.hypot(bx - ax, by - ay)
        cos, sin = (by - ay) / length, -(bx - ax) / length
        edges.append((cos, sin, cos * ax + sin * ay))
    return np.array(edges)


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted(set(points))
    return _chain(ordered) + _chain(ordered[::-1])


def _chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for point in ordered:
        while len(kept) > 1 and _turn(kept[-2], kept[-1], point) <= 1e-12:
            kept.pop()
        kept.append(point)
    return kept[:-1]


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

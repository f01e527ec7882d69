"""Crystals of every habit: clear solids with dark rims, needles and their bundles, and specks.

One group shares a form, as the crystals of one drop do; its members differ in size, proportions and position.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from marcod.synthetic.fields import rng_of
from marcod.synthetic.lens import outline
from marcod.synthetic.scene import Crystals, DropShape, Habit, Well
from marcod.synthetic.solids import Array, Optics, Solid, crystal_gain, ring, rotation, solid
from marcod.synthetic.strokes import Layer, Point

Rng = np.random.Generator
_TRIES: Final = 8
_SMALLEST: Final = 0.002
# How far from the image's centre (right, down, in heights) and from the well's (in radii) a crystal may lie: the
# largest must be in sight, the others may be cut by the frame or the wall.
_IN_SIGHT: Final = (0.46, 0.4, 0.92)
_NEAR_FRAME: Final = (0.62, 0.52, 1.08)


def draw_crystals(layer: Layer, group: Crystals, drop: DropShape, well: Well, age_d: float) -> None:
    """Every member of a group at an age; later members are smaller, because they nucleated later."""
    rng = rng_of(group.seed, 7)
    spread = float(rng.choice([0.15, 0.35, 0.6]))
    for index in range(group.count):
        # One generator a member: what a small member leaves out must not move the others.
        own = rng_of(group.seed, 8, index)
        share = 1.0 if index == 0 else math.exp(-spread * abs(float(rng.normal(0, 1.6))))
        late = 0.0 if index == 0 else float(rng.exponential(0.25)) * group.growth.tau_d
        length = group.size * share * group.growth.fraction(age_d - late)
        centre = _place(group, drop, well, own, _IN_SIGHT if index == 0 else _NEAR_FRAME)
        if length > _SMALLEST:
            _PAINT[group.habit](_Member(layer, group, drop.light, own, centre, length))


def _place(group: Crystals, drop: DropShape, well: Well, rng: Rng, reach: tuple[float, float, float]) -> Point:
    """Pick a point in the drop that the well's wall and the frame leave in sight; the centre if none is found."""
    for _ in range(_TRIES):
        point = _at_edge(drop, rng) if rng.random() < group.at_edge else _within(group, drop, rng)
        away = math.hypot(point[0] - well.centre[0], point[1] - well.centre[1])
        if abs(point[0]) < reach[0] and abs(point[1]) < reach[1] and away < well.radius * reach[2]:
            return point
    x, y = (min(max(middle, -0.3), 0.3) for middle in drop.centre)
    return x + float(rng.normal(0, 0.05)), y + float(rng.normal(0, 0.05))


def _within(group: Crystals, drop: DropShape, rng: Rng) -> Point:
    angle, away = float(rng.uniform(-math.pi, math.pi)), group.spread * math.sqrt(float(rng.uniform(0, 1)))
    x, y = group.centre[0] + away * math.cos(angle), group.centre[1] + away * math.sin(angle)
    limit = 0.93 / max(math.hypot(x, y), 0.93)
    return _in_drop(drop, x * limit, y * limit)


def _at_edge(drop: DropShape, rng: Rng) -> Point:
    angle, away = float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.84, 0.99))
    return _in_drop(drop, away * math.cos(angle), away * math.sin(angle))


def _in_drop(drop: DropShape, x: float, y: float) -> Point:
    """Return the point at (x, y) in drop radii, which differ by direction."""
    radius = float(outline(drop, np.asarray([math.atan2(y, x)], dtype=np.float32))[0])
    return drop.centre[0] + x * radius, drop.centre[1] + y * radius


@dataclass(frozen=True, slots=True)
class _Member:
    """One crystal being drawn."""

    layer: Layer
    group: Crystals
    light: float
    rng: Rng
    centre: Point
    length: float

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def tone(self, value: float) -> tuple[float, float, float]:
        """Return the gain of a tone from -1 (darkest) in the group's contrast, in its colour."""
        base = 1.0 + value * self.group.contrast
        red, green, blue = (base * (1.0 + 0.5 * hue) for hue in self.group.colour)
        return red, green, blue

    def draw(self, form: Solid, proportions: tuple[float, float, float], turn: Array) -> None:
        """Draw a solid stretched to this crystal's length."""
        seen = form.seen(np.array(proportions) * self.length / 2, turn)
        optics = Optics(
            rim=max(self.group.rim * self.length * self.between(0.6, 1.2), 0.0015),
            blur=self.layer.pixel * 0.6 + self.length * self.between(0.0, 0.02),
            light=self.light + self.between(-0.3, 0.3),
            opening=self.group.opening * self.between(0.8, 1.25),
            contrast=self.group.contrast,
            colour=self.group.colour,
            order=self.between(0.5, 3.0) / self.length if max(map(abs, self.group.colour)) > 0.12 else 0.0,
        )
        reach = float(np.abs(seen.corners[:, :2]).max()) + 1.4 * optics.rim + 3 * optics.blur
        window = self.layer.window(self.centre, reach)
        if window is not None:
            self.layer.shade(window, crystal_gain(seen, window.x, window.y, optics))

    def lying(self) -> Array:
        """Most crystals lie flat on the floor, some lean, a few stand anyhow."""
        tilt = abs(float(self.rng.normal(0, 0.12))) if self.rng.random() < 0.65 else self.between(0.2, 1.2)
        return rotation(self.between(-math.pi, math.pi), tilt, self.between(-math.pi, math.pi))


@cache
def _bipyramid(cut: int) -> Solid:
    """Return two four-sided pyramids base to base; ``cut`` in tenths takes off the tips."""
    sides = np.concatenate([ring(4, 0.75), ring(4, -0.75)])
    caps = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    return solid(np.concatenate([sides, caps]), np.array([1.0] * 8 + [1.35 - cut / 10] * 2) * 0.7)


@cache
def _wedge(cut: int) -> Solid:
    """Return a tetrahedron, a triangle from above; ``cut`` in tenths takes off its corners."""
    faces = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return solid(np.concatenate([faces, -faces]), np.array([0.42] * 4 + [1.15 - cut / 10] * 4))


@cache
def _cube(cut: int) -> Solid:
    """Return a block whose edges are bevelled by ``cut`` tenths."""
    sides = np.concatenate([np.eye(3), -np.eye(3)])
    bevels = np.concatenate([ring(4, 1.0), ring(4, -1.0)])
    return solid(np.concatenate([sides, bevels]), np.array([0.78] * 6 + [1.12 - cut / 45] * 8))


@cache
def _hexagon(cut: int) -> Solid:
    """Return a six-sided prism with a flat top; ``cut`` in tenths bevels its upper and lower edges."""
    caps = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    normals = np.concatenate([ring(6), ring(6, 0.9), ring(6, -0.9), caps])
    return solid(normals, np.array([0.86] * 6 + [1.06 - cut / 40] * 12 + [0.62] * 2))


@cache
def _prism(cut: int) -> Solid:
    """Return a rod along x of four or six sides; its ends are roofs, steeper with ``cut``."""
    around = ring(6 if cut % 2 else 4, 0.0, math.pi / 4)[:, [2, 0, 1]]
    steep = 0.04 + cut / 20
    ends = np.array([[1.0, steep, 0], [1, -steep, 0], [-1, steep, 0], [-1, -steep, 0], [1, 0, steep], [-1, 0, steep]])
    return solid(np.concatenate([around, ends]), np.array([0.9] * len(around) + [0.92] * 6))


@cache
def _plate(sides: int) -> Solid:
    """Return a thin plate of four to six sides, longer than wide."""
    caps = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    return solid(np.concatenate([ring(sides, 0.1), caps]), np.array([0.85] * sides + [1.0] * 2))


def _cut(member: _Member) -> int:
    """One group has one form, so that its members look alike."""
    return member.group.seed % 6


def _draw_bipyramid(member: _Member) -> None:
    wide = member.between(0.9, 1.0) * (0.45 + 0.55 * member.group.aspect)
    upon = member.rng.random()
    side = rotation(0.0, math.pi / 2 if wide < 0.7 else math.atan(1 / (0.75 * wide)), 0.0)
    member.draw(_bipyramid(_cut(member)), (wide, wide, 1.0), member.lying() @ (side if upon < 0.7 else np.eye(3)))


def _draw_wedge(member: _Member) -> None:
    flat = rotation(0.0, 0.9553, -2.356)
    member.draw(_wedge(_cut(member)), (1.0, 1.0, 1.0), member.lying() @ flat)


def _draw_cube(member: _Member) -> None:
    wide, high = member.between(0.85, 1.0) * (0.6 + 0.4 * member.group.aspect), member.between(0.5, 0.9)
    member.draw(_cube(_cut(member)), (1.0, wide, high), member.lying())


def _draw_hexagon(member: _Member) -> None:
    wide, high = member.between(0.8, 1.0), 0.35 + 0.6 * member.group.aspect
    member.draw(_hexagon(_cut(member)), (1.0, wide, high), member.lying())


def _draw_prism(member: _Member) -> None:
    wide = (0.1 + 0.3 * member.group.aspect) * member.between(0.7, 1.3)
    lean, roll = abs(float(member.rng.normal(0, 0.15))), member.between(-0.9, 0.9)
    turn = rotation(member.between(-math.pi, math.pi), lean, member.between(-math.pi, math.pi), roll)
    member.draw(_prism(_cut(member)), (1.0, wide, wide), turn)


def _draw_plate(member: _Member) -> None:
    wide = (0.3 + 0.7 * member.group.aspect) * member.between(0.85, 1.1)
    sides = 4 + member.group.seed % 3
    member.draw(_plate(sides), (1.0, wide, member.between(0.06, 0.2)), member.lying())


def _draw_speck(member: _Member) -> None:
    wide = 0.45 + 0.5 * member.group.aspect
    member.draw(_bipyramid(_cut(member)), (1.0, wide, wide), member.lying())


def _ray(member: _Member, start: Point, end: Point, width: float) -> None:
    """Draw a needle: two dark edges around a clear heart, and a bright line along it while it is thin."""
    across = -(end[1] - start[1]), end[0] - start[0]
    length = math.hypot(*across)
    aside = tuple(0.8 * width * part / length for part in across) if length else (0.0, 0.0)
    beside = [(x + aside[0], y + aside[1]) for x, y in (start, end)]
    member.layer.line(beside, member.tone(0.35), width * 0.6)
    member.layer.line([start, end], member.tone(member.between(-1.0, -0.75)), width)
    if width > 2.2 * member.layer.pixel:
        member.layer.line([start, end], member.tone(member.between(-0.15, 0.25)), width * 0.45)


def _spoke(member: _Member, turn: float, near: float, far: float, width: float) -> None:
    """Draw a needle that points outward from the crystal's centre."""
    cos, sin = math.cos(turn), math.sin(turn)
    (x, y), length = member.centre, member.length
    start, end = (x + near * length * cos, y + near * length * sin), (x + far * length * cos, y + far * length * sin)
    _ray(member, start, end, width)


def _width(member: _Member) -> float:
    return max(0.003, 0.8 * member.layer.pixel, member.length * 0.035 * (0.25 + 1.2 * member.group.aspect))


def _draw_needle(member: _Member) -> None:
    _spoke(member, member.between(-math.pi, math.pi), -0.5, 0.5, _width(member))


def _draw_sheaf(member: _Member) -> None:
    middle, fan = member.between(-math.pi, math.pi), member.between(0.1, 0.4)
    for _ in range(7 + round(60 * min(member.length, 0.2))):
        turn = middle + float(member.rng.normal(0, fan)) + (math.pi if member.rng.random() < 0.5 else 0.0)
        _spoke(member, turn, member.between(-0.06, 0.04), 0.5 * member.between(0.5, 1.0), _width(member) * 0.7)


def _draw_urchin(member: _Member) -> None:
    count = 14 + round(90 * min(member.length, 0.25))
    for index in range(count):
        turn = 2 * math.pi * (index + member.between(-0.6, 0.6)) / count
        _spoke(member, turn, 0.02, 0.5 * member.between(0.45, 1.0), _width(member) * 0.6)
    member.layer.disc(member.centre, member.length * 0.03, member.tone(-0.8))


_PAINT: Final[dict[Habit, Callable[[_Member], None]]] = {
    Habit.MICRO: _draw_speck,
    Habit.NEEDLE: _draw_needle,
    Habit.SHEAF: _draw_sheaf,
    Habit.URCHIN: _draw_urchin,
    Habit.PRISM: _draw_prism,
    Habit.PLATE: _draw_plate,
    Habit.BIPYRAMID: _draw_bipyramid,
    Habit.WEDGE: _draw_wedge,
    Habit.CUBE: _draw_cube,
    Habit.HEXAGON: _draw_hexagon,
}

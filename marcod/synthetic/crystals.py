"""Crystals of every habit, from specks to faceted blocks, drawn with shaded facets and edges."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from marcod.synthetic.fields import rng_of
from marcod.synthetic.lens import outline
from marcod.synthetic.scene import Crystals, Drop, Habit
from marcod.synthetic.strokes import Layer, Point


def draw_crystals(layer: Layer, group: Crystals, drop: Drop, age_d: float) -> None:
    """Every member of a group at an age; later members are smaller, because they nucleated later."""
    rng = rng_of(group.seed, 7)
    for index in range(group.count):
        # One generator a member: what a small member leaves out must not move the others.
        own = rng_of(group.seed, 8, index)
        share = 1.0 if index == 0 else float(rng.uniform(0.3, 1.0))
        late = 0.0 if index == 0 else float(rng.exponential(0.25)) * group.growth.tau_d
        length = group.size * share * group.growth.fraction(age_d - late)
        centre = _place(group, drop, own)
        if length > 0.002:
            _PAINT[group.habit](_Brush(layer, group, own, centre, length, float(own.uniform(0, 2 * math.pi))))


def _place(group: Crystals, drop: Drop, rng: np.random.Generator) -> Point:
    angle = float(rng.uniform(-math.pi, math.pi))
    away = group.spread * math.sqrt(float(rng.uniform(0, 1)))
    x = group.centre[0] + away * math.cos(angle)
    y = group.centre[1] + away * math.sin(angle)
    limit = 0.86 / max(math.hypot(x, y), 0.86)
    radius = float(outline(drop, np.asarray([math.atan2(y, x)], dtype=np.float32))[0])
    return drop.centre[0] + x * limit * radius, drop.centre[1] + y * limit * radius


@dataclass(frozen=True, slots=True)
class _Brush:
    """One crystal being drawn: its own axes, with tones -1 (darkest) to 1 (brightest) in its group's contrast."""

    layer: Layer
    group: Crystals
    rng: np.random.Generator
    centre: Point
    length: float
    angle: float

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def at(self, along: float, across: float, turn: float = 0.0) -> Point:
        """Return a point in the crystal's axes, turned further by ``turn``."""
        cos, sin = math.cos(self.angle + turn), math.sin(self.angle + turn)
        return self.centre[0] + along * cos - across * sin, self.centre[1] + along * sin + across * cos

    def tone(self, value: float, tint: float = 1.0) -> tuple[float, float, float]:
        """Return the gain of a tone, coloured by birefringence as strongly as ``tint``."""
        base, strength = 1.0 + value * self.group.contrast, tint * self.group.contrast
        red, green, blue = (base * (1.0 + strength * (channel - 1.0)) for channel in self.group.colour)
        return red, green, blue

    def face(self, corners: Sequence[Point], value: float, tint: float = 1.0) -> None:
        self.layer.polygon([self.at(x, y) for x, y in corners], self.tone(value, tint))

    def stroke(self, ends: Sequence[Point], value: float, width: float, turn: float = 0.0, tint: float = 1.0) -> None:
        self.layer.line([self.at(x, y, turn) for x, y in ends], self.tone(value, tint), width)

    def edges(self, corners: Sequence[Point], strength: float = 1.0) -> None:
        """Draw the closed outline, each edge dark or bright by the side it turns to the light."""
        width = max(0.0018, min(0.006, self.length * 0.028))
        for start, end in pairwise([*corners, corners[0]]):
            direction = math.atan2(end[1] - start[1], end[0] - start[0]) + self.angle
            value = 0.75 if math.cos(direction - 0.6) > 0.75 else -0.95
            self.stroke([start, end], value * strength, width, tint=0.5)


def _speck(brush: _Brush) -> None:
    half, flat = brush.length / 2, 0.4 + 0.6 * brush.group.aspect
    corners = [(half * math.cos(t), half * flat * math.sin(t)) for t in (0.3, 1.7, 2.9, 4.6)]
    brush.face(corners, brush.between(-1.0, -0.2))
    glint = (brush.centre[0] + half * 0.2, brush.centre[1] + half * 0.25)
    brush.layer.disc(glint, half * 0.45, brush.tone(brush.between(0.2, 1.0)))


def _needle(brush: _Brush) -> None:
    width = max(0.0024, brush.length * 0.03 * (0.5 + brush.group.aspect))
    half = brush.length / 2
    brush.stroke([(-half, width * 0.8), (half, width * 0.8)], brush.between(0.2, 0.9), width)
    brush.stroke([(-half, 0.0), (half, 0.0)], brush.between(-1.0, -0.45), width)


def _rays(brush: _Brush, fan: float, count: int) -> None:
    width = max(0.0019, brush.length * 0.013)
    for _ in range(count):
        turn = float(brush.rng.normal(0, fan)) + (math.pi if brush.rng.random() < 0.5 else 0.0)
        reach = brush.length / 2 * brush.between(0.55, 1.0)
        tone = float(brush.rng.choice([-0.95, -0.7, -0.5, 0.6]))
        brush.stroke([(brush.length * 0.02, 0.0), (reach, 0.0)], tone, width, turn)


def _sheaf(brush: _Brush) -> None:
    _rays(brush, brush.between(0.12, 0.4), 14 + round(160 * min(brush.length, 0.2)))


def _urchin(brush: _Brush) -> None:
    _rays(brush, 1.8, 26 + round(240 * min(brush.length, 0.25)))
    brush.layer.disc(brush.centre, brush.length * 0.09, brush.tone(-0.9))


def _rod(brush: _Brush) -> None:
    half, wide = brush.length / 2, brush.length * (0.05 + 0.1 * brush.group.aspect)
    cap, split = wide * brush.between(0.3, 1.0), wide * brush.between(-0.3, 0.3)
    top = [(-half + cap, -wide), (half - cap, -wide), (half, split), (-half, split)]
    low = [(-half, split), (half, split), (half - cap, wide), (-half + cap, wide)]
    brush.face(top, brush.between(0.05, 0.7))
    brush.face(low, brush.between(-0.6, 0.0))
    brush.edges([*top[:3], low[2], low[3], top[3]])


def _plate(brush: _Brush) -> None:
    half, wide = brush.length / 2, brush.length / 2 * (0.45 + 0.5 * brush.group.aspect)
    skew, cut = wide * brush.between(-0.4, 0.4), half * float(brush.rng.choice([0.0, 0.25, 0.45]))
    corners = [
        (-half + skew + cut, -wide),
        (half + skew, -wide),
        (half - skew, wide - cut),
        (half - skew - cut, wide),
        (-half - skew, wide),
    ]
    brush.face(corners, brush.between(-0.25, 0.35), 1.4)
    brush.edges(corners)
    brush.stroke([(-half * 0.6, -wide * 0.2), (half * 0.5, -wide * 0.35)], 0.5, 0.0015)


def _block(brush: _Brush) -> None:
    """Draw a prism from above: a ring of facets around a top face, each as bright as it faces the light."""
    sides = int(brush.rng.choice([4, 5, 6, 6, 8]))
    half, squash = brush.length / 2, 0.55 + 0.45 * brush.group.aspect
    turns = [2 * math.pi * (i + brush.between(-0.13, 0.13)) / sides for i in range(sides)]
    outer = [(half * math.cos(t), half * squash * math.sin(t)) for t in turns]
    inset, dx, dy = brush.between(0.35, 0.75), brush.between(-0.14, 0.14), brush.between(-0.14, 0.14)
    inner = [(x * inset + dx * brush.length, y * inset + dy * brush.length) for x, y in outer]
    for i, (turn, corner) in enumerate(zip(turns, outer, strict=True)):
        j = (i + 1) % sides
        facing = math.cos(brush.angle + turn + math.pi / sides + 2.2)
        brush.face([corner, outer[j], inner[j], inner[i]], 0.85 * facing + brush.between(-0.15, 0.15))
    brush.face(inner, brush.between(0.0, 0.45), 1.3)
    for ends in zip(outer, inner, strict=True):
        brush.stroke(ends, -0.35, max(0.0012, brush.length * 0.012))
    brush.edges(inner, 0.5)
    brush.edges(outer)


_PAINT: Final[dict[Habit, Callable[[_Brush], None]]] = {
    Habit.MICRO: _speck,
    Habit.NEEDLE: _needle,
    Habit.SHEAF: _sheaf,
    Habit.URCHIN: _urchin,
    Habit.ROD: _rod,
    Habit.PLATE: _plate,
    Habit.BLOCK: _block,
}

"""Crystals of every habit, from specks to faceted blocks, drawn with shaded facets and edges."""

import math

import numpy as np

from marcod.synthetic.fields import rng_of
from marcod.synthetic.lens import outline
from marcod.synthetic.scene import Crystals, Drop, Habit
from marcod.synthetic.strokes import Layer, Point

Gain = tuple[float, float, float]


def draw_crystals(layer: Layer, group: Crystals, drop: Drop, age_d: float) -> None:
    """Every member of a group at an age; later members are smaller, because they nucleated later."""
    rng = rng_of(group.seed, 7)
    paint = {
        Habit.MICRO: _speck, Habit.NEEDLE: _needle, Habit.SHEAF: _sheaf, Habit.URCHIN: _urchin,
        Habit.ROD: _rod, Habit.PLATE: _plate, Habit.BLOCK: _block,
    }[group.habit]  # fmt: skip
    for index in range(group.count):
        # One generator a member: what a small member leaves out must not move the others.
        own = np.random.default_rng([group.seed & 0xFFFFFFFF, 8, index])
        share = 1.0 if index == 0 else float(rng.uniform(0.3, 1.0))
        late = 0.0 if index == 0 else float(rng.exponential(0.25)) * group.growth.tau_d
        length = group.size * share * group.growth.fraction(age_d - late)
        centre = _place(group, drop, own)
        angle = float(own.uniform(0, 2 * math.pi))
        if length > 0.002:
            paint(layer, group, own, centre, length, angle)


def _place(group: Crystals, drop: Drop, rng: np.random.Generator) -> Point:
    angle = float(rng.uniform(-math.pi, math.pi))
    away = group.spread * math.sqrt(float(rng.uniform(0, 1)))
    x = group.centre[0] + away * math.cos(angle)
    y = group.centre[1] + away * math.sin(angle)
    reach = math.hypot(x, y)
    limit = 0.9 / max(reach, 0.9)
    direction = math.atan2(y, x)
    radius = float(outline(drop, np.asarray([direction], dtype=np.float32))[0])
    return drop.centre[0] + x * limit * radius, drop.centre[1] + y * limit * radius


def _tone(group: Crystals, value: float, tint: float = 1.0) -> Gain:
    """A facet's gain: ``value`` -1 (darkest) to 1 (brightest), coloured by birefringence."""
    base = 1.0 + value * group.contrast
    strength = tint * group.contrast
    red, green, blue = (base * (1.0 + strength * (channel - 1.0)) for channel in group.colour)
    return red, green, blue


def _at(centre: Point, angle: float, along: float, across: float) -> Point:
    cos, sin = math.cos(angle), math.sin(angle)
    return centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos


def _speck(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    half = length / 2
    corners = [_at(centre, angle, half * math.cos(t), half * group.aspect * math.sin(t)) for t in (0.3, 1.7, 2.9, 4.6)]
    layer.polygon(corners, _tone(group, float(rng.uniform(-1.0, -0.2))))
    glint = _at(centre, 0.9, half * 0.3, 0.0)
    layer.disc(glint, half * 0.45, _tone(group, float(rng.uniform(0.2, 1.0))))


def _needle(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    width = max(0.0016, length * 0.035 * (0.5 + group.aspect))
    ends = [_at(centre, angle, -length / 2, 0), _at(centre, angle, length / 2, 0)]
    beside = [_at(end, angle, 0.0, width * 0.8) for end in ends]
    layer.line(beside, _tone(group, float(rng.uniform(0.2, 0.9))), width)
    layer.line(ends, _tone(group, float(rng.uniform(-1.0, -0.45))), width)


def _rays(
    layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float, fan: float, count: int
) -> None:
    for _ in range(count):
        turn = angle + float(rng.normal(0, fan)) + (math.pi if rng.random() < 0.5 else 0.0)
        reach = length / 2 * float(rng.uniform(0.55, 1.0))
        start, end = _at(centre, turn, length * 0.02, 0), _at(centre, turn, reach, 0)
        width = max(0.0015, length * 0.016)
        layer.line([start, end], _tone(group, float(rng.choice([-0.95, -0.7, -0.5, 0.6]))), width)


def _sheaf(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    _rays(layer, group, rng, centre, length, angle, float(rng.uniform(0.12, 0.4)), 10 + round(120 * min(length, 0.2)))


def _urchin(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    _rays(layer, group, rng, centre, length, angle, 1.8, 18 + round(200 * min(length, 0.25)))
    layer.disc(centre, length * 0.09, _tone(group, -0.9))


def _rod(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    half, wide = length / 2, length * (0.05 + 0.1 * group.aspect)
    cap = wide * float(rng.uniform(0.3, 1.0))
    split = float(rng.uniform(-0.3, 0.3)) * wide
    top = [(-half + cap, -wide), (half - cap, -wide), (half, split), (-half, split)]
    low = [(-half, split), (half, split), (half - cap, wide), (-half + cap, wide)]
    for face, value in ((top, rng.uniform(0.05, 0.7)), (low, rng.uniform(-0.6, 0.0))):
        layer.polygon([_at(centre, angle, x, y) for x, y in face], _tone(group, float(value)))
    rim = [*top[:3], low[2], low[3], top[3], top[0]]
    _edges(layer, group, centre, angle, rim, length)


def _plate(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    half, wide = length / 2, length / 2 * (0.45 + 0.5 * group.aspect)
    skew = float(rng.uniform(-0.4, 0.4)) * wide
    cut = float(rng.choice([0.0, 0.25, 0.45])) * half
    face = [(-half + skew + cut, -wide), (half + skew, -wide), (half - skew, wide - cut), (half - skew - cut, wide), (-half - skew, wide)]
    layer.polygon([_at(centre, angle, x, y) for x, y in face], _tone(group, float(rng.uniform(-0.25, 0.35)), 1.4))
    _edges(layer, group, centre, angle, [*face, face[0]], length)
    step = [(-half * 0.6, -wide * 0.2), (half * 0.5, -wide * 0.35)]
    layer.line([_at(centre, angle, x, y) for x, y in step], _tone(group, 0.5), 0.0015)


def _block(layer: Layer, group: Crystals, rng: np.random.Generator, centre: Point, length: float, angle: float) -> None:
    sides = int(rng.choice([4, 5, 6, 6, 8]))
    half, squash = length / 2, 0.55 + 0.45 * group.aspect
    turns = [2 * math.pi * (i + float(rng.uniform(-0.13, 0.13))) / sides for i in range(sides)]
    outer = [(half * math.cos(t), half * squash * math.sin(t)) for t in turns]
    inset, (dx, dy) = float(rng.uniform(0.35, 0.75)), rng.uniform(-0.14, 0.14, 2) * length
    inner = [(x * inset + float(dx), y * inset + float(dy)) for x, y in outer]
    for i in range(sides):
        j = (i + 1) % sides
        facing = math.cos(angle + (turns[i] + math.pi / sides) + 2.2)
        value = 0.85 * facing + float(rng.uniform(-0.15, 0.15))
        face = [outer[i], outer[j], inner[j], inner[i]]
        layer.polygon([_at(centre, angle, x, y) for x, y in face], _tone(group, value))
    layer.polygon([_at(centre, angle, x, y) for x, y in inner], _tone(group, float(rng.uniform(0.0, 0.45)), 1.3))
    for i in range(sides):
        spoke = [_at(centre, angle, *outer[i]), _at(centre, angle, *inner[i])]
        layer.line(spoke, _tone(group, -0.35), max(0.0012, length * 0.012))
    _edges(layer, group, centre, angle, [*inner, inner[0]], length, 0.5)
    _edges(layer, group, centre, angle, [*outer, outer[0]], length)


def _edges(
    layer: Layer, group: Crystals, centre: Point, angle: float, points: list[Point], length: float, strength: float = 1.0
) -> None:
    """Each edge dark or bright by the side it turns to the light."""
    width = max(0.0018, min(0.006, length * 0.028))
    for start, end in zip(points, points[1:], strict=False):
        direction = math.atan2(end[1] - start[1], end[0] - start[0]) + angle
        value = 0.75 if math.cos(direction - 0.6) > 0.75 else -0.95
        both = [_at(centre, angle, *start), _at(centre, angle, *end)]
        layer.line(both, _tone(group, value * strength, 0.5), width)

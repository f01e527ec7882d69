"""Debris in or on a drop, and oil droplets, which are drawn the same way."""

import math

import numpy as np

from marcod.synthetic.fields import rng_of
from marcod.synthetic.scene import Debris, Drop, Oil, Well
from marcod.synthetic.strokes import Layer, Point, grey_gain


def draw_debris(layer: Layer, debris: Debris, drop: Drop | None, well: Well) -> None:
    """Dust and scratches anywhere in the well, fibres and bubbles mostly in the drop."""
    rng = rng_of(debris.seed, 9)
    home = (drop.centre, drop.radius) if drop else (well.centre, well.radius * 0.8)
    for _ in range(debris.dust):
        spot = _somewhere(rng, well.centre, well.radius)
        _mote(layer, rng, spot, 0.0012 + float(rng.exponential(0.0014)))
    for _ in range(debris.scratches):
        _scratch(layer, rng, well)
    for _ in range(debris.fibres):
        _fibre(layer, rng, _somewhere(rng, *(home if rng.random() < 0.7 else (well.centre, well.radius))))
    for _ in range(debris.bubbles):
        _ringed(layer, _somewhere(rng, *home), 0.006 + float(rng.exponential(0.012)), float(rng.uniform(0.35, 0.9)))


def draw_oil(layer: Layer, oil: Oil, drop: Drop, grown: float) -> None:
    """Droplets from a fine emulsion to a few large ones, never over the drop's edge."""
    rng = rng_of(oil.seed, 10)
    for _ in range(oil.count):
        spot = _somewhere(rng, drop.centre, drop.radius * 0.82)
        radius = oil.size * float(rng.lognormal(-0.4, 0.5)) * math.sqrt(grown)
        _ringed(layer, spot, min(radius, drop.radius * 0.25), oil.contrast)


def draw_satellites(layer: Layer, drop: Drop) -> None:
    """Draw small drops that the dispenser left next to the large one."""
    rng = rng_of(drop.seed, 4)
    for _ in range(drop.satellites):
        angle, away = float(rng.uniform(0, 2 * math.pi)), drop.radius * float(rng.uniform(1.12, 1.5))
        spot = (drop.centre[0] + math.cos(angle) * away, drop.centre[1] + math.sin(angle) * away)
        _ringed(layer, spot, drop.radius * float(rng.uniform(0.02, 0.1)), 0.3 + 0.5 * drop.lens)


def _somewhere(rng: np.random.Generator, centre: Point, radius: float) -> Point:
    angle, away = float(rng.uniform(0, 2 * math.pi)), radius * 0.95 * math.sqrt(float(rng.uniform(0, 1)))
    return centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle)


def _mote(layer: Layer, rng: np.random.Generator, spot: Point, size: float) -> None:
    """Draw a speck of dust: a dark crumb, or one far out of focus that is large and faint."""
    if rng.random() < 0.12:
        layer.disc(spot, size * 4, grey_gain(0.955))
        layer.disc(spot, size * 2.5, grey_gain(0.94))
        return
    turns = np.sort(rng.uniform(0, 2 * math.pi, 5)).tolist()
    reach = (size * rng.uniform(0.7, 1.6, 5)).tolist()
    crumb = [(spot[0] + r * math.cos(t), spot[1] + r * math.sin(t)) for t, r in zip(turns, reach, strict=True)]
    layer.polygon(crumb, grey_gain(float(rng.uniform(0.25, 0.85))))


def _ringed(layer: Layer, centre: Point, radius: float, contrast: float) -> None:
    """Draw a sphere under transmitted light: dark ring, grey body, bright heart a little off centre."""
    for share, value in ((1.0, -0.8), (0.8, -0.25), (0.62, 0.12), (0.3, 0.55)):
        moved = (centre[0] + radius * 0.08 * (1 - share), centre[1] + radius * 0.16 * (1 - share))
        layer.disc(moved, radius * share, grey_gain(1.0 + value * contrast))


def _scratch(layer: Layer, rng: np.random.Generator, well: Well) -> None:
    start, angle = _somewhere(rng, well.centre, well.radius), float(rng.uniform(0, math.pi))
    reach = float(rng.uniform(0.1, 1.0))
    bend = float(rng.uniform(-0.05, 0.05))
    points = [
        (start[0] + t * reach * math.cos(angle), start[1] + t * reach * math.sin(angle) + bend * t * t)
        for t in np.linspace(-0.5, 0.5, 9).tolist()
    ]
    layer.line(points, grey_gain(float(rng.choice([0.8, 0.88, 1.1]))), 0.0018)


def _fibre(layer: Layer, rng: np.random.Generator, start: Point) -> None:
    """Draw a hair or lint: a line whose direction wanders."""
    steps = int(rng.integers(6, 22))
    reach = float(rng.uniform(0.04, 0.35))
    turn = float(rng.uniform(0, 2 * math.pi)) + np.cumsum(rng.normal(0, rng.uniform(0.03, 0.35), steps))
    x = start[0] + np.cumsum(np.cos(turn)) * reach / steps
    y = start[1] + np.cumsum(np.sin(turn)) * reach / steps
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    width = float(rng.uniform(0.0018, 0.006))
    layer.line([(px, py + width * 0.7) for px, py in points], grey_gain(1.12), width)
    layer.line(points, grey_gain(float(rng.uniform(0.3, 0.75))), width)

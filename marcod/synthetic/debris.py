"""Debris in or on a drop, and round things (oil droplets, bubbles, satellites), with edges like those of crystals."""

import math

import numpy as np

from marcod.synthetic.fields import Field, rng_of, smoothstep
from marcod.synthetic.scene import Debris, DropShape, Oil, Well
from marcod.synthetic.strokes import Layer, Point, grey_gain

Rng = np.random.Generator


def draw_debris(layer: Layer, debris: Debris, drop: DropShape | None, well: Well) -> None:
    """Dust and scratches anywhere in the well, fibres, creases and bubbles mostly in the drop."""
    rng = rng_of(debris.seed, 9)
    home = (drop.centre, drop.radius) if drop else (well.centre, well.radius * 0.8)
    for _ in range(debris.dust):
        _mote(layer, rng, _somewhere(rng, well.centre, well.radius), 0.0012 + float(rng.exponential(0.0014)))
    for _ in range(debris.scratches):
        _scratch(layer, rng, _somewhere(rng, well.centre, well.radius))
    for _ in range(debris.fibres):
        _fibre(layer, rng, _somewhere(rng, *(home if rng.random() < 0.7 else (well.centre, well.radius))))
    for _ in range(debris.creases if drop else 0):
        _crease(layer, rng, _somewhere(rng, *home), home)
    light = drop.light if drop else 0.0
    dark, usual = float(rng.uniform(0.35, 0.7)), math.exp(float(rng.uniform(math.log(0.008), math.log(0.03))))
    for _ in range(debris.bubbles):
        radius = usual * math.exp(float(rng.normal(0, 0.45)))
        _round(layer, _in_frame(rng, home), radius, dark, float(rng.uniform(0.75, 0.95)), light)


def draw_oil(layer: Layer, oil: Oil, drop: DropShape, grown: float) -> None:
    """Droplets from a fine emulsion to a few large ones, never over the drop's edge."""
    rng = rng_of(oil.seed, 10)
    for _ in range(oil.count):
        spot = _somewhere(rng, drop.centre, drop.radius * 0.82)
        radius = oil.size * float(rng.lognormal(-0.5, 0.75)) * math.sqrt(grown)
        _round(layer, spot, min(radius, drop.radius * 0.25), oil.dark, oil.contrast, drop.light)


def draw_satellites(layer: Layer, drop: DropShape) -> None:
    """Draw small drops that the dispenser left next to the large one."""
    rng = rng_of(drop.seed, 4)
    for _ in range(drop.satellites):
        angle, away = float(rng.uniform(0, 2 * math.pi)), drop.radius * float(rng.uniform(1.12, 1.5))
        spot = (drop.centre[0] + math.cos(angle) * away, drop.centre[1] + math.sin(angle) * away)
        _round(layer, spot, drop.radius * float(rng.uniform(0.02, 0.12)), 0.2, 0.3 + 0.5 * drop.lens, drop.light)


def _somewhere(rng: Rng, centre: Point, radius: float) -> Point:
    angle, away = float(rng.uniform(0, 2 * math.pi)), radius * 0.95 * math.sqrt(float(rng.uniform(0, 1)))
    return centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle)


def _in_frame(rng: Rng, home: tuple[Point, float]) -> Point:
    """Pick a point of a drop that is in the image, if a few tries find one."""
    spots = [_somewhere(rng, *home) for _ in range(6)]
    return next((spot for spot in spots if max(map(abs, spot)) < 0.45), spots[0])


def _mote(layer: Layer, rng: Rng, spot: Point, size: float) -> None:
    """Draw a speck of dust: a dark crumb, or one far out of focus that is large and faint."""
    if rng.random() < 0.12:
        layer.disc(spot, size * 4, grey_gain(0.955))
        layer.disc(spot, size * 2.5, grey_gain(0.94))
        return
    turns = np.sort(rng.uniform(0, 2 * math.pi, 5)).tolist()
    reach = (size * rng.uniform(0.7, 1.6, 5)).tolist()
    crumb = [(spot[0] + r * math.cos(t), spot[1] + r * math.sin(t)) for t, r in zip(turns, reach, strict=True)]
    layer.polygon(crumb, grey_gain(float(rng.uniform(0.25, 0.85))))


def _round(layer: Layer, centre: Point, radius: float, dark: float, contrast: float, light: float) -> None:
    """Draw a sphere under transmitted light: a dark ring, ``dark`` of the radius wide, a bright line, a clear heart.

    ``light`` is the side (radians) that is brighter. Without a radius, as before anything grows, nothing is drawn.
    """
    window = layer.window(centre, radius * 1.3 + layer.pixel) if radius > 0 else None
    if window is None:
        return
    rho = np.sqrt(window.x * window.x + window.y * window.y) / np.float32(radius)
    toward = (window.x * np.float32(math.cos(light)) + window.y * np.float32(math.sin(light))) / np.float32(radius)
    soft = layer.pixel / radius
    dome = 1.0 + np.float32(0.3 * contrast) * toward * smoothstep(rho, 1.0, 0.8)
    layer.shade(window, dome * _ring(rho, dark + 0.5 * soft, soft, contrast * (1.0 - 0.25 * toward)))


def _ring(rho: Field, dark: float, soft: float, contrast: Field) -> Field:
    band = smoothstep(rho, 1.0 - dark - soft, 1.0 - 0.5 * dark) * smoothstep(rho, 1.0 + 0.1 * dark + soft, 1.0 - soft)
    line = np.exp(-(((rho - np.float32(1.0 - 1.3 * dark)) / np.float32(0.3 * dark + 0.05)) ** 2))
    halo = np.exp(-(((rho - np.float32(1.0 + 0.4 * dark)) / np.float32(0.3 * dark + 0.05)) ** 2))
    gain: Field = (1.0 - np.clip(band * contrast, 0.0, 0.95)) * (1.0 + contrast * (0.3 * line + 0.1 * halo))
    return gain


def _edged(layer: Layer, points: list[Point], width: float, dark: float, clear: float) -> None:
    """Draw a transparent thread: a bright line along two dark edges, ``clear`` the gain between them."""
    layer.line([(x, y + width * 0.8) for x, y in points], grey_gain(1.0 + 0.3 * (1.0 - dark)), width)
    layer.line(points, grey_gain(dark), width)
    if width > 2 * layer.pixel:
        layer.line(points, grey_gain(clear), width * 0.5)


def _scratch(layer: Layer, rng: Rng, start: Point) -> None:
    """Draw a scratch of plastic or glass: nearly straight, often several side by side."""
    angle, bend = float(rng.uniform(0, math.pi)), float(rng.uniform(-0.08, 0.08))
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        reach, dark = float(rng.uniform(0.05, 0.8)), float(rng.uniform(0.55, 0.92))
        x, y = start[0] + float(rng.normal(0, 0.02)), start[1] + float(rng.normal(0, 0.02))
        along = (np.linspace(-0.5, 0.5, 9) * reach).tolist()
        points = [(x + t * math.cos(angle), y + t * math.sin(angle) + bend * t * t) for t in along]
        _edged(layer, points, float(rng.uniform(0.0016, 0.004)), dark, 1.0)


def _fibre(layer: Layer, rng: Rng, start: Point) -> None:
    """Draw a hair or lint: a line whose direction wanders, solid or clear inside."""
    width, clear = float(rng.uniform(0.002, 0.009)), float(rng.uniform(0.5, 1.05))
    points = _wander(rng, start, float(rng.uniform(0.06, 0.6)), float(rng.uniform(0.03, 0.35)))
    _edged(layer, points, width, float(rng.uniform(0.2, 0.7)), clear)


def _crease(layer: Layer, rng: Rng, start: Point, home: tuple[Point, float]) -> None:
    """Draw a fold of the drop's surface: a soft dark line along a bright one, near the edge."""
    (x, y), radius = home
    away = 0.85 / max(math.hypot(start[0] - x, start[1] - y) / radius, 0.2)
    begin = (x + (start[0] - x) * away, y + (start[1] - y) * away)
    points = _wander(rng, begin, radius * float(rng.uniform(0.15, 0.7)), 0.12)
    _edged(layer, points, float(rng.uniform(0.003, 0.008)), float(rng.uniform(0.45, 0.85)), float(rng.uniform(0.8, 1)))


def _wander(rng: Rng, start: Point, reach: float, restless: float) -> list[Point]:
    steps = int(rng.integers(8, 26))
    turn = float(rng.uniform(0, 2 * math.pi)) + np.cumsum(rng.normal(0, restless, steps))
    x = start[0] + np.cumsum(np.cos(turn)) * reach / steps
    y = start[1] + np.cumsum(np.sin(turn)) * reach / steps
    return list(zip(x.tolist(), y.tolist(), strict=True))

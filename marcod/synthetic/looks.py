"""Random wells, drops, dust and cameras, as each imager shows them; none of it depends on the drop's class."""

import math
from typing import Final

import numpy as np

from marcod.synthetic.scene import Camera, Colour, Debris, DropShape, ImagerStyle, Well

Rng = np.random.Generator
_THUMBNAIL: Final = 0.12
_GREY: Final = {ImagerStyle.FORMULATRIX: 0.08, ImagerStyle.RIGAKU: 0.05, ImagerStyle.HWI: 0.05, ImagerStyle.SQUARE: 0.5}
_LIGHTS: Final[dict[ImagerStyle, tuple[float, float]]] = {
    ImagerStyle.FORMULATRIX: (150, 225),
    ImagerStyle.RIGAKU: (115, 160),
    ImagerStyle.HWI: (195, 242),
    ImagerStyle.SQUARE: (165, 245),
    ImagerStyle.SLANTED: (120, 205),
    ImagerStyle.CLOSE_UP: (110, 235),
}
_TINTS: Final[dict[ImagerStyle, tuple[Colour, ...]]] = {
    ImagerStyle.FORMULATRIX: ((0.95, 1.0, 1.1), (1.0, 0.93, 1.02), (0.97, 1.0, 0.92), (1.03, 1.0, 0.93)),
    ImagerStyle.RIGAKU: ((1.0, 0.957, 0.79),),
    ImagerStyle.HWI: ((0.93, 1.0, 1.01), (1.0, 0.99, 1.0), (1.0, 1.0, 0.97), (0.92, 0.97, 0.9)),
    ImagerStyle.SQUARE: ((1.0, 1.0, 0.98), (1.0, 0.98, 0.95)),
    ImagerStyle.SLANTED: ((0.83, 1.0, 0.9), (0.93, 1.0, 0.95), (0.9, 1.0, 0.8)),
    ImagerStyle.CLOSE_UP: ((1.0, 1.0, 1.0), (0.85, 1.0, 0.65), (1.0, 0.94, 1.0), (0.97, 1.0, 1.05)),
}


def between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform: as often between 1 and 2 as between 2 and 4."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def new_seed(rng: Rng) -> int:
    """Draw the seed of a part's details."""
    return int(rng.integers(2**31))


def random_camera(rng: Rng, imager: ImagerStyle, shot: int = 0) -> Camera:
    """Draw an ordinary exposure: nearly in focus, nearly well lit; some are thumbnails scaled up."""
    rows = int(rng.integers(80, 190))
    return Camera(
        exposure=float(rng.normal(1.0, 0.07)),
        defocus=float(min(0.006, rng.exponential(0.0014))),
        noise=between(rng, 0.4, 2.6),
        vignette=float(rng.uniform(0.0, 0.35)),
        jpeg_quality=int(rng.integers(55, 96)) if rng.random() < 0.5 else None,
        grey=bool(rng.random() < _GREY.get(imager, 0.15)),
        rows=rows if rng.random() < _THUMBNAIL else None,
        shot=shot,
    )


def random_well(rng: Rng, imager: ImagerStyle, variant: int | None) -> Well:
    """Draw an empty well and its light; ``variant`` is the look of the well."""
    drawn = int(rng.integers(3))
    variant = drawn if variant is None else variant % 3
    x, y, radius = _frame(rng, imager, variant)
    tint = _TINTS[imager][int(rng.integers(len(_TINTS[imager])))]
    grey = float(rng.uniform(*_LIGHTS[imager]))
    red, green, blue = (grey * channel * float(rng.normal(1.0, 0.02)) for channel in tint)
    return Well(
        new_seed(rng),
        (x + float(rng.normal(0, 0.018)), y + float(rng.normal(0, 0.012))),
        radius,
        variant,
        (red, green, blue),
        polariser=_polariser(rng, imager),
        slope=_slope(rng, imager, variant),
    )


def _frame(rng: Rng, imager: ImagerStyle, variant: int) -> tuple[float, float, float]:
    """Return the well's centre and radius."""
    if imager is ImagerStyle.FORMULATRIX:
        return -0.02, -0.005, float(rng.uniform(0.42, 0.475))
    if imager is ImagerStyle.RIGAKU:
        return (0.2, 0.14, 0.11)[variant], -0.02, float(rng.uniform(0.49, 0.54))
    if imager is ImagerStyle.HWI:
        return 0.0, 0.0, float(rng.uniform(0.34, 0.45))
    if imager is ImagerStyle.SQUARE:
        return float(rng.normal(0, 0.03)), 0.0, float(rng.uniform(0.4, 0.52))
    if imager is ImagerStyle.SLANTED:
        return 0.02, 0.04, float(rng.uniform(0.52, 0.66))
    return 0.0, 0.0, 0.75


def _polariser(rng: Rng, imager: ImagerStyle) -> float:
    """Most imagers have no polariser; where they do, it colours from a hint to everything."""
    shares = {ImagerStyle.FORMULATRIX: 0.7, ImagerStyle.SLANTED: 0.3, ImagerStyle.CLOSE_UP: 0.3, ImagerStyle.HWI: 0.1}
    if rng.random() >= shares.get(imager, 0.05):
        return 0.0
    return between(rng, 0.05, 0.4) if rng.random() < 0.85 else float(rng.uniform(0.4, 0.8))


def _slope(rng: Rng, imager: ImagerStyle, variant: int) -> tuple[float, float]:
    if imager is ImagerStyle.RIGAKU:
        return float(rng.uniform(-0.03, 0.06)), -0.16
    if imager is ImagerStyle.SLANTED and variant != 2:
        return float(rng.uniform(-0.9, -0.15)), float(rng.uniform(-0.3, 0.3))
    steep = 0.12 if imager in (ImagerStyle.FORMULATRIX, ImagerStyle.HWI) else 0.4
    return float(rng.normal(0, steep / 2)), float(rng.normal(0, steep / 2))


def random_debris(rng: Rng) -> Debris:
    """Draw dust, and now and then things with edges like those of crystals."""
    return Debris(
        dust=int(rng.poisson(between(rng, 0.7, 16))),
        fibres=int(rng.poisson(0.25)),
        scratches=int(rng.poisson(0.25)),
        creases=int(rng.poisson(0.3)),
        bubbles=min(3, int(rng.poisson(0.2))),
        seed=new_seed(rng),
    )


def random_drop(rng: Rng, imager: ImagerStyle, well: Well) -> DropShape:
    """Draw a drop's outline and how it bends light."""
    radius, wobble, filling = _size(rng, imager, well)
    harmonics = tuple(
        (k, float(rng.normal(0, wobble / (k - 1))), float(rng.uniform(0, 2 * math.pi))) for k in (2, 3, 4, 5)
    )
    lens, tilt = _dome(rng, imager)
    return DropShape(
        centre=_centre(rng, imager, well, radius),
        radius=radius,
        harmonics=harmonics,
        tips=() if filling else _tips(rng, imager),
        arcs=() if filling else _arcs(rng),
        lens=lens,
        tilt=tilt,
        light=float(rng.normal(1.05, 0.3)) if imager is ImagerStyle.RIGAKU else float(rng.uniform(-math.pi, math.pi)),
        rim=float(rng.uniform(0.0, 0.17)) if imager is ImagerStyle.RIGAKU else float(rng.uniform(0.1, 0.8)),
        rim_width=between(rng, 0.008, 0.035),
        haze=float(rng.uniform(0.0, 0.12)),
        satellites=int(rng.poisson(0.3)),
        seed=new_seed(rng),
    )


def _size(rng: Rng, imager: ImagerStyle, well: Well) -> tuple[float, float, bool]:
    """Return the radius, the outline's unevenness, and whether the drop fills the well or the image."""
    wobble = between(rng, 0.012, 0.12)
    if imager is ImagerStyle.FORMULATRIX:
        filling = bool(rng.random() < 0.35)
        return (well.radius * 1.12, 0.01, True) if filling else (between(rng, 0.19, 0.38), wobble, False)
    if imager is ImagerStyle.RIGAKU:
        return float(np.clip(rng.normal(0.222, 0.032), 0.14, 0.33)), wobble, False
    if imager is ImagerStyle.HWI:
        filling = bool(rng.random() < 0.75)
        return well.radius * (1.15 if filling else float(rng.uniform(0.5, 0.95))), 0.3 * wobble, filling
    if imager is ImagerStyle.CLOSE_UP:
        filling = bool(rng.random() < 0.4)
        return float(rng.uniform(0.95, 1.3) if filling else rng.uniform(0.26, 0.6)), wobble, filling
    if imager is ImagerStyle.SQUARE:
        return between(rng, 0.18, 0.42), wobble, False
    return (between(rng, 0.12, 0.26) if well.variant == 2 else float(rng.uniform(0.24, 0.42))), wobble, False


def _centre(rng: Rng, imager: ImagerStyle, well: Well, radius: float) -> tuple[float, float]:
    """Place the drop in its well; in square wells often in a corner, where wall and frame cut it."""
    room = max(0.0, well.radius * (0.8 if imager is ImagerStyle.RIGAKU else 0.93) - radius)
    if imager is ImagerStyle.CLOSE_UP:
        room = float(rng.uniform(0.0, 0.3))
    angle, away = rng.uniform(0, 2 * math.pi), room * math.sqrt(rng.uniform(0, 0.8))
    if imager is ImagerStyle.SQUARE and well.variant == 1:
        angle, away = float(rng.integers(4)) * math.pi / 2 + math.pi / 4, well.radius * float(rng.uniform(0.1, 0.85))
        return well.centre[0] + float(math.cos(angle) * away), well.centre[1] + float(math.sin(angle) * away)
    return well.centre[0] + float(math.cos(angle) * away), well.centre[1] + float(math.sin(angle) * away * 0.6)


def _dome(rng: Rng, imager: ImagerStyle) -> tuple[float, float]:
    """Return how strongly the dome bends light, from flat to a dark lens with a bright spot, and its slant."""
    if imager is ImagerStyle.RIGAKU:
        return float(rng.beta(1.3, 1.6)) * 0.95, float(rng.uniform(0.12, 0.5))
    if imager in (ImagerStyle.SQUARE, ImagerStyle.CLOSE_UP, ImagerStyle.SLANTED):
        dark = rng.random() < 0.3
        return float(rng.uniform(0.4, 0.95) if dark else rng.uniform(0.02, 0.35)), float(rng.uniform(-0.3, 0.3))
    return between(rng, 0.02, 0.4), float(rng.uniform(-0.08, 0.08))


def _tips(rng: Rng, imager: ImagerStyle) -> tuple[tuple[float, float, float], ...]:
    """Corners left by the dispensing needle."""
    if imager is ImagerStyle.HWI:
        return ()
    rate = 1.6 if imager is ImagerStyle.RIGAKU else 0.7
    at = [math.pi / 2, -math.pi / 2.6]
    tips = []
    for index in range(min(4, int(rng.poisson(rate)))):
        angle = (
            float(rng.normal(at[index % 2], 0.45)) if imager is ImagerStyle.RIGAKU else float(rng.uniform(-3.14, 3.14))
        )
        tips.append((angle, float(rng.uniform(0.03, 0.2)), float(rng.uniform(0.06, 0.3))))
    return tuple(tips)


def _arcs(rng: Rng) -> tuple[tuple[float, float, float], ...]:
    """Stretches where the drop's edge is steep and dark."""
    count = int(rng.choice(4, p=[0.3, 0.3, 0.25, 0.15]))
    return tuple(
        (float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.3, 0.95)), between(rng, 0.03, 0.25))
        for _ in range(count)
    )

"""Contents of a drop that fill it: precipitate and skins.

Each function gives a gain, [3, h, w] or [h, w], that the drop's light is multiplied with.
"""

import numpy as np

from marcod.synthetic.fields import Field, Light, Plane, fractal, noise, relief, rng_of, smoothstep
from marcod.synthetic.lens import Footprint
from marcod.synthetic.scene import Film, Grain, Precipitate

# Precipitate removes blue more than red; pure grey scatterers remove all alike.
_BROWN = np.asarray([0.72, 1.0, 1.5], dtype=np.float32)[:, None, None]
_GREY = np.ones((3, 1, 1), dtype=np.float32)


def precipitate_gain(part: Precipitate, amount: float, shape: Footprint, plane: Plane, light: float) -> Light:
    """Absorption and embossed grain of a precipitate of ``amount`` 0 to 1, as a gain [3, h, w]."""
    rng = rng_of(part.seed, 5)
    where = _where(part, shape, plane, rng)
    grains = _grains(part, plane, rng)
    depth = where * (0.5 + 0.5 * np.clip(grains, -0.5, 2.5)) * np.float32(amount)
    colour = _GREY + (_BROWN - _GREY) * np.float32(part.brown)
    gain = np.exp(colour * (np.maximum(depth, 0.0) * np.float32(-1.0)))
    if part.relief > 0:
        bumps = np.tanh(relief(grains, plane, light) / np.float32(2.2 * part.cells))
        gain = gain * (1.0 + bumps * where * np.float32(0.5 * part.relief * min(1.0, amount * 1.3)))
    masked: Light = 1.0 + (gain - 1.0) * shape.inside
    return masked


def _where(part: Precipitate, shape: Footprint, plane: Plane, rng: np.random.Generator) -> Field:
    """Return the density, 0 to about 1.5: patches, and more at the edge or in the middle."""
    patches = np.clip(1.0 + np.float32(part.patchy) * fractal(plane, rng, 5, 3), 0.0, 2.0)
    rho = np.minimum(shape.rho, 1.0)
    if part.ring >= 0:
        profile = (1.0 - part.ring) + part.ring * np.exp(-(((rho - 0.82) / 0.13) ** 2)) * 1.4
    else:
        profile = (1.0 + part.ring) - part.ring * np.exp(-((rho / 0.42) ** 2)) * 1.5
    density: Field = patches * profile.astype(np.float32)
    return density


def _grains(part: Precipitate, plane: Plane, rng: np.random.Generator) -> Field:
    """Return the height of the grains, about 0 to 2."""
    if part.grain is Grain.SMOOTH:
        return 0.8 + 0.35 * fractal(plane, rng, part.cells * 0.08, 4)
    if part.grain is Grain.FINE:
        return 0.8 + 0.4 * noise(plane, rng, part.cells) + 0.15 * fractal(plane, rng, 12, 2)
    if part.grain is Grain.GRAINY:
        return 0.45 + 0.9 * smoothstep(fractal(plane, rng, part.cells, 2), -1.2, 2.6) + 0.15 * noise(plane, rng, 9)
    if part.grain is Grain.CLUMPED:
        clumps = smoothstep(fractal(plane, rng, part.cells * 0.25, 4), -0.3, 2.0)
        return 0.15 + 1.7 * clumps + 0.3 * noise(plane, rng, part.cells * 1.5)
    ridges = 1.0 - np.abs(fractal(plane, rng, part.cells * 0.35, 4))
    return 0.2 + 1.1 * smoothstep(ridges, 0.2, 1.05) + 0.3 * noise(plane, rng, part.cells * 1.3)


def film_gain(film: Film, grown: float, shape: Footprint, plane: Plane, light: float) -> Field:
    """Draw a skin: soft folds, sharp creases where it is crumpled, and rings near the drop's edge."""
    rng = rng_of(film.seed, 6)
    strength = np.float32(film.wrinkle * grown)
    sheet, warp = fractal(plane, rng, film.cells, 3), noise(plane, rng, film.cells * 0.5)
    somewhere = smoothstep(warp + 0.8 * shape.rho, -0.3, 1.2)
    soft = np.tanh(relief(sheet, plane, light) / np.float32(6.0 * film.cells))
    gain = 1.0 + soft * strength * np.float32(0.55) * somewhere - np.float32(0.1 * grown)
    broken = smoothstep(noise(plane, rng, film.cells * 0.8), 0.0, 1.4)
    gain = gain * _folds(sheet, plane, min(0.045 / film.cells, 0.006), strength * broken)
    rings = np.sin(shape.rho * np.float32(26.0) + warp * 4.0) * smoothstep(shape.rho, 0.5, 0.95)
    gain = gain * (1.0 + np.float32(0.1) * strength * rings)
    if film.crumple > 0:
        gain = gain * _crushed(
            film, plane, rng, light, film.crumple * strength * (0.25 + 0.75 * smoothstep(warp, -0.8, 0.6))
        )
    masked: Field = 1.0 + (gain - 1.0) * shape.inside
    return masked


def _crushed(film: Film, plane: Plane, rng: np.random.Generator, light: float, strength: Field) -> Field:
    """Return the gain of a film crumpled like paper: flat between creases, each with a dark and a bright flank."""
    sheet = np.abs(fractal(plane, rng, film.cells, 2)) + 0.4 * np.abs(noise(plane, rng, film.cells * 3.5))
    slope = np.tanh(relief(sheet, plane, light) / np.float32(5.0 * film.cells))
    ridge = smoothstep(sheet, 0.22, 0.0)
    gain: Field = (1.0 + np.float32(0.6) * slope * strength) * (1.0 - np.float32(0.55) * ridge * strength)
    return gain


def _folds(sheet: Field, plane: Plane, width: float, strength: Field) -> Field:
    """Draw folds along the zero line of a field: dark with a bright line along it, ``width`` heights thick."""
    down, right = np.gradient(sheet)
    away = sheet / (np.sqrt(down * down + right * right) + np.float32(1e-4)) / np.float32(plane.scale)
    width = max(width, 0.7 / plane.scale)
    dark = np.exp(-((away / np.float32(width)) ** 2))
    bright = np.exp(-(((away - np.float32(1.9 * width)) / np.float32(0.8 * width)) ** 2))
    gain: Field = (1.0 - np.float32(0.8) * dark * strength) * (1.0 + np.float32(0.4) * bright * strength)
    return gain

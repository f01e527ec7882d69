"""Contents of a drop without facets: precipitate, skins, and droplets of a second liquid.

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
    depth = where * (0.35 + 0.65 * np.clip(grains, -0.5, 2.5)) * np.float32(amount)
    colour = _GREY + (_BROWN - _GREY) * np.float32(part.brown)
    veil = np.exp(colour * (np.maximum(depth, 0.0) * np.float32(-1.15)))
    bumps = np.tanh(relief(grains, plane, light) / np.float32(2.2 * part.cells))
    emboss = 1.0 + bumps * where * np.float32(0.45 * min(1.0, amount * 1.3))
    gain: Light = 1.0 + (veil * emboss - 1.0) * shape.inside
    return gain


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
    if part.grain is Grain.FINE:
        return 0.8 + 0.6 * noise(plane, rng, part.cells)
    if part.grain is Grain.GRAINY:
        return 0.3 + 1.3 * smoothstep(fractal(plane, rng, part.cells, 2), -0.6, 2.6)
    if part.grain is Grain.CLUMPED:
        clumps = smoothstep(fractal(plane, rng, part.cells * 0.25, 4), -0.3, 2.0)
        return 0.15 + 1.7 * clumps + 0.3 * noise(plane, rng, part.cells * 1.5)
    ridges = 1.0 - np.abs(fractal(plane, rng, part.cells * 0.35, 4))
    return 0.2 + 1.1 * smoothstep(ridges, 0.2, 1.05) + 0.3 * noise(plane, rng, part.cells * 1.3)


def film_gain(film: Film, grown: float, shape: Footprint, plane: Plane, light: float) -> Field:
    """Emboss a skin: long folds over the drop, strongest towards its edge."""
    rng = rng_of(film.seed, 6)
    warp = noise(plane, rng, film.cells * 0.5)
    folds = fractal(plane, rng, film.cells, 2) + 0.5 * warp
    folds = np.exp(-2.5 * folds * folds) + 0.1 * np.sin(shape.rho * np.float32(24.0) + warp * 4.0)
    slope = np.tanh(relief(folds, plane, light) / np.float32(5.0 * film.cells))
    somewhere = smoothstep(noise(plane, rng, 4) + 1.2 * shape.rho, -0.4, 1.4)
    strength = np.float32(film.wrinkle * grown) * (0.2 + 0.8 * somewhere)
    gain: Field = 1.0 + (slope * strength - np.float32(0.12 * grown)) * shape.inside
    return gain

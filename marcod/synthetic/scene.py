"""The content of an image, as values: well, drop, contents with their growth, debris, camera.

Lengths are in image heights, the origin is the image's centre, y points down, angles are radians and ages are
days since the drop was set. Seeds decide the details without a name (which grain lies where), so two scenes
that differ only in ``age_d`` or ``camera`` show the same drop.
"""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from marcod.domain import DropClass, Modality

Colour = tuple[float, float, float]


class ImagerStyle(StrEnum):
    """Whose images a scene imitates: three makers, square wells, wells in slanting light, microscopes close up."""

    FORMULATRIX = "formulatrix"
    RIGAKU = "rigaku"
    HWI = "hwi"
    SQUARE = "square"
    SLANTED = "slanted"
    CLOSE_UP = "close-up"


class Habit(StrEnum):
    """The shape crystals grow in."""

    MICRO = "micro"
    NEEDLE = "needle"
    SHEAF = "sheaf"
    URCHIN = "urchin"
    PRISM = "prism"
    PLATE = "plate"
    BIPYRAMID = "bipyramid"
    WEDGE = "wedge"
    CUBE = "cube"
    HEXAGON = "hexagon"


class Grain(StrEnum):
    """The texture of a precipitate."""

    SMOOTH = "smooth"
    FINE = "fine"
    GRAINY = "grainy"
    CLUMPED = "clumped"
    NETWORK = "network"


# Below these lengths a person at a microscope would not call it a crystal.
VISIBLE: Final = 0.011
VISIBLE_MICRO: Final = 0.006
# Below this amount a precipitate is a haze that people score as clear.
VISIBLE_PRECIPITATE: Final = 0.16
# One or two bubbles are an accident of dispensing; a drop full of them is spoiled.
FOAM: Final = 4


@dataclass(frozen=True, slots=True)
class Growth:
    """Nothing until ``start_d``, then towards full size with constant ``tau_d``, dissolving from ``dissolve_d``."""

    start_d: float = 0.0
    tau_d: float = 1.0
    dissolve_d: float | None = None

    def fraction(self, age_d: float) -> float:
        """Return the share of the final size reached, 0 to 1."""
        if age_d <= self.start_d:
            return 0.0
        grown = 1.0 - math.exp(-(age_d - self.start_d) / self.tau_d)
        if self.dissolve_d is None or age_d <= self.dissolve_d:
            return grown
        return grown * math.exp(-3.0 * (age_d - self.dissolve_d) / self.tau_d)


@dataclass(frozen=True, slots=True)
class Crystals:
    """Crystals of one habit, nucleated together within ``spread`` drop radii of ``centre``, itself in drop radii.

    ``rim`` is the width of the dark refraction rim as a share of a crystal's length, ``contrast`` its darkness,
    ``opening`` the slope of a face at which light no longer reaches the lens (small: thick crystals are black).
    ``at_edge`` is the share of members that sit at the drop's edge.
    """

    habit: Habit
    count: int
    size: float
    centre: tuple[float, float]
    spread: float
    aspect: float
    contrast: float
    rim: float
    opening: float
    at_edge: float
    colour: Colour
    growth: Growth
    seed: int

    def size_at(self, age_d: float) -> float:
        """Length of the largest member."""
        return self.size * self.growth.fraction(age_d)

    def visible_at(self, age_d: float) -> bool:
        return self.size_at(age_d) >= (VISIBLE_MICRO if self.habit is Habit.MICRO else VISIBLE)


@dataclass(frozen=True, slots=True)
class Precipitate:
    """Protein out of solution: ``amount`` from 0, ``ring`` -1 (middle) to 1 (edge), ``cells`` grains per height.

    ``relief`` is how strongly the grains shine and shade, 0 (a smooth cloud) to 1.
    """

    grain: Grain
    amount: float
    cells: float
    patchy: float
    ring: float
    brown: float
    relief: float
    growth: Growth
    seed: int

    def amount_at(self, age_d: float) -> float:
        return self.amount * self.growth.fraction(age_d)


@dataclass(frozen=True, slots=True)
class Film:
    """A skin on the drop: ``wrinkle`` is its relief, ``cells`` the number of folds per height.

    ``crumple`` is how many of the folds are short and sharp, 0 (a smooth skin) to 1 (a crushed film).
    """

    wrinkle: float
    cells: float
    crumple: float
    growth: Growth
    seed: int


@dataclass(frozen=True, slots=True)
class Oil:
    """Phase separation: droplets of a second liquid, clear inside a dark rim; ``dark`` is the rim's share of them."""

    count: int
    size: float
    contrast: float
    dark: float
    growth: Growth
    seed: int


@dataclass(frozen=True, slots=True)
class Debris:
    """Things other than chemistry: dust, fibres, scratches of the plastic, creases of the drop's edge, air bubbles."""

    dust: int = 0
    fibres: int = 0
    scratches: int = 0
    creases: int = 0
    bubbles: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Well:
    """The plate's part of the image; ``variant`` picks among the looks of one imager's wells.

    ``polariser`` is how strongly stretched plastic colours the light, 0 to 1; ``slope`` the light's fall across
    the image (right, down), as a share per height.
    """

    seed: int
    centre: tuple[float, float]
    radius: float
    variant: int
    colour: Colour
    polariser: float = 0.0
    slope: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class DropShape:
    """The outline (radius, harmonics as (order, amplitude, phase), tips as (angle, height, width)) and its lens.

    ``arcs`` are dark stretches of a steep edge as (angle, darkness, width in radii).

    ``lens`` is how strongly the dome bends light, ``light`` the side it is lit from, ``rim`` the edge's darkness
    and ``rim_width`` its width in radii.
    """

    centre: tuple[float, float]
    radius: float
    harmonics: tuple[tuple[int, float, float], ...]
    tips: tuple[tuple[float, float, float], ...]
    arcs: tuple[tuple[float, float, float], ...]
    lens: float
    tilt: float
    light: float
    rim: float
    rim_width: float
    haze: float
    satellites: int
    seed: int


@dataclass(frozen=True, slots=True)
class Camera:
    """One exposure: ``defocus`` is the blur radius in heights, ``noise`` the deviation in grey levels.

    ``rows`` is the height in pixels of a thumbnail that was scaled up, ``grey`` a camera without colours.
    """

    exposure: float = 1.0
    defocus: float = 0.0
    noise: float = 1.5
    vignette: float = 0.2
    jpeg_quality: int | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    grey: bool = False
    rows: int | None = None
    failed: bool = False
    shot: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that decides one image, and so also its truth."""

    imager: ImagerStyle
    seed: int
    age_d: float
    well: Well
    drop: DropShape | None
    crystals: tuple[Crystals, ...] = ()
    precipitate: tuple[Precipitate, ...] = ()
    film: Film | None = None
    oil: Oil | None = None
    debris: Debris = field(default_factory=Debris)
    camera: Camera = field(default_factory=Camera)
    modality: Modality = Modality.VISIBLE


def scene_label(scene: Scene) -> DropClass:
    """Return the true class: Other when spoiled, then crystals win, then skins, oil and foam, then precipitate."""
    if scene.camera.failed or scene.drop is None:
        return DropClass.OTHER
    if any(group.visible_at(scene.age_d) for group in scene.crystals):
        return DropClass.CRYSTALS
    if any(part is not None and part.growth.fraction(scene.age_d) > 0.3 for part in (scene.film, scene.oil)):
        return DropClass.OTHER
    if scene.debris.bubbles >= FOAM:
        return DropClass.OTHER
    if sum(part.amount_at(scene.age_d) for part in scene.precipitate) >= VISIBLE_PRECIPITATE:
        return DropClass.PRECIPITATE
    return DropClass.CLEAR


def at_age(scene: Scene, age_d: float, camera: Camera | None = None) -> Scene:
    """Return the same drop at another age: same well, outline and debris, its contents grown or dissolved."""
    return replace(scene, age_d=age_d, camera=camera or scene.camera)

"""What is kept of a day's images: sums a plate and histograms, by the age of the plates.

Hides how they are counted and written as JSON, a few kilobytes a day. Promises that days add up, so that a window or a
reference is a sum of days. The plate is the unit: its drops share light, screen and lid, and only from plate to
plate can be told what is usual. Ages are apart because old plates look different and hold more crystals.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from marcod.domain import CLASSES, DropClass
from marcod.drift.days import Look

AGE_STARTS: Final = (0, 1, 3, 8, 31)
"""First day of each span of ages; ages are told apart by the index into this."""

AGE_NAMES: Final = ("0", "1-2", "3-7", "8-30", ">30")
"""The spans of ages in days, as people read them."""

BRIGHTNESS: Final = "brightness"
CONTRAST: Final = "contrast"
FOCUS: Final = "focus"
CONFIDENCE: Final = "confidence"
CRYSTALS: Final = "p_crystals"

IMAGED: Final = (BRIGHTNESS, CONTRAST, FOCUS)
"""What is measured on the image."""

MODELLED: Final = (CONFIDENCE, CRYSTALS)
"""What the model says: the highest of its four probabilities, and that of crystals."""

_CRYSTALS_AT: Final = CLASSES.index(DropClass.CRYSTALS)


@dataclass(frozen=True, slots=True)
class Scale:
    """Equal bins from ``low`` to ``high``; what lies outside counts in the first or last."""

    low: float
    high: float
    bins: int

    def bin_of(self, value: float) -> int:
        place = int((value - self.low) / (self.high - self.low) * self.bins)
        return min(max(place, 0), self.bins - 1)


SCALES: Final = {
    BRIGHTNESS: Scale(0.0, 1.0, 100),
    CONTRAST: Scale(0.0, 0.5, 100),
    FOCUS: Scale(-6.0, 0.0, 60),
    CONFIDENCE: Scale(0.25, 1.0, 30),
    CRYSTALS: Scale(0.0, 1.0, 20),
}

RELIEF: Final = Scale(0.0, 1.0, 100)
"""Contrast over brightness, so that another lamp makes no drop look empty."""

DARK: Final = 0.05
"""An image darker than this shows nothing; its noise over its little light would look like contrast."""


@dataclass(slots=True)
class PlateSums:
    """The images of one plate at one age.

    ``imaged`` and ``modelled`` are sums over the ``images``; ``failed`` more could not be read. ``reliefs`` counts
    by bin of RELIEF, for the share of empty drops, whose measure is known only later.
    """

    images: int = 0
    failed: int = 0
    imaged: list[float] = field(default_factory=lambda: [0.0] * len(IMAGED))
    modelled: list[float] = field(default_factory=lambda: [0.0] * len(MODELLED))
    classes: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    reliefs: dict[int, int] = field(default_factory=dict)

    def add(self, other: "PlateSums") -> None:
        """Count the other's images too."""
        self.images += other.images
        self.failed += other.failed
        self.imaged = [a + b for a, b in zip(self.imaged, other.imaged, strict=True)]
        self.modelled = [a + b for a, b in zip(self.modelled, other.modelled, strict=True)]
        self.classes = [a + b for a, b in zip(self.classes, other.classes, strict=True)]
        for place, count in other.reliefs.items():
            self.reliefs[place] = self.reliefs.get(place, 0) + count

    def to_json(self) -> list[Any]:
        sums = [[round(v, 4) for v in self.imaged], [round(v, 4) for v in self.modelled]]
        reliefs = sorted(self.reliefs.items())
        return [self.images, self.failed, *sums, self.classes, [list(pair) for pair in reliefs]]

    @classmethod
    def from_json(cls, values: list[Any]) -> "PlateSums":
        images, failed, imaged, modelled, classes, reliefs = values
        return cls(images, failed, imaged, modelled, classes, dict(reliefs))


@dataclass(slots=True)
class Cell:
    """The images of plates of one age: sums by plate, and a histogram of each of SCALES over all of them."""

    plates: dict[int, PlateSums] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=lambda: {n: [0] * s.bins for n, s in SCALES.items()})

    @property
    def images(self) -> int:
        return sum(plate.images for plate in self.plates.values())

    @property
    def failed(self) -> int:
        return sum(plate.failed for plate in self.plates.values())

    def take(self, look: Look) -> None:
        """Count one image."""
        plate = self.plates.setdefault(look.plate_id, PlateSums())
        if look.label is None:
            plate.failed += 1
            return
        plate.images += 1
        plate.classes[CLASSES.index(DropClass(look.label))] += 1
        self._sum(plate.modelled, MODELLED, (max(look.probabilities), look.probabilities[_CRYSTALS_AT]))
        self._sum(plate.imaged, IMAGED, (look.brightness, look.contrast, look.focus))
        place = RELIEF.bin_of(look.contrast / max(look.brightness, DARK))
        plate.reliefs[place] = plate.reliefs.get(place, 0) + 1

    def _sum(self, sums: list[float], names: tuple[str, ...], values: tuple[float, ...]) -> None:
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            sums[index] += value
            self.histograms[name][SCALES[name].bin_of(value)] += 1

    def add(self, other: "Cell") -> None:
        """Count the other's images too."""
        for plate_id, sums in other.plates.items():
            self.plates.setdefault(plate_id, PlateSums()).add(sums)
        for name, counts in other.histograms.items():
            self.histograms[name] = [a + b for a, b in zip(self.histograms[name], counts, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "plates": {str(plate_id): sums.to_json() for plate_id, sums in self.plates.items()},
            "histograms": self.histograms,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cell":
        plates = {int(plate_id): PlateSums.from_json(sums) for plate_id, sums in values["plates"].items()}
        return cls(plates, {name: list(counts) for name, counts in values["histograms"].items()})


Ages = dict[int, Cell]
"""Images by the age of their plates, the index into AGE_STARTS."""


def age_of(age_d: float) -> int:
    """Which of AGE_STARTS an age in days belongs to."""
    return max(0, bisect_right(AGE_STARTS, age_d) - 1)


def take(ages: Ages, look: Look) -> None:
    """Count one image at its age."""
    ages.setdefault(age_of(look.age_d), Cell()).take(look)


def total(parts: Iterable[Ages]) -> Ages:
    """The sum of days."""
    summed: Ages = {}
    for part in parts:
        for age, cell in part.items():
            summed.setdefault(age, Cell()).add(cell)
    return summed


def to_json(ages: Ages) -> dict[str, Any]:
    """For the database."""
    return {str(age): cell.to_json() for age, cell in sorted(ages.items())}


def from_json(values: dict[str, Any]) -> Ages:
    """The inverse of :func:`to_json`."""
    return {int(age): Cell.from_json(cell) for age, cell in values.items()}

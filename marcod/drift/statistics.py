"""Sums of a day's images per plate, and their histograms, by the age of the plates.

Days add up, so a window or a reference is a sum of days. A day takes a few kilobytes of JSON. The plate is the unit:
its drops share light, screen and lid, so only the spread between plates shows the usual variation. Ages are kept apart
because old plates look different and hold more crystals.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.drift.days import Observation

AGE_STARTS: Final = (0, 1, 3, 8, 31)
"""First day of each span of ages; an age is the index into this."""

AGE_NAMES: Final = ("0", "1-2", "3-7", "8-30", ">30")
"""Labels of the spans of ages, in days."""

BRIGHTNESS: Final = "brightness"
CONTRAST: Final = "contrast"
FOCUS: Final = "focus"
CONFIDENCE: Final = "confidence"
P_CRYSTALS: Final = "p_crystals"


Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """Equal bins from ``low`` to ``high``; values outside count in the first or last bin."""

    low: float
    high: float
    bins: int

    def bin_of(self, value: float) -> int:
        """Return the index of a value's bin."""
        place = int((value - self.low) / (self.high - self.low) * self.bins)
        return min(max(place, 0), self.bins - 1)


SCALES: Final = {
    BRIGHTNESS: Scale(0.0, 1.0, 100),
    CONTRAST: Scale(0.0, 0.5, 100),
    FOCUS: Scale(-6.0, 0.0, 60),
    CONFIDENCE: Scale(0.25, 1.0, 30),
    P_CRYSTALS: Scale(0.0, 1.0, 20),
}
MEASURES: Final = tuple(SCALES)
"""Measured values in the order of ``PlateSums.measures``: three of the image, then the model's highest probability and
that of crystals."""

_OF_IMAGE: Final = 3
"""Measures of the image itself, which are stored apart from those of the model."""

RELIEF: Final = Scale(0.0, 1.0, 100)
"""Contrast over brightness: a change of the lamp makes no drop look empty."""

DARK: Final = 0.05
"""Brightness below which an image shows nothing; its noise over so little light would look like contrast."""


@dataclass(slots=True, eq=False)
class PlateSums:
    """Sums over the images of one plate at one age.

    ``measures`` [len(MEASURES)] and ``classes`` [4] are sums over the ``images``; ``failed`` more could not be read.
    ``reliefs`` counts images by bin of RELIEF, because the limit of empty drops is known only later.
    """

    images: int = 0
    failed: int = 0
    measures: Floats = field(default_factory=lambda: np.zeros(len(MEASURES)))
    classes: Counts = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    reliefs: Counts = field(default_factory=lambda: np.zeros(RELIEF.bins, np.int64))

    def add(self, other: "PlateSums") -> None:
        """Add the other's images."""
        self.images += other.images
        self.failed += other.failed
        self.measures += other.measures
        self.classes += other.classes
        self.reliefs += other.reliefs

    def to_json(self) -> list[Any]:
        """Return the sums as stored, rounded to four places."""
        sums = [round(value, 4) for value in self.measures.tolist()]
        reliefs = [[place, count] for place, count in enumerate(self.reliefs.tolist()) if count]
        return [self.images, self.failed, sums[:_OF_IMAGE], sums[_OF_IMAGE:], self.classes.tolist(), reliefs]

    @classmethod
    def from_json(cls, values: list[Any]) -> "PlateSums":
        """Return the inverse of :meth:`to_json`."""
        images, failed, of_image, of_model, classes, reliefs = values
        made = cls(images, failed, np.array([*of_image, *of_model], np.float64), np.array(classes, np.int64))
        for place, count in reliefs:
            made.reliefs[place] = count
        return made


@dataclass(slots=True, eq=False)
class Cell:
    """Images of plates of one age: sums by plate, and a histogram over all of them for each of SCALES."""

    plates: dict[int, PlateSums] = field(default_factory=dict)
    histograms: dict[str, Counts] = field(
        default_factory=lambda: {name: np.zeros(scale.bins, np.int64) for name, scale in SCALES.items()}
    )

    @property
    def images(self) -> int:
        """The number of images that were scored."""
        return sum(plate.images for plate in self.plates.values())

    @property
    def failed(self) -> int:
        """The number of images that could not be read."""
        return sum(plate.failed for plate in self.plates.values())

    def add_observation(self, observation: Observation) -> None:
        """Add one image."""
        plate = self.plates.setdefault(observation.plate_id, PlateSums())
        if observation.label is None:
            plate.failed += 1
            return
        plate.images += 1
        plate.classes[CLASSES.index(DropClass(observation.label))] += 1
        of_model = (max(observation.probabilities), observation.probabilities[CRYSTALS])
        measures = (observation.brightness, observation.contrast, observation.focus, *of_model)
        plate.measures += measures
        for (name, scale), value in zip(SCALES.items(), measures, strict=True):
            self.histograms[name][scale.bin_of(value)] += 1
        plate.reliefs[RELIEF.bin_of(observation.contrast / max(observation.brightness, DARK))] += 1

    def add(self, other: "Cell") -> None:
        """Add the other's images."""
        for plate_id, sums in other.plates.items():
            self.plates.setdefault(plate_id, PlateSums()).add(sums)
        for name, counts in other.histograms.items():
            self.histograms[name] += counts

    def to_json(self) -> dict[str, Any]:
        """Return the cell as stored."""
        return {
            "plates": {str(plate_id): sums.to_json() for plate_id, sums in self.plates.items()},
            "histograms": {name: counts.tolist() for name, counts in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cell":
        """Return the inverse of :meth:`to_json`."""
        plates = {int(plate_id): PlateSums.from_json(sums) for plate_id, sums in values["plates"].items()}
        return cls(plates, {name: np.array(counts, np.int64) for name, counts in values["histograms"].items()})


Ages = dict[int, Cell]
"""Cells by the age of their plates, an index into AGE_STARTS."""


def age_of(age_d: float) -> int:
    """Return the index into AGE_STARTS of an age in days."""
    return max(0, bisect_right(AGE_STARTS, age_d) - 1)


def add_observation(ages: Ages, observation: Observation) -> None:
    """Add one image at its age."""
    ages.setdefault(age_of(observation.age_d), Cell()).add_observation(observation)


def total(parts: Iterable[Ages]) -> Ages:
    """Return the sum of days."""
    summed: Ages = {}
    for part in parts:
        for age, cell in part.items():
            summed.setdefault(age, Cell()).add(cell)
    return summed


def to_json(ages: Ages) -> dict[str, Any]:
    """Return the cells as stored."""
    return {str(age): cell.to_json() for age, cell in sorted(ages.items())}


def from_json(values: dict[str, Any]) -> Ages:
    """Return the inverse of :func:`to_json`."""
    return {int(age): Cell.from_json(cell) for age, cell in values.items()}

"""Synthetic plates for measuring: paths in the Formulatrix store, and JPEGs of which no two have the same bytes."""

from collections.abc import Iterator
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Final

from PIL import Image

from marcod import layouts
from marcod.catalog.deliveries import Sighting
from marcod.domain import PLATE_FORMATS, DropImage, Modality
from marcod.synthetic import ImagerStyle, random_scene, render

SIZE: Final = (1224, 1024)
"""Width and height of a Rock Imager composite."""

DROPS: Final = (1, 2, 3)
IMAGES_AN_INSPECTION: Final = 96 * len(DROPS)
INSPECTIONS_A_PLATE: Final = 10
_LAYOUT: Final = layouts.make("formulatrix")


def composites(drops: tuple[int, ...] = DROPS, first: int = 0) -> Iterator[tuple[str, DropImage]]:
    """Path and meaning of one image after another, for ever: drops, wells, inspections from the first, plates."""
    grid = PLATE_FORMATS[96]
    for inspection in count(first):
        plate = 2000 + inspection // INSPECTIONS_A_PLATE
        for well in range(1, grid.wells + 1):
            row, column = grid.position(well)
            for drop in drops:
                image = DropImage(
                    "formulatrix", str(plate), str(8000 + inspection), row, column, drop, Modality.VISIBLE,
                    profile="1", region=well * 10 + drop,
                )  # fmt: skip
                yield _LAYOUT.format(image), image


def sightings(drops: tuple[int, ...] = DROPS, first: int = 0) -> Iterator[Sighting]:
    """The same as settled files."""
    for number, (path, image) in enumerate(composites(drops, first)):
        yield Sighting(path, 100_000 + number, 1_700_000_000_000_000_000 + number, image)


@cache
def rendered(number: int) -> tuple[bytes, ...]:
    """JPEGs of that many scenes of all classes, about 0.1 MB each."""
    return tuple(_jpeg(seed) for seed in range(number))


def _jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(render(random_scene(seed, imager=ImagerStyle.FORMULATRIX), SIZE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def marked(jpeg: bytes, name: str) -> bytes:
    """The same image as a file of other content: a comment with the name stands behind the first marker."""
    comment = f"synthetic, copy {name}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def write(path: Path, data: bytes) -> None:
    """Write a file in place, as imagers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

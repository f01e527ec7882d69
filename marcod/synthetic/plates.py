"""Whole exports: plates of synthetic drops, imaged several times, as files in an imager's own layout.

:func:`drop_history` is one drop at every inspection, with its truth; :func:`plate_files` lists every file of the
export in the order an imager writes them, without rendering any; :func:`write_file` renders and writes one.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from PIL import Image

from marcod.domain import PLATE_FORMATS, DropClass, DropImage, ImageKind, Modality, PlateFormat, well_name
from marcod.layouts import Layout
from marcod.synthetic.fates import random_fate, reshoot
from marcod.synthetic.fields import rng_of
from marcod.synthetic.image import render
from marcod.synthetic.scene import ImagerStyle, Scene, at_age, scene_label

_SECONDS_A_DROP: Final = 4
_THUMBNAIL_SHARE: Final = 4
_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class PlateSpec:
    """A plate and its times of imaging; the same spec is always the same plate.

    ``drops`` are the drop numbers of a well (1, 3, 4 on three-lens plates), ``inspections`` the aware starting
    times of imaging, ``set_at`` when the drops were set (the first inspection when None). ``filled`` is the share
    of wells with drops, ``hit_rate`` the share of drops that ever grow crystals. ``plate_key`` must suit the layout:
    a number for the Formulatrix store, ten characters for HWI. ``first_batch`` numbers the first inspection
    where the vendor numbers them over all plates.
    """

    imager: ImagerStyle
    plate_key: str
    inspections: tuple[datetime, ...]
    wells: PlateFormat = PLATE_FORMATS[96]
    drops: tuple[int, ...] = (1,)
    seed: int = 0
    filled: float = 1.0
    hit_rate: float = 0.15
    set_at: datetime | None = None
    first_batch: int = 1

    def age_d(self, inspection: int) -> float:
        """Days from setting the drops to an inspection (from 0)."""
        start = self.set_at or self.inspections[0]
        return (self.inspections[inspection] - start) / timedelta(days=1)

    def positions(self) -> list[tuple[int, int]]:
        """Row and column of the filled wells, row by row."""
        chosen = rng_of(self.seed, 30).permutation(self.wells.wells)[: round(self.filled * self.wells.wells)]
        return [self.wells.position(int(number) + 1) for number in sorted(chosen)]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of an export, not yet written.

    ``path`` is relative to the source root. An image has ``image`` (what its path says), ``scene`` and ``label``
    (the truth); a file that accompanies images has ``content`` and no ``kind``.
    """

    path: str
    captured_at: datetime
    kind: ImageKind | None = None
    image: DropImage | None = None
    scene: Scene | None = None
    label: DropClass | None = None
    content: bytes | None = None


def drop_history(spec: PlateSpec, row: int, column: int, drop: int) -> list[Scene]:
    """One drop at each inspection; :func:`scene_label` of these is its truth."""
    seed = int(rng_of(spec.seed, 31, row, column, drop).integers(2**31))
    last_d = spec.age_d(len(spec.inspections) - 1)
    # The three lenses of a well look different; where a lens sits, the same drop number always does.
    fate = random_fate(seed, spec.imager, spec.hit_rate, last_d, lens=max(0, spec.drops.index(drop)))
    return [at_age(fate, spec.age_d(shot), reshoot(fate, shot)) for shot in range(len(spec.inspections))]


def first_hit(spec: PlateSpec, row: int, column: int, drop: int) -> int | None:
    """Return the first inspection (from 0) at which the drop's truth is Crystals, or None."""
    labels = [scene_label(scene) for scene in drop_history(spec, row, column, drop)]
    return labels.index(DropClass.CRYSTALS) if DropClass.CRYSTALS in labels else None


def plate_files(spec: PlateSpec, layout: Layout) -> Iterator[PlannedFile]:
    """Every file of the export, inspection by inspection, well by well.

    The vendor adds files of its own: thumbnails in the Formulatrix store, XML at OPPF, a UV
    image of each drop at CRIMS, and report.csv at the end of each Rock Maker export. Rock Maker's exporter
    names no drop, so it exports the first of each well alone. Raises LayoutError when the layout cannot name the
    plate.
    """
    drops = spec.drops[:1] if layout.name == "rockmaker-export" else spec.drops
    history = {
        (row, column, drop): drop_history(spec, row, column, drop) for row, column in spec.positions() for drop in drops
    }
    exported: list[DropImage] = []
    for shot, start in enumerate(spec.inspections):
        taken = start
        for (row, column, drop), scenes in history.items():
            image = _image(spec, layout, shot, taken, (row, column, drop))
            exported.append(image)
            yield _planned(layout, image, scenes[shot], taken)
            yield from _beside(layout, image, scenes[shot], taken)
            taken += timedelta(seconds=_SECONDS_A_DROP)
        for path, content in layout.sidecars(exported).items():
            yield PlannedFile(path, taken, content=content)


def write_file(root: Path, planned: PlannedFile, size: tuple[int, int] = (1224, 1024)) -> Path:
    """Write one file below ``root`` in place, the way imagers do, and return where.

    ``size`` is the composite's width and height; thumbnails are a quarter of it.
    """
    target = root / planned.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(_bytes(planned, size))
    return target


def _bytes(planned: PlannedFile, size: tuple[int, int]) -> bytes:
    if planned.scene is None:
        return planned.content or b""
    if planned.kind is ImageKind.THUMBNAIL:
        size = (max(1, size[0] // _THUMBNAIL_SHARE), max(1, size[1] // _THUMBNAIL_SHARE))
    buffer = io.BytesIO()
    image = Image.fromarray(render(planned.scene, size))
    if planned.path.endswith(".png"):
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _image(spec: PlateSpec, layout: Layout, shot: int, taken: datetime, where: tuple[int, int, int]) -> DropImage:
    row, column, drop = where
    numbered: Callable[[datetime], str] = _KEYS.get(layout.name, lambda _: str(spec.first_batch + shot))
    return DropImage(
        layout=layout.name,
        plate_key=spec.plate_key,
        inspection_key=numbered(spec.inspections[shot]),
        row=row,
        column=column,
        drop=drop,
        modality=Modality.VISIBLE,
        captured_at=taken,
        region=spec.wells.number(row, column) * 10 + drop if layout.name in ("formulatrix", "oppf") else None,
    )


# Inspections are keyed by date where the vendor dates them; the others number them.
_KEYS: Final[dict[str, Callable[[datetime], str]]] = {
    "xchem": lambda start: f"{start:%Y-%m-%d}",
    "oppf": lambda start: f"{start:%Y%m%d-%H%M%S}",
    "hwi": lambda start: f"{start:%Y%m%d%H%M}",
    "rhombix": lambda start: f"{start:%y%m%d}",
    "ami": lambda start: f"{start:%Y%m%d_%H%M%S}",
}


def _planned(layout: Layout, image: DropImage, scene: Scene, taken: datetime) -> PlannedFile:
    return PlannedFile(layout.format(image), taken, image.kind, image, scene, scene_label(scene))


def _beside(layout: Layout, image: DropImage, scene: Scene, taken: datetime) -> Iterator[PlannedFile]:
    """Return the files that a vendor writes with a composite."""
    if layout.name == "formulatrix":
        yield _planned(layout, replace(image, kind=ImageKind.THUMBNAIL), scene, taken)
    elif layout.name == "crims":
        glow = replace(scene, modality=Modality.UV)
        yield _planned(layout, replace(image, modality=Modality.UV), glow, taken)
    elif layout.name == "oppf":
        path = layout.format(image).rpartition(".")[0] + ".xml"
        yield PlannedFile(path, taken, content=_image_info(image, taken).encode())


def _image_info(image: DropImage, taken: datetime) -> str:
    """ImagerLink's XML (DiamondLightSource/VMXiImagerLink ImageInfo.xsd), for a 1280 x 960 image."""
    leaves = {
        "Url": "http://localhost/synthetic",
        "Imager": "synthetic",
        "ImagingId": f"{image.plate_key}-{image.inspection_key}",
        "PlateId": image.plate_key,
        "Drop": f"{well_name(image.row, image.column)}.{image.drop}",
        "ImageType": "C",
        "ImagedAt": f"{taken.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "Zoom": "1",
    }
    body = "".join(f"  <{name}>{escape(text)}</{name}>\n" for name, text in leaves.items())
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<ImageInfo xmlns="http://www.oppf.ox.ac.uk/xsd/RI/ImageInfo.xsd">\n'
        f"{body}"
        "  <SizeInPixels><Height>960</Height><Width>1280</Width></SizeInPixels>\n"
        "  <SizeInMicrons><Height>2724</Height><Width>3631</Width></SizeInMicrons>\n"
        "  <Z>0</Z>\n</ImageInfo>\n"
    )

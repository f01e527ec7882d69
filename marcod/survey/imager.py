"""Description of one imager's export: plates, wells, drops, profiles, warnings, and a few inspections counted whole."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal
from zlib import crc32

from marcod import files
from marcod.domain import PLATE_FORMATS, DropImage, ImageKind, Modality, NotADrop, path_text, well_name, why_not_scored
from marcod.layouts import Companions, Layout, make
from marcod.survey.mounts import file_system
from marcod.survey.sample import EXAMPLES, SurveyLimits, take_sample

Wells = Literal[24, 48, 96, 384, 1536]

COUNTED_INSPECTIONS: Final = 5
"""Inspections of different plates that are looked at whole, to count their drops."""

_SIZES: Final[tuple[Wells, ...]] = (96, 384, 1536)
_GRID: Final = PLATE_FORMATS[1536]

MOST_COMPANIONS: Final = 400
LONGEST_COMPANION: Final = 16 * 2**20

_COUNTING: Final = SurveyLimits(entries=10_000, folders=2_500, names=20_000, seconds=10.0)


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Something that was seen a number of times, with some of the paths where."""

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A capture profile: its images, their extensions, and the light that is assumed while nobody maps it."""

    name: str
    images: int
    extensions: tuple[str, ...]
    modality: Modality


@dataclass(frozen=True, slots=True)
class SurveyedInspection:
    """One inspection that was looked at whole: the number of wells per drop number, in visible light."""

    plate: str
    key: str
    drops: dict[int, int]


@dataclass(frozen=True, slots=True)
class SurveyedImager:
    """One imager's export below ``root``, as far as it was looked at.

    ``images`` are whole drops in any light; ``aside`` counts what the layout understands and does not score, by
    reason, ``not_understood`` image files that it cannot read. ``sizes`` are the smallest plates that hold the wells
    seen of each plate; they are ``numbered`` where wells are counted through, so that another size means other wells.
    ``dated`` tells if times were read, in the zone of the imager's clock. ``rivals`` are other layouts that read the
    same paths.
    """

    root: Path
    layout: str
    file_system: str
    images: int
    plates: int
    inspections: int
    sizes: tuple[Wells, ...]
    last_well: str
    numbered: bool
    drops: tuple[int, ...]
    modalities: dict[str, int]
    profiles: tuple[Profile, ...]
    counted: tuple[SurveyedInspection, ...]
    warnings: tuple[Occurrences, ...]
    aside: tuple[Occurrences, ...]
    not_understood: tuple[Occurrences, ...]
    dated: bool
    rivals: tuple[str, ...] = field(default=())


def describe(root: Path, wide: Layout, paths: list[str], rivals: tuple[str, ...]) -> SurveyedImager:
    """Describe an imager from sampled paths relative to its root, and count some inspections whole.

    ``wide`` is the layout with the largest plates.
    """
    ask = companions(root)
    verdicts = {path: wide.parse(path, ask) for path in paths}
    images = {path: v for path, v in verdicts.items() if isinstance(v, DropImage)}
    whole = _look_whole(root, wide, images, ask)
    composites = {p: image for p, image in {**images, **whole}.items() if image.kind is ImageKind.COMPOSITE}
    seen = [image for image in images.values() if image.kind is ImageKind.COMPOSITE]
    numbered = _is_numbered(wide.name, composites, ask)
    refused = [(path, v) for path, v in verdicts.items() if isinstance(v, NotADrop)]
    return SurveyedImager(
        root=root,
        layout=wide.name,
        file_system=file_system(root),
        images=len(seen),
        plates=len({image.plate_key for image in seen}),
        inspections=len({(image.plate_key, image.inspection_key) for image in seen}),
        sizes=_sizes(composites.values(), numbered=numbered),
        last_well=_last_well(composites.values(), numbered=numbered),
        numbered=numbered,
        drops=tuple(sorted({image.drop for image in composites.values()})),
        modalities=dict(Counter(image.modality.value for image in seen)),
        profiles=_profiles(composites),
        counted=_inspections(whole.values()),
        warnings=tally((str(one), path) for path, image in images.items() for one in image.warnings),
        aside=tally((str(why), path) for path, image in images.items() if (why := why_not_scored(image)) is not None),
        not_understood=tally((verdict.detail, path) for path, verdict in refused),
        dated=any(image.captured_at is not None for image in seen),
        rivals=rivals,
    )


def companions(root: Path) -> Companions:
    """Return a reader of the reports and sidecars below a root that answers None once it was asked for very many."""
    read = files.reader(os.fspath(root), LONGEST_COMPANION + 1)
    asked: set[str] = set()

    def ask(path: str) -> bytes | None:
        if len(asked) < MOST_COMPANIONS:
            asked.add(path)
        return read(path) if path in asked else None

    return ask


def tally(found: Iterable[tuple[str, str]]) -> tuple[Occurrences, ...]:
    """Count sentences that differ in quoted words and numbers alone as one, the most frequent first.

    ``found`` are pairs of sentence and path; the first sentence of a kind stands for all.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    examples: dict[str, list[str]] = {}
    for sentence, path in found:
        kind = re.sub(r"'[^']*'|\d+", "", sentence)
        counts[kind] += 1
        first.setdefault(kind, sentence)
        if len(seen := examples.setdefault(kind, [])) < EXAMPLES:
            seen.append(path_text(path))
    return tuple(Occurrences(first[kind], count, tuple(examples[kind])) for kind, count in counts.most_common())


def _look_whole(root: Path, wide: Layout, images: dict[str, DropImage], ask: Companions) -> dict[str, DropImage]:
    """Images of a few inspection folders, each of another plate and seen to its end."""
    folders: dict[str, str] = {}
    for path, image in sorted(images.items(), key=lambda item: crc32(os.fsencode(item[0]))):
        folders.setdefault(image.plate_key, wide.inspection_folder(path))
    whole: dict[str, DropImage] = {}
    until = time.monotonic() + _COUNTING.seconds
    for folder in list(folders.values())[:COUNTED_INSPECTIONS]:
        left = replace(_COUNTING, seconds=max(0.0, until - time.monotonic()))
        try:
            sample = take_sample(root, left, below=folder)
        except OSError:
            continue
        if not sample.cut and not sample.unreadable:
            read = ((path, wide.parse(path, ask)) for path in sample.paths)
            whole |= {path: image for path, image in read if isinstance(image, DropImage)}
    return whole


def _inspections(images: Iterable[DropImage]) -> tuple[SurveyedInspection, ...]:
    wells: dict[tuple[str, str], set[tuple[int, int, int]]] = {}
    for image in images:
        if image.kind is ImageKind.COMPOSITE and image.modality is Modality.VISIBLE:
            place = (image.drop, image.row, image.column)
            wells.setdefault((image.plate_key, image.inspection_key), set()).add(place)
    return tuple(
        SurveyedInspection(plate, key, dict(sorted(Counter(drop for drop, _, _ in places).items())))
        for (plate, key), places in sorted(wells.items())
    )


def _is_numbered(layout: str, images: dict[str, DropImage], ask: Companions) -> bool:
    """Tell if the layout counts wells through, so that a plate of 96 wells gives other wells than a larger one."""
    usual = make(layout)
    smaller = ((image, usual.parse(path, ask)) for path, image in images.items())
    return any(isinstance(small, DropImage) and small.well != image.well for image, small in smaller)


def _sizes(images: Iterable[DropImage], *, numbered: bool) -> tuple[Wells, ...]:
    """Return the smallest plate for each plate's images, each size once, the largest last."""
    plates: dict[str, list[DropImage]] = {}
    for image in images:
        plates.setdefault(image.plate_key, []).append(image)
    return tuple(sorted({_numbered_size(of_one) if numbered else _size(of_one) for of_one in plates.values()}))


def _numbered_size(images: list[DropImage]) -> Wells:
    """Return the smallest plate by the highest number; 24 and 48 wells only where the last one is there."""
    top = max(_GRID.number(image.row, image.column) for image in images)
    small: tuple[Wells, ...] = (24, 48)
    return next(size for size in (*small, *_SIZES) if top == size or (top < size and size not in small))


def _size(images: list[DropImage]) -> Wells:
    rows, columns = max(image.row for image in images), max(image.column for image in images)
    return next(s for s in _SIZES if rows <= PLATE_FORMATS[s].rows and columns <= PLATE_FORMATS[s].columns)


def _last_well(images: Iterable[DropImage], *, numbered: bool) -> str:
    if numbered:
        return str(max((_GRID.number(image.row, image.column) for image in images), default=0))
    rows = max((image.row for image in images), default=1)
    return well_name(rows, max((image.column for image in images), default=1))


def _profiles(images: dict[str, DropImage]) -> tuple[Profile, ...]:
    found: dict[str, list[tuple[str, Modality]]] = {}
    for path, image in images.items():
        if image.profile is not None:
            found.setdefault(image.profile, []).append((path[path.rfind(".") :].lower(), image.modality))
    return tuple(
        Profile(
            name, len(seen), tuple(sorted({ext for ext, _ in seen})), Counter(m for _, m in seen).most_common(1)[0][0]
        )
        for name, seen in sorted(found.items())
    )

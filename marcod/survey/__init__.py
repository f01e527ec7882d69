"""Survey of a folder: which imager wrote what there, how its plates look, and which settings fit.

:func:`look` samples the files below a folder within bounds, gives their paths to every layout, and finds the imagers:
one per root and layout. :mod:`marcod.survey.propose` makes settings from an imager. Nothing is written, no image is
opened; of other files only the reports that a layout asks for are read.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marcod import layouts
from marcod.domain import PLATE_FORMATS, DropImage, IgnoreReason, NotADrop, path_text
from marcod.layouts import Companions, Layout, LayoutOptions
from marcod.survey.imager import Occurrences, SurveyedImager, companions, describe, tally
from marcod.survey.sample import EXAMPLES, SurveyLimits, take_sample

FAMILIES: Final = tuple(name for name in layouts.NAMES if name != "regex")
"""Layouts that are tried; a pattern of one's own has to be given."""

FOLDERS_ABOVE: Final = 4
"""Folders above the one looked at that may belong to the layout: a plate's folder was named instead of the root."""

_FEW: Final = 0.02
_RIVAL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Family:
    """Images of the sample that one layout reads, those that it alone reads, and names it almost reads."""

    layout: str
    images: int
    alone: int
    near_misses: tuple[Occurrences, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A folder whose images belong to several layouts and cannot be distinguished by folders."""

    folder: Path
    layouts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Result of looking at ``folder``.

    ``families`` are the layouts that read or almost read anything, the best first. ``not_understood`` counts names
    with an image's extension that no layout reads. ``cut`` says why the sample is not everything; then every number
    is a lower bound. ``links`` are links to folders, which are not followed.
    """

    folder: Path
    files: int
    folders: int
    cut: tuple[str, ...]
    links: int
    unreadable: tuple[str, ...]
    families: tuple[Family, ...]
    imagers: tuple[SurveyedImager, ...]
    conflicts: tuple[Conflict, ...]
    not_understood: Occurrences | None

    @property
    def _only(self) -> SurveyedImager | None:
        return self.imagers[0] if len(self.imagers) == 1 else None

    @property
    def clear(self) -> SurveyedImager | None:
        """The one imager whose root is the folder itself and whose layout is beyond doubt."""
        found = self._only if not self.conflicts else None
        return found if found and found.root == self.folder and not found.rivals and found.images else None

    @property
    def imager_above(self) -> SurveyedImager | None:
        """The one imager, where the folder is a part of its export and the root lies above."""
        return self._only if self._only and self._only.root in self.folder.parents else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """One path, relative to the base, and the answers of the layouts that take it for theirs."""

    path: str
    images: dict[str, DropImage]
    near: dict[str, NotADrop]


@dataclass(frozen=True, slots=True)
class _Owned:
    path: str
    layout: str
    root: str


@dataclass(frozen=True, slots=True)
class _Region:
    """A folder, relative to the base, below which the images of one layout lie, or of several that mix."""

    folder: str
    owned: list[_Owned]
    layouts: tuple[str, ...]


def look(
    folder: Path, limits: SurveyLimits | None = None, progress: Callable[[int], None] = lambda files: None
) -> Survey:
    """Look at a folder. Raises OSError when it cannot be listed.

    ``progress`` is called with the number of files seen so far.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    bounds = limits or SurveyLimits()
    sample = take_sample(folder, bounds, progress)
    base, prefix = _base(folder)
    ask = companions(base)
    wide = wide_layouts()
    readings = [_read(f"{prefix}{path}", wide, ask) for path in sample.paths]
    totals = Counter(name for reading in readings for name in reading.images)
    ranked = [name for name, _ in totals.most_common()]
    owned = [_own(reading, ranked, wide) for reading in readings if reading.images]
    top = prefix.rstrip("/")
    imagers: list[SurveyedImager] = []
    conflicts: list[Conflict] = []
    for region in _regions(top, owned):
        if len(region.layouts) == 1:
            root = _root(region, top, readings)
            rivals = _rivals(region, readings)
            paths = [found.path for found in region.owned] + _near(readings, root, region.layouts[0])
            imagers.append(describe(base / root, wide[region.layouts[0]], _below(paths, root), rivals))
        else:
            conflicts.append(Conflict(base / region.folder, region.layouts))
    start = len(prefix)
    unknown = [r.path[start:] for r in readings if not r.images and layouts.has_image_extension(r.path)]
    seen = (
        Occurrences("read by no layout", len(unknown), tuple(map(path_text, unknown[:EXAMPLES]))) if unknown else None
    )
    return Survey(
        folder=folder,
        files=sample.files,
        folders=sample.folders,
        cut=tuple(sample.cut),
        links=sample.links,
        unreadable=tuple(sample.unreadable),
        families=_families(readings, start),
        imagers=tuple(imagers),
        conflicts=tuple(conflicts),
        not_understood=seen,
    )


def wide_layouts() -> dict[str, Layout]:
    """Every layout, with plates so large that no well is out of range."""
    options = LayoutOptions(plate_format=PLATE_FORMATS[1536])
    return {name: layouts.make(name, options) for name in FAMILIES}


def root_of(path: str) -> str | None:
    """Return the folder to name as root so that a layout reads an absolute path; None where no layout does.

    A folder far above may be hidden, which no layout reads, so ever shorter ends of the path are tried.
    """
    parts, wide = path.split("/"), wide_layouts()
    for start in range(1, len(parts)):
        above, below = "/".join(parts[:start]), "/".join(parts[start:])
        ask = companions(Path(above or "/"))
        for layout in wide.values():
            image = layout.parse(below, ask)
            if isinstance(image, DropImage):
                return f"{above}/{layout.root_of(below, image)}".rstrip("/") or "/"
    return None


def _base(folder: Path) -> tuple[Path, str]:
    """Return the folder to which paths are made relative, some folders up, and the way down from there.

    It stops below a folder in which no layout reads anything, such as a hidden one.
    """
    base, prefix = folder, ""
    probe = layouts.make("xchem")
    for _ in range(FOLDERS_ABOVE):
        verdict = probe.parse(f"{base.name}/x.jpg")
        if base == base.parent or (isinstance(verdict, NotADrop) and verdict.reason in _NOWHERE):
            break
        base, prefix = base.parent, f"{base.name}/{prefix}"
    return base, prefix


def _read(path: str, wide: dict[str, Layout], ask: Companions) -> _Reading:
    images: dict[str, DropImage] = {}
    near: dict[str, NotADrop] = {}
    for name, layout in wide.items():
        verdict = layout.parse(path, ask)
        if isinstance(verdict, DropImage):
            images[name] = verdict
        elif verdict.reason in _NEVER_IMAGES:
            break
        elif verdict.reason is not IgnoreReason.NOT_THIS_LAYOUT:
            near[name] = verdict
    return _Reading(path, images, near)


_NOWHERE: Final = frozenset({IgnoreReason.TEMPORARY, IgnoreReason.WORKING_COPY})
"""Reasons for which no layout reads anything below a folder."""

_NEVER_IMAGES: Final = frozenset({IgnoreReason.SIDECAR, IgnoreReason.ARCHIVE, IgnoreReason.TEMPORARY})
"""Reasons for which no layout takes a file for an image."""


def _own(reading: _Reading, ranked: list[str], wide: dict[str, Layout]) -> _Owned:
    """Give the path to the layout that reads most paths of all that read this one."""
    name = next(name for name in ranked if name in reading.images)
    return _Owned(reading.path, name, wide[name].root_of(reading.path, reading.images[name]))


def _regions(folder: str, owned: list[_Owned]) -> list[_Region]:
    """Split a folder until below each part one layout reads nearly all images, or the parts would be plates."""
    counts = Counter(found.layout for found in owned)
    many = [name for name, count in counts.most_common() if count > _FEW * len(owned)]
    kept = [found for found in owned if found.layout in many]
    if not kept:
        return []
    if len(many) == 1 or any(not _is_inside(found.root, folder) for found in kept):
        return [_Region(folder, kept, tuple(many))]
    parts: dict[str, list[_Owned]] = {}
    start = len(folder) + 1 if folder else 0
    for found in kept:
        parts.setdefault(found.root[: start + len(found.root[start:].split("/")[0])], []).append(found)
    return [region for part in sorted(parts) for region in _regions(part, parts[part])]


def _root(region: _Region, top: str, readings: Iterable[_Reading]) -> str:
    """Return the folder to name as root: the one looked at where it holds nothing else, else where the plates begin."""
    common = os.path.commonpath([found.root for found in region.owned])
    if region.folder == top and _is_inside(common, top):
        others = sum(not _is_inside(r.path, common) for r in readings if layouts.has_image_extension(r.path))
        if others <= _RIVAL * len(region.owned):
            return top
    return common


def _rivals(region: _Region, readings: Iterable[_Reading]) -> tuple[str, ...]:
    """Other layouts that read a good part of the same paths."""
    paths = {found.path for found in region.owned}
    read = Counter(name for reading in readings if reading.path in paths for name in reading.images)
    return tuple(name for name, n in read.most_common() if name not in region.layouts and n > _RIVAL * len(paths))


def _near(readings: Iterable[_Reading], root: str, layout: str) -> list[str]:
    """Paths below the root that the layout almost reads, or that nobody reads although they look like images."""
    return [
        reading.path
        for reading in readings
        if not reading.images
        and (not root or _is_inside(reading.path, root))
        and (layout in reading.near or layouts.has_image_extension(reading.path))
    ]


def _below(paths: Iterable[str], root: str) -> list[str]:
    start = len(root) + 1 if root else 0
    return [path[start:] for path in paths]


def _is_inside(path: str, folder: str) -> bool:
    """Tell if a path lies below a folder; both relative to the base."""
    return path != folder and (not folder or path.startswith(f"{folder}/"))


def _families(readings: list[_Reading], start: int) -> tuple[Family, ...]:
    found = []
    for name in FAMILIES:
        images = sum(name in reading.images for reading in readings)
        alone = sum(list(reading.images) == [name] for reading in readings)
        near = tally((r.near[name].detail, r.path[start:]) for r in readings if name in r.near and not r.images)
        if images or near:
            found.append(Family(name, images, alone, near))
    return tuple(sorted(found, key=lambda family: (-family.images, -sum(n.count for n in family.near_misses))))

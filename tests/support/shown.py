"""One inspection of a plate as people look at it, made without a database. Synthetic."""

from typing import Any

from factories import utc

from marcod.domain import DropClass, well_name
from marcod.plates.metadata import Grid, PlateMetadata
from marcod.plates.plate_map import PlateMap
from marcod.plates.reports import Summary
from marcod.store.verdicts import DropVerdict, ImageState, ImageVerdict
from marcod.store.versions import Version
from marcod.store.votes import MajorityLabel

VERSION = Version(1, "small", "1", "d" * 64, "visible", 0.5, True)


def drop(row: int, column: int, p_crystals: float | None, number: int = 1, **more: Any) -> DropVerdict:
    values: dict[str, Any] = {
        "drop_id": 100 * row + column,
        "image_id": 1,
        "path": f"{well_name(row, column)}.jpg",
        "well": well_name(row, column),
        "well_row": row,
        "well_column": column,
        "drop_number": number,
        "p_clear": None if p_crystals is None else 1 - p_crystals,
        "p_crystals": p_crystals,
        "p_other": None if p_crystals is None else 0.0,
        "p_precipitate": None if p_crystals is None else 0.0,
        "label": None if p_crystals is None else str(DropClass.CRYSTALS if p_crystals > 0.5 else DropClass.CLEAR),
        "inspection_id": 1,
        "in_light": True,
        "state": ImageState.WAITING if p_crystals is None else ImageState.SCORED,
        "threshold": VERSION.crystal_threshold,
        "score_version_id": None,
    }
    label = more.pop("said", None)
    image = ImageVerdict(**(values | more))
    return DropVerdict(image, label, image.hit)


def plate(drops: list[DropVerdict], name: str = "P1", grid: Grid | None = None, **papers: str) -> PlateMap:
    summary = Summary(
        1, "imager", name, name, "3", 3, "small", "1", True, 1, 2, 3, 4, 5, "[]", None, len(drops), len(drops), 0,
        False, None, utc(), utc(minutes=3), 0.5,
    )  # fmt: skip
    return PlateMap(1, summary, VERSION, tuple(drops), PlateMetadata(papers.get("project"), papers.get("screen"), grid))


def said(label: DropClass, person: str, votes: dict[DropClass, int] | None = None) -> MajorityLabel:
    return MajorityLabel(1, 1, None, label, votes or {label: 1}, person, utc(), {person: label})

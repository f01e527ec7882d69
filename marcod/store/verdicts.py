"""The verdict on a drop at an inspection, as one model version and the people who labelled it give it.

The one place that knows which score counts for an image, which image counts for a drop, and when people's labels win.
A version's own score of the present bytes counts. For a file that is gone for good and that the version never scored,
the score kept with the image counts, under the threshold of the version that gave it. Of a drop's images the one with
the highest crystal probability counts, because a lab would rather look twice than miss a crystal.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import drop, image, inspection, job, model_version, score
from marcod.domain import DropClass
from marcod.store import votes
from marcod.store.selects import IS_COUNTED, current_score, is_hit, unforeseen
from marcod.store.versions import Version


class ImageState(StrEnum):
    """A version's knowledge of an image: its score, that it cannot be scored and why, or that the score is to come."""

    SCORED = "scored"
    FAILED = "failed"
    GONE = "gone"
    WAITING = "waiting"


class ImageVerdict(NamedTuple):
    """One image as a version sees it; probabilities are None unless ``state`` is scored.

    ``score_version_id`` is set where the score is another version's, because the file is gone. ``seen_at`` is known
    where one inspection is read: a time costs as much as the rest of its row. The fields are the columns of
    :data:`_IMAGES`, in its order: a batch reads hundreds of rows, and one is as quick to make as a tuple.
    """

    image_id: int
    drop_id: int
    inspection_id: int
    path: str
    well: str
    well_row: int
    well_column: int
    drop_number: int
    in_light: bool
    state: str
    p_clear: float | None
    p_crystals: float | None
    p_other: float | None
    p_precipitate: float | None
    label: str | None
    threshold: float
    score_version_id: int | None
    seen_at: datetime | None = None

    @property
    def hit(self) -> bool:
        """Tell if the score reaches the threshold of the version that gave it."""
        return self.p_crystals is not None and is_hit(self.p_crystals, self.threshold)

    @property
    def place(self) -> tuple[int, int, int]:
        """The row and column of the well and the number of the drop."""
        return self.well_row, self.well_column, self.drop_number

    @property
    def failed(self) -> bool:
        """Tell if the version could not score the image."""
        return self.state == ImageState.FAILED

    @property
    def gone(self) -> bool:
        """Tell if the file is gone for good and no score of it counts."""
        return self.state == ImageState.GONE

    @property
    def rank(self) -> tuple[bool, float]:
        """The image with the greatest counts for its drop: by light, then crystals, then waiting before failed."""
        if self.p_crystals is not None:
            return self.in_light, self.p_crystals
        return self.in_light, -1.0 if self.state == ImageState.WAITING else -2.0


class DropVerdict(NamedTuple):
    """A drop at one inspection: the image that counts, and what people say, which wins."""

    image: ImageVerdict
    majority: votes.MajorityLabel | None
    model_hit: bool

    @property
    def known(self) -> bool:
        """Tell if there is a label or a score."""
        return self.majority is not None or self.image.p_crystals is not None

    @property
    def label(self) -> str | None:
        """The class that counts."""
        return self.image.label if self.majority is None else str(self.majority.label)

    @property
    def hit(self) -> bool:
        """Tell if people, else the model, see crystals."""
        return self.model_hit if self.majority is None else self.majority.label is DropClass.CRYSTALS


def of_inspection(connection: Connection, inspection_id: int, version: Version) -> list[ImageVerdict]:
    """Read the images of an inspection in the version's light, by path."""
    return _read(connection, _OF_INSPECTION, version, inspection_key=inspection_id)


def of_drops(
    connection: Connection, drop_ids: Collection[int], version: Version, labelled: Collection[tuple[int, int]]
) -> list[ImageVerdict]:
    """Read the images of drops, by drop and time: in the version's light, and where people labelled, in any.

    ``labelled`` are drops and inspections, since people may judge by an image of another light.
    """
    anywhere = sorted({inspection_id for _, inspection_id in labelled})
    found = _read(connection, _OF_DROPS, version, drop_keys=list(drop_ids), anywhere=anywhere)
    return [i for i in found if i.in_light or (i.drop_id, i.inspection_id) in labelled]


def drops_at(connection: Connection, inspection_id: int, version: Version) -> list[DropVerdict]:
    """Read the verdicts on all drops of one inspection, in plate order."""
    images = of_inspection(connection, inspection_id, version)
    found = by_drop(images, votes.of_inspection(connection, inspection_id)) if images else []
    return sorted(found, key=lambda verdict: verdict.image.place)


def of_drop(images: Iterable[ImageVerdict], given: votes.DropVotes) -> DropVerdict:
    """Decide the verdict on one drop at one inspection from all of its images there, at least one."""
    shown = list(images)
    # Of two images that are equally crystalline the first by path counts, whichever came first.
    best = shown[0] if len(shown) == 1 else max(shown, key=lambda i: i.rank)
    hits = {i.image_id: i.hit for i in shown}
    return DropVerdict(best, None if given is votes.NO_VOTES else given.majority(hits), any(hits.values()))


def by_drop(images: Iterable[ImageVerdict], given: Mapping[int, votes.DropVotes]) -> list[DropVerdict]:
    """Decide the verdicts on all drops of one inspection."""
    of_each: dict[int, list[ImageVerdict]] = {}
    for found in images:
        of_each.setdefault(found.drop_id, []).append(found)
    return [of_drop(its, given.get(drop_id, votes.NO_VOTES)) for drop_id, its in of_each.items()]


_KEPT = score.alias("kept")
_KEPT_VERSION = model_version.alias("kept_version")
_VERSION: Final = sa.bindparam("version_id", type_=sa.BigInteger)
_LIGHT: Final = sa.bindparam("light", type_=sa.Text)
_THRESHOLD: Final = sa.bindparam("own_threshold", type_=sa.Float)


def _images() -> sa.Select[Any]:
    own = current_score(unforeseen(_VERSION))
    own_job = sa.and_(job.c.image_id == image.c.id, job.c.model_version_id == _VERSION)
    mine = score.c.id.is_not(None)
    scored = sa.or_(mine, _KEPT.c.id.is_not(None))
    state = sa.case(
        (scored, str(ImageState.SCORED)),
        (image.c.gone_at.is_not(None), str(ImageState.GONE)),
        (job.c.failed_at.is_not(None), str(ImageState.FAILED)),
        else_=str(ImageState.WAITING),
    )
    kept_threshold = sa.func.coalesce(_KEPT_VERSION.c.crystal_threshold, 1.0)

    def counting(name: str) -> sa.ColumnElement[Any]:
        return sa.case((mine, score.c[name]), else_=_KEPT.c[name])

    return (
        sa.select(
            image.c.id,
            image.c.drop_id,
            image.c.inspection_id,
            image.c.path,
            drop.c.well,
            drop.c.well_row,
            drop.c.well_column,
            drop.c.drop_number,
            (image.c.modality == _LIGHT).label("in_light"),
            state.label("state"),
            *(counting(name) for name in ("p_clear", "p_crystals", "p_other", "p_precipitate", "label")),
            sa.case((mine, _THRESHOLD), else_=kept_threshold).label("threshold"),
            sa.case((mine, None), else_=_KEPT.c.model_version_id).label("score_version_id"),
        )
        .join(inspection, inspection.c.id == image.c.inspection_id)
        # The plate is named twice so that PostgreSQL looks the drops up instead of reading all there are.
        .join(drop, sa.and_(drop.c.id == image.c.drop_id, drop.c.plate_id == inspection.c.plate_id))
        .outerjoin(score, own)
        .outerjoin(job, own_job)
        .outerjoin(_KEPT, _KEPT.c.id == image.c.gone_score_id)
        .outerjoin(_KEPT_VERSION, _KEPT_VERSION.c.id == _KEPT.c.model_version_id)
        .where(IS_COUNTED)
    )


_IMAGES: Final = _images()
"""Images as a version sees them; put together once, because that takes longer than to read a batch's."""

_OF_INSPECTION: Final = (
    _IMAGES.add_columns(image.c.seen_at)
    .where(image.c.inspection_id == sa.bindparam("inspection_key"), image.c.modality == _LIGHT)
    .order_by(image.c.path)
)
_OF_DROPS: Final = _IMAGES.where(
    image.c.drop_id.in_(sa.bindparam("drop_keys", expanding=True)),
    sa.or_(image.c.modality == _LIGHT, image.c.inspection_id.in_(sa.bindparam("anywhere", expanding=True))),
).order_by(image.c.drop_id, inspection.c.order_key, inspection.c.id, image.c.path)


def _read(connection: Connection, wanted: sa.Select[Any], version: Version, **keys: Any) -> list[ImageVerdict]:
    own = {"version_id": version.id, "light": version.modality, "own_threshold": version.crystal_threshold}
    return [ImageVerdict(*row) for row in connection.execute(wanted, own | keys)]

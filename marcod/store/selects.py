"""Conditions and joins that several features share: the score that counts, versions that serve, and places."""

from typing import Any, Final, overload

import sqlalchemy as sa

from marcod.database.schema import drop, image, inspection, model_version, plate, score, source


def of_present_bytes(scores: Any = score) -> sa.ColumnElement[bool]:
    """Join a score, or an alias of ``score``, to its image where it is of the bytes that were read last."""
    return sa.and_(scores.c.image_id == image.c.id, scores.c.content_hash == image.c.content_hash)


OF_PRESENT_BYTES: Final = of_present_bytes()


def current_score(version_id: Any, scores: Any = score) -> sa.ColumnElement[bool]:
    """Join a version's score of an image's present bytes; there is one at most. ``version_id`` may be a column."""
    return sa.and_(of_present_bytes(scores), scores.c.model_version_id == version_id)


def unforeseen(version_id: Any) -> sa.ScalarSelect[Any]:
    """Keep PostgreSQL from planning for this version: for statements that look a score up for each of many images.

    A version that its statistics do not know yet has no scores for them, so that it would read all of the version's
    for each image: 12 s instead of 20 ms for a batch, once a version has some ten thousand.
    """
    return sa.select(version_id).scalar_subquery()


IS_COUNTED: Final = image.c.same_as_id.is_(None)
"""Images that count: of a drop's files with the same bytes at one inspection, one; the others are copies of it."""


def counted_in(modality: Any) -> sa.ColumnElement[bool]:
    """Choose the images of a modality that count, so no copies. ``modality`` may be a column."""
    return sa.and_(image.c.modality == modality, IS_COUNTED)


@overload
def is_hit(p_crystals: float, threshold: float) -> bool: ...


@overload
def is_hit(p_crystals: sa.ColumnElement[Any], threshold: float) -> sa.ColumnElement[bool]: ...


def is_hit(p_crystals: Any, threshold: float) -> Any:
    """Tell if a crystal probability is a hit: at or above the threshold. Of a column it is a condition."""
    return p_crystals >= threshold


WAS_CHAMPION: Final = model_version.c.promoted_at.is_not(None)
"""Versions that are or were champion: their results are shown and notified."""


SHOWN_DROP: Final = sa.table("shown_drop", sa.column("drop_id"), sa.column("model_version_id"))
"""The model version that the views show for each drop; an internal view holds the rule."""


SHOWN_INSPECTION: Final = sa.table("shown_inspection", sa.column("inspection_id"), sa.column("model_version_id"))
"""The model version that the views show for each inspection; an internal view holds the rule."""


def count_where(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    """Count the rows of a statement that meet a condition; 0 where there are none."""
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def at_drop(statement: sa.Select[Any], drop_id: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Join a drop with its plate and source."""
    return (
        statement.join(drop, drop.c.id == drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
    )


def at_inspection(statement: sa.Select[Any], inspection_id: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Join an inspection with its plate and source."""
    return (
        statement.join(inspection, inspection.c.id == inspection_id)
        .join(plate, plate.c.id == inspection.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
    )

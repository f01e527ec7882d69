"""Rows of labelled images for a snapshot, and of the snapshots taken.

All that :func:`gather` returns was true at one moment, whatever is written meanwhile.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import (
    UtcDateTime,
    dataset,
    drop,
    image,
    label,
    model_version,
    plate,
    review_item,
    score,
    source,
)
from marcod.domain import Modality, Split, split_of, text_path
from marcod.store import sources, votes
from marcod.store.selects import counted_in, current_score
from marcod.store.votes import LabelledImage


@dataclass(frozen=True, slots=True)
class Past:
    """History of a labelled image.

    ``contents`` are the hashes that were ever scored in its place, with the first time; ``labels`` are when a label
    that names a class was given and when it was recorded. Both only grow. ``source`` is the name that decides the side
    of its plate. Keys are as on disk.
    """

    source: str
    plate_key: str
    contents: Mapping[str, datetime]
    labels: tuple[tuple[datetime, datetime], ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Labelled images of one modality, their past, and who asked for each label by drop and inspection.

    Who asked is a review stream, with the probability with which an audit drew the drop.
    """

    last_label_id: int | None
    images: tuple[LabelledImage, ...]
    past: Mapping[int, Past]
    asked: Mapping[tuple[int, int], tuple[str, float | None]]


def gather(connection: Connection, modality: Modality) -> Gathered:
    """Read all current labels. Call it first in its transaction."""
    _hold_still(connection)
    last = connection.execute(sa.select(sa.func.max(label.c.id))).scalar()
    images = tuple(votes.labelled_images(connection, None, modality=modality))
    return Gathered(last, images, _past(connection, modality), _asked(connection))


def _hold_still(connection: Connection) -> None:
    """Freeze the transaction's snapshot: PostgreSQL must be asked first, SQLite does it by itself."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("set transaction isolation level repeatable read")


def _past(connection: Connection, modality: Modality) -> dict[int, Past]:
    labels = _labels(connection, modality)
    contents = _contents(connection, modality)
    return {
        image_id: Past(name, text_path(key), contents.get(image_id, {}), tuple(times))
        for (image_id, name, key), times in labels.items()
    }


def _labels(connection: Connection, modality: Modality) -> dict[tuple[int, str, str], list[tuple[datetime, datetime]]]:
    """Return when the class of each image, or of its drop, was labelled and when that was recorded.

    By the image's id, the source that decides its side and its plate's key as stored.
    """
    found: dict[tuple[int, str, str], list[tuple[datetime, datetime]]] = defaultdict(list)
    copy = image.alias("copy")
    copies = sa.select(copy.c.id).where(copy.c.same_as_id == image.c.id).correlate(image)
    of_image = sa.and_(
        label.c.drop_id == image.c.drop_id,
        label.c.inspection_id == image.c.inspection_id,
        sa.or_(label.c.image_id.is_(None), label.c.image_id == image.c.id, label.c.image_id.in_(copies)),
        label.c.label.is_not(None),
    )
    statement = (
        sa.select(image.c.id, sources.SIDE_NAME, plate.c.key, label.c.labelled_at, label.c.recorded_at)
        .select_from(image)
        .join(label, of_image)
        .join(drop, drop.c.id == image.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
        .where(image.c.modality == str(modality))
    )
    for image_id, name, key, labelled_at, recorded_at in connection.execute(statement):
        found[image_id, name, key].append((labelled_at, recorded_at))
    return found


def _contents(connection: Connection, modality: Modality) -> dict[int, dict[str, datetime]]:
    """List per image of a labelled drop the scored contents and when each was scored first."""
    found: dict[int, dict[str, datetime]] = defaultdict(dict)
    labelled = sa.select(image.c.id).where(
        image.c.modality == str(modality), image.c.drop_id.in_(sa.select(label.c.drop_id))
    )
    statement = (
        sa.select(score.c.image_id, score.c.content_hash, sa.func.min(score.c.scored_at, type_=UtcDateTime()))
        .where(score.c.image_id.in_(labelled))
        .group_by(score.c.image_id, score.c.content_hash)
    )
    for image_id, content, scored_at in connection.execute(statement):
        found[image_id][content] = scored_at
    return found


def _asked(connection: Connection) -> dict[tuple[int, int], tuple[str, float | None]]:
    """Return the answered question per drop and inspection, of several the one with a known probability."""
    statement = (
        sa.select(review_item.c.drop_id, review_item.c.inspection_id, review_item.c.stream, review_item.c.inclusion)
        .where(review_item.c.answered_at.is_not(None))
        .order_by(review_item.c.inclusion.is_not(None), review_item.c.id.desc())
    )
    return {
        (drop_id, inspection_id): (stream, share)
        for drop_id, inspection_id, stream, share in connection.execute(statement)
    }


def register(connection: Connection, row: Mapping[str, Any]) -> int:
    """Keep a data set's row; the one that is there already stays. Returns its id."""
    connection.execute(insert(connection, dataset).values(row).on_conflict_do_nothing(index_elements=["digest"]))
    return int(connection.execute(sa.select(dataset.c.id).where(dataset.c.digest == row["digest"])).scalar_one())


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Where an image is: its source, that source's root and the path below it, as on disk."""

    source: str
    root: str
    path: str


def sample(connection: Connection, modality: Modality, count: int, seed: int) -> list[StoredImage]:
    """So many images in one light, labelled or not, as if drawn at random; the same ones for the same seed.

    None of a test plate, which nothing that is trained may have seen.
    """
    return [
        StoredImage(row.name, text_path(row.root), text_path(row.path))
        for row in _drawn(connection, modality, count, seed, sa.true())
    ]


def sample_scored(connection: Connection, version_ids: Sequence[int], count: int, seed: int) -> dict[int, str]:
    """So many images that all of these versions scored, drawn as by :func:`sample`: their content hashes by id."""
    modality = sa.select(model_version.c.modality).where(model_version.c.id == version_ids[0])
    by_all = sa.and_(*(sa.exists().where(current_score(version_id)) for version_id in version_ids))
    light = Modality(connection.execute(modality).scalar_one())
    return {row.id: row.content_hash for row in _drawn(connection, light, count, seed, by_all)}


def _drawn(
    connection: Connection, modality: Modality, count: int, seed: int, condition: sa.ColumnElement[bool]
) -> list[Any]:
    # A multiplicative hash of the id (Knuth, The Art of Computer Programming, vol. 3, 6.4); the seed is held down so
    # that PostgreSQL adds it within 32 bits and multiplies within 63.
    scattered = (image.c.id + seed % 1_000_000_000) * 2654435761 % 4294967296
    statement = (
        sa.select(
            image.c.id, image.c.content_hash, source.c.name, sources.root_of(connection), image.c.path, plate.c.key,
            sources.SIDE_NAME.label("side_name"),
        )
        .join(source, source.c.id == image.c.source_id)
        .join(drop, drop.c.id == image.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .where(counted_in(str(modality)), condition)
        .order_by(scattered, image.c.id)
        # A fifth of the plates are test plates, of few plates more.
        .limit(4 * count)
    )  # fmt: skip
    found = [
        row for row in connection.execute(statement) if split_of(row.side_name, text_path(row.key)) is not Split.TEST
    ]
    return found[:count]

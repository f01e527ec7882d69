"""Changes to a source as a whole: another name, or removal with everything that was recorded of it.

One call is one transaction of its caller, so all of it happens or nothing. No image file is touched.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database import workers
from marcod.database.schema import (
    campaign,
    campaign_range,
    delivery,
    drift_alarm,
    drift_day,
    drift_reference,
    drop,
    drop_summary,
    event,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    label,
    label_inbox,
    plate,
    review_item,
    score,
    source,
    source_finding,
    source_root,
    watch_state,
)
from marcod.errors import ConfigError, StoreError
from marcod.store import audit_log, sources, versions

Report = Callable[[int, int], None]
"""Plates done, and plates in all."""


def silent(_done: int, _total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Counts of the rows of a source."""

    plates: int
    images: int
    scores: int
    labels: int


def contents(connection: Connection, source_id: int) -> Contents:
    """Count the plates, images, scores and labels of a source."""
    of_drop = sa.select(label.c.id).join(drop, drop.c.id == label.c.drop_id).join(plate, plate.c.id == drop.c.plate_id)
    return Contents(
        _count(connection, sa.select(plate.c.id).where(plate.c.source_id == source_id)),
        _count(connection, sa.select(image.c.id).where(image.c.source_id == source_id)),
        _count(connection, sa.select(score.c.id).join(image).where(image.c.source_id == source_id)),
        _count(connection, of_drop.where(plate.c.source_id == source_id)),
    )


def _count(connection: Connection, found: sa.Select[Any]) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar_one())


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Plan of a merge: all that moves, and how much of it the other source has already."""

    moved: Contents
    same_plates: int
    same_images: int
    same_scores: int


def plan(connection: Connection, source_id: int, target_id: int) -> MergePlan:
    """Count what :func:`merging.merge` would do. Raises ConfigError as it does."""
    _require_one_layout(connection, source_id, target_id)
    theirs, other_image, other_score = plate.alias(), image.alias(), score.alias()
    of_other = sa.and_(other_image.c.path == image.c.path, other_image.c.source_id == target_id)
    same_plates = sa.select(plate.c.id).join(theirs, theirs.c.key_folded == plate.c.key_folded)
    same_images = sa.select(image.c.id).join(other_image, of_other).where(image.c.source_id == source_id)
    same_scores = (
        sa.select(score.c.id)
        .join(image, image.c.id == score.c.image_id)
        .join(other_image, of_other)
        .join(
            other_score,
            sa.and_(
                other_score.c.image_id == other_image.c.id,
                other_score.c.model_version_id == score.c.model_version_id,
                other_score.c.content_hash == score.c.content_hash,
            ),
        )
        .where(image.c.source_id == source_id)
    )
    of_both = same_plates.where(plate.c.source_id == source_id, theirs.c.source_id == target_id)
    counts = (_count(connection, found) for found in (of_both, same_images, same_scores))
    return MergePlan(contents(connection, source_id), *counts)


def _require_one_layout(connection: Connection, source_id: int, target_id: int) -> None:
    found = sa.select(source.c.id, source.c.name, source.c.layout).where(source.c.id.in_((source_id, target_id)))
    rows = {row.id: row for row in connection.execute(found)}
    one, other = rows[source_id], rows[target_id]
    if one.layout != other.layout:
        raise ConfigError(
            f"source {one.name!r} has layout {one.layout} and {other.name!r} has {other.layout}, so their plates are "
            "not the same; a source that was read wrongly is removed with `marcod source forget`"
        )


def hold(connection: Connection, *source_ids: int) -> None:
    """Let nobody record images of these sources until the transaction ends."""
    # The champion first, as recording does, or the two would wait for each other.
    if versions.has_champion(connection):
        versions.champion(connection, lock=True)
    held = sa.select(source.c.id).where(source.c.id.in_(source_ids)).order_by(source.c.id).with_for_update()
    if len(connection.execute(held).all()) < len(source_ids):
        raise StoreError("a source was removed meanwhile; look at `marcod source list`")


def rename(connection: Connection, source_id: int, name: str, *, actor: str, now: datetime) -> None:
    """Give a source another name. Raises ConfigError when there is a source of that name."""
    hold(connection, source_id)
    old = require_free(connection, source_id, name)
    sources.rename(connection, source_id, name)
    audit_log.write(connection, actor, "source rename", old, {"to": name}, now)


def require_free(connection: Connection, source_id: int, name: str) -> str:
    """Return the present name of a source. Raises ConfigError when another source has the new one."""
    names = {row.id: str(row.name) for row in connection.execute(sa.select(source.c.name, source.c.id))}
    if not name.strip() or not name.isprintable():
        raise ConfigError("the new name is empty or cannot be printed; give another")
    if name in names.values():
        raise ConfigError(
            f"there is a source {name!r}; `marcod source merge {names[source_id]} {name}` puts the one into the other"
        )
    return names[source_id]


def require_unwatched(connection: Connection, source_id: int, now: datetime) -> None:
    """Check that no living process watches the source. Raises StoreError."""
    name = connection.execute(sa.select(source.c.name).where(source.c.id == source_id)).scalar_one()
    if watcher := sources.watcher(connection, source_id, now):
        raise StoreError(
            f"{watcher.host} watches source {name} now (worker {watcher.worker}); stop marcod there and repeat; one "
            f"that was killed counts as running for {workers.ALIVE_S:.0f} s"
        )


def forget(connection: Connection, source_id: int, *, actor: str, now: datetime, report: Report = silent) -> Contents:
    """Remove a source and everything that was recorded of it, labels included. Returns how much there was."""
    hold(connection, source_id)
    counted = contents(connection, source_id)
    name = connection.execute(sa.select(source.c.name).where(source.c.id == source_id)).scalar_one()
    plates = list(connection.execute(sa.select(plate.c.id).where(plate.c.source_id == source_id)).scalars())
    for done, plate_id in enumerate(plates, start=1):
        _forget_plate(connection, plate_id)
        report(done, len(plates))
    of_source = event.c.source_id == source_id
    connection.execute(sa.delete(delivery).where(delivery.c.event_id.in_(sa.select(event.c.id).where(of_source))))
    connection.execute(sa.delete(event).where(of_source))
    of_campaigns = sa.select(campaign.c.id).where(campaign.c.source_id == source_id)
    connection.execute(sa.delete(campaign_range).where(campaign_range.c.campaign_id.in_(of_campaigns)))
    for table in (campaign, drift_reference, drift_day, drift_alarm, source_finding, watch_state, source_root):
        connection.execute(sa.delete(table).where(table.c.source_id == source_id))
    connection.execute(sa.delete(source).where(source.c.id == source_id))
    audit_log.write(connection, actor, "source forget", name, {**asdict(counted)}, now)
    return counted


def _forget_plate(connection: Connection, plate_id: int) -> None:
    drop_ids = sa.select(drop.c.id).where(drop.c.plate_id == plate_id)
    inspection_ids = sa.select(inspection.c.id).where(inspection.c.plate_id == plate_id)
    image_ids = sa.select(image.c.id).where(image.c.drop_id.in_(drop_ids))
    label_ids = sa.select(label.c.id).where(sa.or_(label.c.drop_id.in_(drop_ids), label.c.image_id.in_(image_ids)))
    gone: dict[str, Any] = {"label_id": None, "reason": "its source was removed with `marcod source forget`"}
    connection.execute(sa.update(label_inbox).where(label_inbox.c.label_id.in_(label_ids)).values(gone))
    # Jobs, inspections and drops in the order of those who score, images last of what leads to them.
    for table, column, ids in (
        (job, "image_id", image_ids),
        (inspection_summary, "inspection_id", inspection_ids),
        (drop_summary, "drop_id", drop_ids),
        (hit, "drop_id", drop_ids),
        (review_item, "drop_id", drop_ids),
        (label, "drop_id", drop_ids),
        (hit, "image_id", image_ids),
        (review_item, "image_id", image_ids),
        (label, "image_id", image_ids),
        (score, "image_id", image_ids),
        (image, "drop_id", drop_ids),
        (inspection, "plate_id", sa.select(sa.literal(plate_id))),
        (drop, "plate_id", sa.select(sa.literal(plate_id))),
        (plate, "id", sa.select(sa.literal(plate_id))),
    ):
        connection.execute(sa.delete(table).where(table.c[column].in_(ids)))

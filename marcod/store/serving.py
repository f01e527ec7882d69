"""Model versions in service: promotion, rollback, challenge and removal, each one transaction with an audit row.

A version that has scored in silence becomes champion in steps (``promotions``), of which the last one is that
transaction; until then the former champion speaks.

Every change of an alias begins by locking the champion's row, as recording images does, so that an image
is queued for those who serve when it is recorded. The work that waits for one version moves to the next, and the
derived rows of both follow.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database, insert
from marcod.database.rows import parts
from marcod.database.schema import (
    drift_alarm,
    drift_day,
    drift_reference,
    drop_summary,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    model_alias,
    model_version,
    review_item,
    review_round,
    score,
)
from marcod.errors import NotFoundError, StoreError
from marcod.store import audit_log, campaigns, derived, events, locks, promotions, queue, versions
from marcod.store.promotions import Promotion
from marcod.store.selects import OF_PRESENT_BYTES, WAS_CHAMPION
from marcod.store.versions import CHALLENGER, CHAMPION, PREVIOUS, Version, aliased, get, lock_version, previous

SKEW: Final = timedelta(hours=1)
"""An image recorded after a promotion may bear an earlier time, by as much as two hosts' clocks differ."""

GAP_S: Final = 0.2
"""Pause between two steps of a promotion on SQLite: who waits to write asks again every tenth of a second."""

ALIAS_LOCK: Final = 0x6D61_7263_6F65
"""PostgreSQL advisory lock of a change of aliases; migrations hold the number before it."""


def promote(
    connection: Connection, version: Version, *, actor: str, now: datetime, instead_of: str | None = None
) -> Version | None:
    """Make a version champion, or note that it becomes champion. Returns the former one.

    One that was champion before, and the first one of all, is champion when this transaction ends. Of any other one
    :func:`advance` has the rows made of what it scored in silence, and changes the champion at the end. Either way it
    replaces another one that was to become champion, and so does the champion itself. Raises NotFoundError if it was
    removed.

    With ``instead_of`` only in the place of that version; raises StoreError when another one is champion meanwhile, or
    somebody wants another to become champion.

    Waiting jobs of new images move to it, and plates that are still arriving are queued for it whole. A challenger
    that is promoted is challenger no more.
    """
    former = _lock_aliases(connection)
    coming = versions.coming(connection)
    if former is not None and former.id == version.id:
        _withdraw(connection, coming, version, actor, now)
        return former
    if instead_of is not None:
        _refuse_instead(former, coming, version, instead_of)
    if coming == version:
        return former
    _withdraw(connection, coming, version, actor, now)
    if former is not None and not versions.speaks(connection, version):
        # Its rows are made while it is here.
        lock_version(connection, version.id, version)
        promotions.begin(connection, version, actor=actor, now=now)
    else:
        _make_champion(connection, former, version, actor, now)
    return former


def _refuse_instead(former: Version | None, coming: Version | None, version: Version, instead_of: str) -> None:
    if str(former) != instead_of:
        raise StoreError(f"{former} became champion meanwhile, instead of {instead_of}")
    if coming not in (None, version):
        raise StoreError(f"{coming} is becoming champion meanwhile, instead of {instead_of}")


def _withdraw(connection: Connection, coming: Version | None, version: Version, actor: str, now: datetime) -> None:
    """End the promotion that is under way, if any, in favour of a version."""
    if coming is not None and (coming != version):
        promotions.withdraw(connection)
        audit_log.write(connection, actor, "withdraw", str(coming), {"for": str(version)}, now)


def _make_champion(connection: Connection, former: Version | None, version: Version, actor: str, now: datetime) -> None:
    _set_champion(connection, former, version, now)
    if former is not None:
        _set_alias(connection, PREVIOUS, former.id, now)
    audit_log.write(connection, actor, "promote", str(version), {"from": str(former) if former else None}, now)


def advance(
    db: Database,
    clock: Callable[[], datetime],
    *,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[Promotion], None] = lambda _: None,
) -> Promotion | None:
    """Work on the promotion that is under way, in short transactions, until its version is champion.

    Returns how far it is where ``stop`` said so before, and None where no version is becoming champion any more.
    """
    while (now_at := db.read(promotions.pending)) is not None:
        report(now_at)
        if stop():
            return now_at
        if now_at.ready:
            db.write(_arrive, now_at.version, clock())
            continue
        db.write(promotions.step, now_at.version, clock())
        if db.is_sqlite:
            time.sleep(GAP_S)
    return None


def _arrive(connection: Connection, version: Version, now: datetime) -> None:
    """Change the champion, if this is still the version that was to become it and all of its rows are there."""
    former = _lock_aliases(connection)
    found = promotions.pending(connection)
    if found is not None and found.version.id == version.id and found.ready:
        promotions.withdraw(connection)
        _make_champion(connection, former, version, found.actor, now)


def rollback(connection: Connection, version: Version, *, actor: str, now: datetime) -> Version:
    """Make the previous version champion again, in one transaction, as :func:`promote` does. Returns the former one.

    ``version`` is that of :func:`previous`; raises StoreError when another is by now. Afterwards there is no
    previous version, because the one that was rolled back is not one to go back to. Its rows are there, since it
    spoke; a version that was to become champion is that no more.
    """
    former = _lock_aliases(connection)
    if former is None or previous(connection).id != version.id:
        raise StoreError(f"{version} is not the previous champion any more; somebody promoted another meanwhile")
    _withdraw(connection, versions.coming(connection), version, actor, now)
    _drop_alias(connection, version.id, PREVIOUS)
    promoted = sa.select(model_version.c.promoted_at).where(model_version.c.id == former.id)
    since = connection.execute(promoted).scalar_one()
    # What only the one that was rolled back has seen, or its results would stay the current ones.
    _set_champion(connection, former, version, now, since=since - SKEW)
    audit_log.write(connection, actor, "rollback", str(version), {"from": str(former), "to": str(version)}, now)
    return former


def challenge(connection: Connection, version: Version | None, *, actor: str, now: datetime) -> Version | None:
    """Set the challenger, which scores every new image too; None ends it. Returns the former one.

    What was queued behind new images for the former challenger while it was one, and nobody holds, is withdrawn; a
    rescore of plates with it too; campaigns go on. Raises StoreError when the version is champion, NotFoundError when
    it was removed.
    """
    serving = _lock_aliases(connection)
    if serving is None:
        raise StoreError("no model is champion yet, so there is nobody to challenge")
    if version is not None and version.id == serving.id:
        raise StoreError(f"{version} is champion; a challenger is another version")
    former = aliased(connection, CHALLENGER)
    if former == version:
        return former
    withdrawn = 0 if former is None else _dismiss(connection, former)
    if version is not None:
        lock_version(connection, version.id, version)
        _set_alias(connection, CHALLENGER, version.id, now)
    left = str(former) if former else None
    audit_log.write(connection, actor, "challenge", str(version or "none"), {"from": left, "withdrawn": withdrawn}, now)
    return former


def _dismiss(connection: Connection, challenger: Version) -> int:
    """Take the alias and the waiting work from a challenger. Returns how many jobs that were."""
    since = connection.execute(sa.select(model_alias.c.set_at).where(model_alias.c.alias == CHALLENGER)).scalar_one()
    _drop_alias(connection, challenger.id, CHALLENGER)
    return queue.cancel_rescore(connection, challenger.id, since, kept=campaigns.retries())


def remove(connection: Connection, version: Version, *, force: bool, actor: str, now: datetime) -> bool:
    """Forget a version that has no scores; with ``force`` keep one's scores and row and say that its bundle is gone.

    What people are or were asked about in the review keeps it as scores do. Returns whether the row stays. Its jobs
    go either way, also those in a worker's hands. Raises StoreError for the champion, the challenger, and a version
    that stays unless forced; NotFoundError when it is gone already.
    """
    _lock_aliases(connection)
    held = model_version.c.id == version.id
    if connection.execute(sa.select(model_version.c.id).where(held).with_for_update()).one_or_none() is None:
        raise NotFoundError(f"{version} was removed already")
    _refuse_in_service(connection, version)
    scored, reviewed = _has(connection, version, score), _has(connection, version, review_item, review_round)
    if scored and not force:
        raise StoreError(f"{version} has scored images; --force removes its bundle and keeps its scores and hits")
    if reviewed and not force:
        raise StoreError(f"{version} has items in the review; --force removes its bundle and keeps them")
    _drop_alias(connection, version.id, PREVIOUS)
    stays = scored or reviewed
    campaigns.forget(connection, version.id, now, keep=stays)
    jobs, failed = _delete_jobs(connection, version)
    if stays:
        connection.execute(sa.update(model_version).where(held).values(removed_at=now))
        _forget_failures(connection, version, failed, now)
    else:
        for table in (hit, inspection_summary, drop_summary, drift_alarm, drift_day, drift_reference):
            connection.execute(sa.delete(table).where(table.c.model_version_id == version.id))
        connection.execute(sa.delete(model_version).where(held))
    detail = {"digest": version.digest, "scores_kept": scored, "withdrawn": jobs}
    audit_log.write(connection, actor, "remove", str(version), detail, now)
    return stays


def _delete_jobs(connection: Connection, version: Version) -> tuple[int, list[int]]:
    """Delete a version's jobs. Returns how many, and the images that it had failed at."""
    of_version = queue.locked(job.c.model_version_id == version.id)
    deleted = sa.delete(job).where(of_version).returning(job.c.image_id, job.c.failed_at)
    rows = connection.execute(deleted).all()
    return len(rows), [int(row.image_id) for row in rows if row.failed_at is not None]


def _has(connection: Connection, version: Version, *tables: sa.Table) -> bool:
    """Tell if one of the tables has rows of a version."""
    rows = (sa.exists().where(table.c.model_version_id == version.id) for table in tables)
    return bool(connection.execute(sa.select(sa.or_(*rows))).scalar_one())


def _refuse_in_service(connection: Connection, version: Version) -> None:
    if versions.coming(connection) == version:
        champion = aliased(connection, CHAMPION)
        raise StoreError(
            f"{version} is becoming champion and cannot be removed; `marcod model promote {champion}` ends that"
        )
    for alias, way_out in (
        (CHAMPION, "`marcod model promote` another version first"),
        (CHALLENGER, "`marcod model challenge --none` ends that"),
    ):
        if aliased(connection, alias) == version:
            raise StoreError(f"{version} is {alias} and cannot be removed; {way_out}")


def _lock_aliases(connection: Connection) -> Version | None:
    """Keep every alias from changing until this transaction ends. Returns the champion."""
    if connection.dialect.name == "postgresql":
        # A new database has no row to hold, and processes that begin together would wait for each other in a ring.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ALIAS_LOCK)))
    row = connection.execute(
        sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == CHAMPION).with_for_update()
    ).one_or_none()
    return get(connection, row[0]) if row else None


def _set_champion(
    connection: Connection, former: Version | None, version: Version, now: datetime, since: datetime | None = None
) -> None:
    """Make a version champion and give it the work that waits for the former one, and what came ``since``."""
    lock_version(connection, version.id, version)
    _drop_alias(connection, version.id, CHALLENGER)
    _set_alias(connection, CHAMPION, version.id, now)
    if former is not None:
        # Lock order: plates, then jobs, then the inspections and hits of derived rows.
        plate_ids = _plates_to_do(connection, former, version)
        locks.hold(connection, plates=plate_ids)
        failed = queue.transfer_new(connection, former.id, version.id, now)
        for some in parts(plate_ids):
            queue.enqueue_rescore(connection, version.id, now, some)
        if since is not None:
            queue.enqueue_rescore(connection, version.id, now, since=since)
        _forget_failures(connection, former, failed, now)
    _publish(connection, version, now)


def _forget_failures(connection: Connection, version: Version, image_ids: list[int], now: datetime) -> None:
    """Count what a version failed at as waiting for it, now that its failed jobs are gone."""
    _, inspection_ids = derived.places_of(connection, image_ids)
    if inspection_ids:
        derived.refresh_version(connection, version, (), inspection_ids, now)


def _publish(connection: Connection, version: Version, now: datetime) -> None:
    """Publish a version's results; what it found and completed before it ever was champion is notified now."""
    spoke = sa.select(model_version.c.promoted_at).where(model_version.c.id == version.id)
    first = connection.execute(spoke).scalar_one() is None
    connection.execute(sa.update(model_version).where(model_version.c.id == version.id).values(promoted_at=now))
    if not first:
        return
    other = hit.alias()
    promoted = sa.and_(WAS_CHAMPION, model_version.c.id != version.id)
    by_former = sa.exists().where(
        other.c.drop_id == hit.c.drop_id,
        other.c.ended_at.is_(None),
        other.c.model_version_id == model_version.c.id,
        promoted,
    )
    # At that inspection: a drop that was known before may have crystals in an image that is new.
    former_looked = sa.exists().where(
        image.c.drop_id == hit.c.drop_id,
        image.c.inspection_id == hit.c.inspection_id,
        OF_PRESENT_BYTES,
        score.c.model_version_id == model_version.c.id,
        promoted,
    )
    cause = sa.case((by_former, "confirmed"), (former_looked, "model"), else_="new")
    stands = hit.c.ended_at.is_(None)
    published = sa.update(hit).where(hit.c.model_version_id == version.id, stands).values(found_at=now, cause=cause)
    rows = connection.execute(published.returning(hit.c.id, hit.c.cause)).all()
    events.hits_found(connection, [row.id for row in rows if row.cause == "new"], now)
    events.completed_in_silence(connection, version.id, now)


def _plates_to_do(connection: Connection, former: Version, version: Version) -> list[int]:
    """List the plates that the next champion scores whole: with new images, or incomplete for either version."""
    open_rows = (
        sa.select(inspection.c.plate_id)
        .join(inspection_summary, inspection_summary.c.inspection_id == inspection.c.id)
        .where(
            inspection_summary.c.model_version_id.in_([former.id, version.id]), sa.not_(inspection_summary.c.complete)
        )
    )
    waiting = (
        sa.select(inspection.c.plate_id)
        .join(image, image.c.inspection_id == inspection.c.id)
        .join(job, job.c.image_id == image.c.id)
        .where(
            job.c.model_version_id.in_([former.id, version.id]),
            job.c.priority == queue.NEW,
            image.c.modality == version.modality,
        )
    )
    return sorted(connection.execute(sa.union(open_rows, waiting)).scalars())


def _set_alias(connection: Connection, alias: str, version_id: int, now: datetime) -> None:
    values = {"model_version_id": version_id, "set_at": now}
    statement = insert(connection, model_alias).values(alias=alias, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["alias"], set_=values))


def _drop_alias(connection: Connection, version_id: int, alias: str) -> None:
    """Take an alias from a version, if it has it."""
    connection.execute(
        sa.delete(model_alias).where(model_alias.c.alias == alias, model_alias.c.model_version_id == version_id)
    )

"""Model versions and their aliases. The database says which version is champion; a folder only says what exists.

The champion scores new images and answers in the current views. The challenger scores the same images behind them,
and nobody but who asks for it by name sees its scores. The previous version is the one a rollback goes back to.
Every change of an alias begins by locking the champion's row, which whoever records images locks too, so that an
image is queued for those who serve when it is recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import TrainedOn
from marcod.errors import BundleError, NotFoundError, StoreError
from marcod.store import offers, queue
from marcod.store.engine import insert
from marcod.store.schema import (
    audit,
    drift_alarm,
    drift_day,
    drift_reference,
    drop_summary,
    hit,
    inspection,
    inspection_summary,
    job,
    model_alias,
    model_version,
    review_item,
    review_round,
    score,
)

ALIAS_LOCK: Final = 0x6D61_7263_6F65
"""PostgreSQL advisory lock of whoever changes an alias; migrations hold the number before it."""

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
ALIASES: Final = (CHAMPION, CHALLENGER, PREVIOUS)

RENDERED_ALONE: Final = "trained on rendered drops alone: for trying the program, not for deciding about crystals"
"""The limit of every version whose ``synthetic`` is true."""

REAL_MODEL: Final = (
    "`marcod model fetch marco` brings the published MARCO, `marcod rescore --all` scores again with it what is there"
)
SYNTHETIC_NOTICE: Final = f"Scored by a model {RENDERED_ALONE}. {REAL_MODEL}."
"""Shown with every score of such a version."""


@dataclass(frozen=True, slots=True)
class Version:
    """A model version as the database knows it; ``digest`` names its exact weights and preprocessing.

    ``trained_on`` lists what its weights learned from, and ``synthetic`` is true for rendered drops alone.
    """

    id: int
    name: str
    version: str
    digest: str
    modality: str
    crystal_threshold: float
    synthetic: bool
    trained_on: tuple[TrainedOn, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Registered:
    """A version and what became of it. ``promoted_at`` is when it last became champion, None if it never was.

    A version that was removed has lost its bundle and keeps its scores.
    """

    version: Version
    aliases: tuple[str, ...]
    registered_at: datetime
    promoted_at: datetime | None
    removed_at: datetime | None
    has_scores: bool


@dataclass(frozen=True, slots=True)
class Note:
    """One audit row."""

    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any] | None


def register(
    connection: Connection,
    *,
    name: str,
    version: str,
    digest: str,
    modality: str,
    crystal_threshold: float,
    synthetic: bool,
    now: datetime,
    trained_on: Sequence[TrainedOn] = (),
) -> Version:
    """The row of a bundle, made if new; a version that was removed is back. Raises BundleError for other weights.

    What the bundle says of its training replaces what a schema upgrade could only guess.
    """
    told = ",".join(trained_on) or None
    values = {
        "name": name,
        "version": version,
        "digest": digest,
        "modality": modality,
        "crystal_threshold": crystal_threshold,
        "synthetic": synthetic,
        "trained_on": told,
    }
    statement = insert(connection, model_version).values(**values, registered_at=now)
    connection.execute(statement.on_conflict_do_nothing())
    found = find(connection, name, version)
    if found.digest != digest:
        raise BundleError(
            f"bundle {found} differs from the one that scored under this name; bundles never change, "
            "so give the new one another version"
        )
    removed = sa.and_(model_version.c.id == found.id, model_version.c.removed_at.is_not(None))
    connection.execute(sa.update(model_version).where(removed).values(removed_at=None))
    if told is None or (found.synthetic, found.trained_on) == (synthetic, tuple(trained_on)):
        return found
    same = model_version.c.id == found.id
    connection.execute(sa.update(model_version).where(same).values(synthetic=synthetic, trained_on=told))
    return get(connection, found.id)


def find(connection: Connection, name: str, version: str) -> Version:
    """A registered version by name, also one that was removed. Raises NotFoundError."""
    row = connection.execute(
        sa.select(*_COLUMNS).where(model_version.c.name == name, model_version.c.version == version)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"model {name}:{version} is not registered; {offers.models(connection, f'{name}:{version}')}"
        )
    return _version(row)


def get(connection: Connection, version_id: int) -> Version:
    """A registered version by id. Raises NotFoundError when it was removed meanwhile."""
    row = connection.execute(sa.select(*_COLUMNS).where(model_version.c.id == version_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"the model version with id {version_id} was removed")
    return _version(row)


def _version(row: Sequence[Any]) -> Version:
    *facts, trained_on = row
    facts.append(tuple(map(TrainedOn, trained_on.split(","))) if trained_on else ())
    return Version(*facts)


def listed(connection: Connection) -> list[Registered]:
    """Every registered version, by name and age."""
    aliases: dict[int, list[str]] = {}
    for alias, version_id in connection.execute(
        sa.select(model_alias.c.alias, model_alias.c.model_version_id).order_by(model_alias.c.alias)
    ):
        aliases.setdefault(version_id, []).append(alias)
    columns = (*_COLUMNS, model_version.c.registered_at, model_version.c.promoted_at, model_version.c.removed_at)
    # Whether, not how many: counting millions of scores would make a list slow.
    has_scores = sa.exists().where(score.c.model_version_id == model_version.c.id)
    rows = connection.execute(sa.select(*columns, has_scores).order_by(model_version.c.name, model_version.c.id))
    return [
        Registered(_version(row[: len(_COLUMNS)]), tuple(aliases.get(row[0], ())), *row[len(_COLUMNS) :])
        for row in rows
    ]


def history(connection: Connection, name: str) -> list[Note]:
    """What was done with the version ``NAME:VERSION``, the latest first."""
    columns = (audit.c.at, audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail)
    about = sa.or_(audit.c.subject == name, audit.c.detail["from"].as_string() == name)
    rows = connection.execute(sa.select(*columns).where(about).order_by(audit.c.id.desc()))
    return [Note(*row) for row in rows]


def champion(connection: Connection, *, lock: bool = False) -> Version:
    """The version that scores new images.

    With ``lock`` a promotion waits until this transaction ends, so that no image is queued for the loser.
    """
    alias = sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == CHAMPION)
    # Locked alone, then looked up: a join would hold the version of before the promotion it waited for, and lose it.
    version_id = connection.execute(alias.with_for_update(read=True) if lock else alias).scalar_one_or_none()
    if version_id is None:
        raise StoreError(
            "no model is champion yet; the first `marcod scan` or `marcod run` makes the shipped one champion, and"
            " `marcod model promote NAME:VERSION` any other"
        )
    return get(connection, version_id)


def aliased(connection: Connection, alias: str) -> Version | None:
    """The version that has this alias; after :func:`champion` with ``lock`` it stays so for the transaction."""
    version_id = connection.execute(
        sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == alias)
    ).scalar_one_or_none()
    return None if version_id is None else get(connection, version_id)


def has_champion(connection: Connection) -> bool:
    """Whether a champion was ever chosen."""
    return connection.execute(sa.select(sa.exists().where(model_alias.c.alias == CHAMPION))).scalar_one()


def promote(
    connection: Connection, version: Version, *, actor: str, now: datetime, instead_of: str | None = None
) -> Version | None:
    """Make a version champion in one transaction. Returns the former one. Raises NotFoundError if it was removed.

    With ``instead_of`` only in the place of that version; raises StoreError when another one is champion meanwhile.

    Waiting jobs of new images move to it, and plates that are still arriving are queued for it whole. A challenger
    that is promoted is challenger no more.
    """
    former = _lock_aliases(connection)
    if former is not None and former.id == version.id:
        return former
    if instead_of is not None and str(former) != instead_of:
        raise StoreError(f"{former} became champion meanwhile, instead of {instead_of}")
    _crown(connection, former, version, now)
    if former is not None:
        _set_alias(connection, PREVIOUS, former.id, now)
    note(connection, actor, "promote", str(version), {"from": str(former) if former else None}, now)
    return former


def previous(connection: Connection) -> Version:
    """The version a rollback goes back to. Raises StoreError when there is none."""
    found = aliased(connection, PREVIOUS)
    if found is None:
        raise StoreError(
            "there is no previous champion to go back to; `marcod model promote NAME:VERSION` makes any one champion"
        )
    return found


def rollback(connection: Connection, version: Version, *, actor: str, now: datetime) -> Version:
    """Make the previous version champion again, in one transaction, as :func:`promote` does. Returns the former one.

    ``version`` is what :func:`previous` said; raises StoreError when that is not so any more. Afterwards there is no
    previous version, because the one that was rolled back is not one to go back to.
    """
    former = _lock_aliases(connection)
    if former is None or previous(connection).id != version.id:
        raise StoreError(f"{version} is not the previous champion any more; somebody promoted another meanwhile")
    _drop_alias(connection, version.id, PREVIOUS)
    promoted = sa.select(model_version.c.promoted_at).where(model_version.c.id == former.id)
    since = connection.execute(promoted).scalar_one()
    _crown(connection, former, version, now)
    # What only the one that was rolled back has seen, or it would go on speaking of it.
    queue.enqueue_rescore(connection, version.id, now, since=since)
    note(connection, actor, "rollback", str(version), {"from": str(former), "to": str(version)}, now)
    return former


def challenge(connection: Connection, version: Version | None, *, actor: str, now: datetime) -> Version | None:
    """Let a version score every new image beside the champion, or with None nobody any more. Returns the former one.

    What was queued behind new images for the former challenger while it was one, and nobody holds, is withdrawn; a
    rescore with it too. Raises StoreError when the version is champion, NotFoundError when it was removed.
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
        _hold(connection, version)
        _set_alias(connection, CHALLENGER, version.id, now)
    left = str(former) if former else None
    note(connection, actor, "challenge", str(version or "none"), {"from": left, "withdrawn": withdrawn}, now)
    return former


def _dismiss(connection: Connection, challenger: Version) -> int:
    """Take the alias and the waiting work from a challenger. Returns how many jobs that were."""
    since = connection.execute(sa.select(model_alias.c.set_at).where(model_alias.c.alias == CHALLENGER)).scalar_one()
    _drop_alias(connection, challenger.id, CHALLENGER)
    return queue.withdraw_again(connection, challenger.id, since)


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
    jobs = connection.execute(sa.delete(job).where(job.c.model_version_id == version.id)).rowcount
    if scored or reviewed:
        connection.execute(sa.update(model_version).where(held).values(removed_at=now))
    else:
        for table in (hit, inspection_summary, drop_summary, drift_alarm, drift_day, drift_reference):
            connection.execute(sa.delete(table).where(table.c.model_version_id == version.id))
        connection.execute(sa.delete(model_version).where(held))
    detail = {"digest": version.digest, "scores_kept": scored, "withdrawn": jobs}
    note(connection, actor, "remove", str(version), detail, now)
    return scored or reviewed


def _has(connection: Connection, version: Version, *tables: sa.Table) -> bool:
    """Whether a table has rows of a version."""
    rows = (sa.exists().where(table.c.model_version_id == version.id) for table in tables)
    return bool(connection.execute(sa.select(sa.or_(*rows))).scalar_one())


def _refuse_in_service(connection: Connection, version: Version) -> None:
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


def _crown(connection: Connection, former: Version | None, version: Version, now: datetime) -> None:
    """Make a version champion and give it the work that waits for the former one."""
    _hold(connection, version)
    _drop_alias(connection, version.id, CHALLENGER)
    _publish_hits(connection, version, now)
    _set_alias(connection, CHAMPION, version.id, now)
    connection.execute(sa.update(model_version).where(model_version.c.id == version.id).values(promoted_at=now))
    if former is not None:
        queue.move_new(connection, former.id, version.id, now)
        queue.enqueue_rescore(connection, version.id, now, _plates_still_arriving(connection, former.id, version.id))


def _publish_hits(connection: Connection, version: Version, now: datetime) -> None:
    """Hits that a version found before it ever was champion are news from now on, to whoever asks for new ones."""
    other = hit.alias()
    promoted = model_version.c.promoted_at.is_not(None)
    by_former = sa.exists().where(
        other.c.drop_id == hit.c.drop_id, other.c.model_version_id == model_version.c.id, promoted
    )
    former_looked = sa.exists().where(
        drop_summary.c.drop_id == hit.c.drop_id, drop_summary.c.model_version_id == model_version.c.id, promoted
    )
    cause = sa.case((by_former, "confirmed"), (former_looked, "model"), else_="new")
    never = sa.exists().where(model_version.c.id == version.id, model_version.c.promoted_at.is_(None))
    connection.execute(
        sa.update(hit).where(hit.c.model_version_id == version.id, never).values(found_at=now, cause=cause)
    )


def _hold(connection: Connection, version: Version) -> None:
    """Keep a version from being removed until this transaction ends. Raises NotFoundError when it was removed."""
    there = sa.select(model_version.c.id).where(model_version.c.id == version.id, model_version.c.removed_at.is_(None))
    if connection.execute(there.with_for_update(read=True)).one_or_none() is None:
        raise NotFoundError(f"{version} was removed meanwhile")


def _plates_still_arriving(connection: Connection, *version_ids: int) -> list[int]:
    """Plates of which a version did part: the next champion does all of them, or none would complete them."""
    rows = connection.execute(
        sa.select(inspection.c.plate_id)
        .join(inspection_summary, inspection_summary.c.inspection_id == inspection.c.id)
        .where(inspection_summary.c.model_version_id.in_(version_ids), sa.not_(inspection_summary.c.complete))
        .distinct()
    )
    return [int(row[0]) for row in rows]


def _set_alias(connection: Connection, alias: str, version_id: int, now: datetime) -> None:
    values = {"model_version_id": version_id, "set_at": now}
    statement = insert(connection, model_alias).values(alias=alias, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["alias"], set_=values))


def _drop_alias(connection: Connection, version_id: int, alias: str) -> None:
    """Take an alias from a version, if it has it."""
    connection.execute(
        sa.delete(model_alias).where(model_alias.c.alias == alias, model_alias.c.model_version_id == version_id)
    )


def note(
    connection: Connection, actor: str, action: str, subject: str, detail: dict[str, object], now: datetime
) -> None:
    """Write one audit row."""
    values = {"at": now, "actor": actor, "action": action, "subject": subject, "detail": detail}
    connection.execute(sa.insert(audit).values(values))


_COLUMNS: Final = (
    model_version.c.id,
    model_version.c.name,
    model_version.c.version,
    model_version.c.digest,
    model_version.c.modality,
    model_version.c.crystal_threshold,
    model_version.c.synthetic,
    model_version.c.trained_on,
)

"""Model versions and their aliases. The database says which version is champion; a folder only says what exists."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.errors import BundleError, NotFoundError, StoreError
from marcod.store import queue
from marcod.store.engine import insert
from marcod.store.schema import audit, inspection, inspection_summary, model_alias, model_version

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"


@dataclass(frozen=True, slots=True)
class Version:
    """A model version as the database knows it; ``digest`` names its exact weights and preprocessing."""

    id: int
    name: str
    version: str
    digest: str
    modality: str
    crystal_threshold: float
    synthetic: bool

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


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
) -> Version:
    """The row of a bundle, made if new. Raises BundleError when the name is taken by other weights."""
    values = {
        "name": name,
        "version": version,
        "digest": digest,
        "modality": modality,
        "crystal_threshold": crystal_threshold,
        "synthetic": synthetic,
    }
    statement = insert(connection, model_version).values(**values, registered_at=now)
    connection.execute(statement.on_conflict_do_nothing())
    found = find(connection, name, version)
    if found.digest != digest:
        raise BundleError(
            f"bundle {found} differs from the one that scored under this name; bundles never change, "
            "so give the new one another version"
        )
    return found


def find(connection: Connection, name: str, version: str) -> Version:
    """A registered version by name. Raises NotFoundError."""
    row = connection.execute(
        sa.select(*_COLUMNS).where(model_version.c.name == name, model_version.c.version == version)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"model {name}:{version} is not registered; `marcod model list` shows what is")
    return Version(*row)


def get(connection: Connection, version_id: int) -> Version:
    """A registered version by id."""
    row = connection.execute(sa.select(*_COLUMNS).where(model_version.c.id == version_id)).one()
    return Version(*row)


def listed(connection: Connection) -> list[tuple[Version, tuple[str, ...]]]:
    """Every registered version with its aliases."""
    aliases: dict[int, list[str]] = {}
    for alias, version_id in connection.execute(
        sa.select(model_alias.c.alias, model_alias.c.model_version_id).order_by(model_alias.c.alias)
    ):
        aliases.setdefault(version_id, []).append(alias)
    rows = connection.execute(sa.select(*_COLUMNS).order_by(model_version.c.name, model_version.c.id))
    return [(Version(*row), tuple(aliases.get(row[0], ()))) for row in rows]


def champion(connection: Connection, *, lock: bool = False) -> Version:
    """The version that scores new images.

    With ``lock`` a promotion waits until this transaction ends, so that no image is queued for the loser.
    """
    alias = sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == CHAMPION)
    # Locked alone, then looked up: a join would hold the version of before the promotion it waited for, and lose it.
    version_id = connection.execute(alias.with_for_update(read=True) if lock else alias).scalar_one_or_none()
    if version_id is None:
        raise StoreError("no model is champion yet; `marcod model promote NAME:VERSION` makes one")
    return get(connection, version_id)


def has_champion(connection: Connection) -> bool:
    """Whether a champion was ever chosen."""
    return connection.execute(sa.select(sa.exists().where(model_alias.c.alias == CHAMPION))).scalar_one()


def promote(connection: Connection, version: Version, *, actor: str, now: datetime) -> Version | None:
    """Make a version champion in one transaction. Returns the former one.

    Waiting jobs of new images move to it, and plates that are still arriving are queued for it whole.
    """
    row = connection.execute(
        sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == CHAMPION).with_for_update()
    ).one_or_none()
    former = get(connection, row[0]) if row else None
    if former is not None and former.id == version.id:
        return former
    _set_alias(connection, CHAMPION, version.id, now)
    connection.execute(sa.update(model_version).where(model_version.c.id == version.id).values(promoted_at=now))
    if former is not None:
        _set_alias(connection, PREVIOUS, former.id, now)
        queue.move_new(connection, former.id, version.id, now)
        queue.enqueue_rescore(connection, version.id, now, _plates_still_arriving(connection, former.id, version.id))
    note(connection, actor, "promote", str(version), {"from": str(former) if former else None}, now)
    return former


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
)

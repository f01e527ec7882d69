"""Model versions and their aliases. The database says which version is champion; a folder only says what exists.

The champion scores new images and answers in the current views. The challenger scores the same images behind them,
and nobody but who asks for it by name sees its scores. The previous version is the one a rollback goes back to.
A version speaks once it was champion. Until then it is silent: it has scores and no derived rows, which are worked out
while it becomes champion (``promotions``).
Every change of an alias begins by locking the champion's row, as recording images does, so that an
image is queued for those who serve when it is recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import model_alias, model_version, promotion, score
from marcod.domain import TrainedOn
from marcod.errors import BundleError, NotFoundError, StoreError
from marcod.store import known_names

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
ALIASES: Final = (CHAMPION, CHALLENGER, PREVIOUS)

JUDGED: Final = "finds 61 of 64 crystals on photographs and flags 14 of 120 other drops there"
"""Record of the model that comes with marcod, on photographs of sources that it was not trained on."""

RENDERED_ALONE: Final = (
    f"trained on rendered drops alone. The one that comes with marcod {JUDGED}; it replaces neither MARCO nor a "
    "calibration on the lab's own labels"
)
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
    """Register a bundle; a version that was removed is back. Raises BundleError for other weights.

    What the bundle says of its training replaces what a schema upgrade could only guess.
    """
    learned_from = ",".join(trained_on) or None
    values = {
        "name": name,
        "version": version,
        "digest": digest,
        "modality": modality,
        "crystal_threshold": crystal_threshold,
        "synthetic": synthetic,
        "trained_on": learned_from,
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
    if learned_from is None or (found.synthetic, found.trained_on) == (synthetic, tuple(trained_on)):
        return found
    same = model_version.c.id == found.id
    connection.execute(sa.update(model_version).where(same).values(synthetic=synthetic, trained_on=learned_from))
    return get(connection, found.id)


def find(connection: Connection, name: str, version: str) -> Version:
    """Look up a registered version by name, also one that was removed. Raises NotFoundError."""
    row = connection.execute(
        sa.select(*_COLUMNS).where(model_version.c.name == name, model_version.c.version == version)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"model {name}:{version} is not registered; {known_names.models(connection, f'{name}:{version}')}"
        )
    return _version(row)


def get(connection: Connection, version_id: int) -> Version:
    """Look up a registered version by id. Raises NotFoundError when it was removed meanwhile."""
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


def champion(connection: Connection, *, lock: bool = False) -> Version:
    """Look up the version that scores new images.

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
    """Look up the version of this alias; after :func:`champion` with ``lock`` it stays for the transaction."""
    its = sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == alias)
    version_id = connection.execute(its).scalar_one_or_none()
    return None if version_id is None else get(connection, version_id)


def coming(connection: Connection) -> Version | None:
    """Look up the version that becomes champion; after :func:`champion` with ``lock`` it stays for the transaction."""
    version_id = connection.execute(sa.select(promotion.c.model_version_id)).scalar_one_or_none()
    return None if version_id is None else get(connection, version_id)


def scoring(connection: Connection) -> list[Version]:
    """List the versions that score new images: the champion, then the challenger and the one that becomes champion."""
    found = [champion(connection), aliased(connection, CHALLENGER), coming(connection)]
    return list(dict.fromkeys(version for version in found if version is not None))


def speaks(connection: Connection, version: Version) -> bool:
    """Tell if a version is or was champion, so that all of its derived rows are there."""
    its = model_version.c.id == version.id
    return connection.execute(sa.select(model_version.c.promoted_at).where(its)).scalar_one_or_none() is not None


def with_rows(connection: Connection) -> set[int]:
    """List the versions whose derived rows follow what they score: those that speak, and the one that is about to."""
    speaking = sa.select(model_version.c.id).where(model_version.c.promoted_at.is_not(None))
    return set(connection.execute(speaking.union(sa.select(promotion.c.model_version_id))).scalars())


def lock_version(connection: Connection, version_id: int, name: object = "the model version") -> None:
    """Keep a version from being removed until this transaction ends. Raises NotFoundError when it was removed."""
    there = sa.select(model_version.c.id).where(model_version.c.id == version_id, model_version.c.removed_at.is_(None))
    if connection.execute(there.with_for_update(read=True)).one_or_none() is None:
        raise NotFoundError(f"{name} was removed meanwhile")


def keep(connection: Connection, version_id: int) -> bool:
    """Keep a version from being removed, and nothing else, until this transaction ends. False when it was removed."""
    there = sa.select(model_version.c.id).where(model_version.c.id == version_id, model_version.c.removed_at.is_(None))
    return connection.execute(there.with_for_update(read=True, key_share=True)).one_or_none() is not None


def has_champion(connection: Connection) -> bool:
    """Tell if a champion was ever chosen."""
    return connection.execute(sa.select(sa.exists().where(model_alias.c.alias == CHAMPION))).scalar_one()


def previous(connection: Connection) -> Version:
    """Look up the version a rollback goes back to. Raises StoreError when there is none."""
    found = aliased(connection, PREVIOUS)
    if found is None:
        raise StoreError(
            "there is no previous champion to go back to; `marcod model promote NAME:VERSION` makes any one champion"
        )
    return found


_COLUMNS: Final = tuple(
    model_version.c[name]
    for name in ("id", "name", "version", "digest", "modality", "crystal_threshold", "synthetic", "trained_on")
)

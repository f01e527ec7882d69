"""Writing what a batch gave: scores, finished jobs, summaries and hits in one transaction or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import CLASSES, DropClass
from marcod.store import announce, drops, queue, summaries
from marcod.store.engine import insert
from marcod.store.schema import image, score
from marcod.store.versions import Version

COLUMN_OF_CLASS: Final = {
    DropClass.CLEAR: "p_clear",
    DropClass.CRYSTALS: "p_crystals",
    DropClass.OTHER: "p_other",
    DropClass.PRECIPITATE: "p_precipitate",
}


CLASS_NAMES: Final = tuple(str(c) for c in CLASSES)


@dataclass(frozen=True, slots=True)
class Scored:
    """One image's result. ``probabilities`` are in the order of ``domain.CLASSES``.

    ``vector`` is the full output of a model with other classes, by their names, else None. ``brightness``, ``contrast``
    and ``focus`` are as in ``images.Appearance``.
    """

    claim: queue.Claim
    content_hash: str
    probabilities: tuple[float, float, float, float]
    vector: dict[str, float] | None = None
    brightness: float | None = None
    contrast: float | None = None
    focus: float | None = None

    @property
    def label(self) -> DropClass:
        """The most probable class."""
        return CLASSES[max(range(len(CLASSES)), key=self.probabilities.__getitem__)]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a call of :func:`finish` did; ``stale`` jobs were no longer held and changed nothing.

    ``held`` are the jobs that were, ``given_up`` those of them that were quarantined.
    """

    scored: int
    failed: int
    quarantined: int
    stale: int
    held: frozenset[int] = frozenset()
    given_up: frozenset[int] = frozenset()


def finish(
    connection: Connection,
    token: str,
    version: Version,
    scored: Sequence[Scored],
    failures: Sequence[queue.Failure],
    *,
    now: datetime,
    retry_s: float,
    max_attempts: int,
) -> Finished:
    """Write a batch: scores inserted, jobs removed or sent back, summaries and hits brought up to date."""
    claims = [s.claim for s in scored] + [f.claim for f in failures]
    held = queue.owned(connection, token, (c.job_id for c in claims))
    mine = [s for s in scored if s.claim.job_id in held]
    broken = [f for f in failures if f.claim.job_id in held]
    summaries.lock(connection, {c.inspection_id for c in claims})
    _insert_scores(connection, version, mine, now)
    queue.delete(connection, [s.claim.job_id for s in mine])
    given_up = [
        f for f in broken if queue.fail(connection, token, f, now=now, retry_s=retry_s, max_attempts=max_attempts)
    ]
    announce.quarantined(connection, [f.claim.image_id for f in given_up], now)
    # An old score does not speak for a file whose present content could not be scored.
    _set_content(connection, [(f.claim.image_id, f.content_hash) for f in given_up if f.content_hash is not None])
    touched = {s.claim.inspection_id for s in mine} | {f.claim.inspection_id for f in broken}
    new_hits = drops.refresh(connection, _drops_of(connection, mine, given_up), version, now)
    summaries.refresh(connection, touched, version, now, new_hits)
    gone = frozenset(f.claim.job_id for f in given_up)
    stale = len(claims) - len(mine) - len(broken)
    return Finished(len(mine), len(broken), len(given_up), stale, frozenset(held), gone)


def _drops_of(connection: Connection, scored: list[Scored], given_up: list[queue.Failure]) -> list[int]:
    """The drops whose verdict may be another now."""
    images = [s.claim.image_id for s in scored] + [f.claim.image_id for f in given_up]
    found = connection.execute(sa.select(image.c.drop_id).where(image.c.id.in_(images)).distinct())
    return [int(row[0]) for row in found]


def _insert_scores(connection: Connection, version: Version, scored: list[Scored], now: datetime) -> None:
    if not scored:
        return
    rows = [
        {
            "image_id": s.claim.image_id,
            "model_version_id": version.id,
            "content_hash": s.content_hash,
            "label": str(s.label),
            "vector": s.vector,
            "scored_at": now,
            "brightness": s.brightness,
            "contrast": s.contrast,
            "focus": s.focus,
            **{COLUMN_OF_CLASS[c]: p for c, p in zip(CLASSES, s.probabilities, strict=True)},
        }
        for s in scored
    ]
    connection.execute(insert(connection, score).on_conflict_do_nothing(), rows)
    _set_content(connection, [(s.claim.image_id, s.content_hash) for s in scored])


def _set_content(connection: Connection, hashes: list[tuple[int, str]]) -> None:
    """Say which bytes these images consist of now."""
    if not hashes:
        return
    statement = sa.update(image).where(image.c.id == sa.bindparam("image_key"))
    connection.execute(
        statement.values(content_hash=sa.bindparam("new_hash")),
        [{"image_key": image_id, "new_hash": content_hash} for image_id, content_hash in hashes],
    )

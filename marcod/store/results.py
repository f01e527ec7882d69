"""Results of scoring: scores, finished and failed jobs and all that follows, in one transaction or not at all."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.rows import CHUNK, select_in
from marcod.database.schema import image, job, model_version, score
from marcod.domain import CLASSES, COLUMN_OF_CLASS, PIXEL_WARNINGS, DropClass, WarningKind
from marcod.store import copies, derived, events, locks, queue, ranges, versions
from marcod.store.ranges import RangeLease
from marcod.store.selects import OF_PRESENT_BYTES, WAS_CHAMPION
from marcod.store.versions import Version

CLASS_NAMES: Final = tuple(str(c) for c in CLASSES)


@dataclass(frozen=True, slots=True)
class Scored:
    """One image's result. ``probabilities`` are in the order of ``domain.CLASSES``.

    ``vector`` is the full output of a model with other classes, by their names, else None. ``brightness``, ``contrast``
    and ``focus`` are as in ``images.Appearance``. ``warnings`` are what the bytes alone tell. ``engine`` names
    what calculated the score; None in scores from before this field.
    """

    claim: queue.Claim
    content_hash: str
    probabilities: tuple[float, float, float, float]
    vector: dict[str, float] | None = None
    brightness: float | None = None
    contrast: float | None = None
    focus: float | None = None
    warnings: tuple[WarningKind, ...] = ()
    engine: str | None = None

    @property
    def label(self) -> DropClass:
        """The most probable class."""
        return CLASSES[max(range(len(CLASSES)), key=self.probabilities.__getitem__)]


@dataclass(frozen=True, slots=True)
class StoredScore:
    """Score in the database: the four probabilities in the order of ``domain.CLASSES``.

    ``measured`` are brightness, contrast and focus, as in ``images.Appearance``.
    """

    probabilities: tuple[float, float, float, float]
    measured: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """Result of :func:`finish` and :func:`finish_range`; ``stale`` images were no longer held and changed nothing.

    ``held`` are the images that were, ``given_up`` those of them that were quarantined.
    """

    scored: int
    failed: int
    quarantined: int
    stale: int
    held: frozenset[int] = frozenset()
    given_up: frozenset[int] = frozenset()


def stored(
    connection: Connection, version_ids: Sequence[int], image_ids: Collection[int]
) -> dict[int, dict[tuple[int, str], StoredScore]]:
    """Read the scores of images by some versions: by image, then by index in ``version_ids`` and content hash.

    A score without the looks of its image, from before they were measured, is left out.
    """
    index = {version_id: i for i, version_id in enumerate(version_ids)}
    found: dict[int, dict[tuple[int, str], StoredScore]] = {}
    wanted = sa.select(*_STORED).where(score.c.model_version_id.in_(version_ids), score.c.focus.is_not(None))
    for row in select_in(connection, wanted, score.c.image_id, sorted(image_ids)):
        image_id, version_id, content_hash, *values = row
        one = StoredScore((values[0], values[1], values[2], values[3]), (values[4], values[5], values[6]))
        found.setdefault(image_id, {})[index[version_id], content_hash] = one
    return found


_STORED: Final = (
    score.c.image_id, score.c.model_version_id, score.c.content_hash,
    *(score.c[COLUMN_OF_CLASS[c]] for c in CLASSES), score.c.brightness, score.c.contrast, score.c.focus,
)  # fmt: skip


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
    by_members: Sequence[tuple[Version, Sequence[Scored]]] = (),
) -> Finished:
    """Write a batch: scores inserted, jobs removed or sent back, and every derived row brought up to date.

    ``by_members`` are scores that a committee's members gave these images on the way. They are scores like any other,
    and jobs that wait for them are done.
    """
    claims = [s.claim for s in scored] + [f.claim for f in failures]
    before = _hold_images(connection, [c.image_id for c in claims])
    jobs = queue.lock_held(connection, token, (c.job_id for c in claims))
    held = {c.image_id for c in claims if c.job_id in jobs}
    mine = [s for s in scored if s.claim.image_id in held]
    broken = [f for f in failures if f.claim.image_id in held]
    kept = [(member, [s for s in its if s.claim.image_id in held]) for member, its in by_members]
    given_up = _settle(
        connection, token, version, mine, broken, kept, before, now=now, retry_s=retry_s, max_attempts=max_attempts
    )
    return Finished(len(mine), len(broken), len(given_up), len(claims) - len(held), frozenset(held), given_up)


def finish_range(
    connection: Connection,
    lease: RangeLease,
    version: Version,
    scored: Sequence[Scored],
    failures: Sequence[queue.Failure],
    *,
    now: datetime,
    retry_s: float,
    max_attempts: int,
    by_members: Sequence[tuple[Version, Sequence[Scored]]] = (),
    keeps: bool = False,
) -> Finished:
    """Write images of a campaign as :func:`finish` does those of jobs, and move the mark of their range behind them.

    What failed becomes a job that is tried again, and what changed or went since the claim one that waits. Where images
    wait for no fault of theirs the mark stays before the first of them, and the range waits. A worker that
    ``keeps`` the range has more images of its lease to come.
    """
    done_ids = {s.claim.image_id for s in scored} | {f.claim.image_id for f in failures}
    claims = [c for c in lease.claims if c.image_id in done_ids]
    kept = versions.keep(connection, version.id)
    before = _hold_images(connection, sorted(done_ids))
    if not kept or not ranges.hold(connection, lease):
        return Finished(0, 0, 0, len(claims))
    held = {c.image_id for c in claims if ranges.is_as_claimed(c, before.get(c.image_id), version)}
    if lost := done_ids - held:
        queue.enqueue_rescore(connection, version.id, now, image_ids=sorted(lost))
    put_off = [f for f in failures if not f.counts and f.claim.image_id in held]
    counted = [f for f in failures if f.counts and f.claim.image_id in held]
    broken = queue.adopt(connection, lease.token, version.id, counted, now)
    mine = [s for s in scored if s.claim.image_id in held]
    queue.delete_waiting(connection, version.id, [s.claim.image_id for s in mine])
    of_members = [(member, [s for s in its if s.claim.image_id in held]) for member, its in by_members]
    given_up = _settle(
        connection, lease.token, version, mine, broken, of_members, before,
        now=now, retry_s=retry_s, max_attempts=max_attempts,
    )  # fmt: skip
    waiting = {f.claim.image_id for f in put_off}
    passed = list(takewhile(lambda c: c.image_id not in waiting, claims))
    held_up = ranges.PutOff(put_off[0].error, retry_s) if put_off else None
    ranges.advance(connection, lease, passed, len(mine), now, held_up, keeps=keeps)
    stale = len(claims) - len(held)
    return Finished(len(mine), len(counted) + len(put_off), len(given_up), stale, frozenset(held), given_up)


def _settle(
    connection: Connection,
    token: str,
    version: Version,
    mine: list[Scored],
    broken: list[queue.Failure],
    by_members: Sequence[tuple[Version, list[Scored]]],
    before: Mapping[int, Any],
    *,
    now: datetime,
    retry_s: float,
    max_attempts: int,
) -> frozenset[int]:
    """Write what is held: scores, jobs and derived rows. Returns the images that are given up."""
    # An image may have moved to another inspection since it was claimed, so its row is asked and not the claim.
    touched = [before[c.image_id] for c in (*(s.claim for s in mine), *(f.claim for f in broken))]
    inspection_ids = {row.inspection_id for row in touched}
    # Scores may make copies of images and so remove jobs: all of that before the derived rows lock inspections.
    for member, its in by_members:
        _insert(connection, member, its, now)
        queue.delete_waiting(connection, member.id, [s.claim.image_id for s in its])
    changed = _insert_scores(connection, version, mine, before, now)
    _note_warnings(connection, mine, before)
    queue.delete(connection, [s.claim.job_id for s in mine if s.claim.job_id])
    given_up = [
        f for f in broken if queue.fail(connection, token, f, now=now, retry_s=retry_s, max_attempts=max_attempts)
    ]
    events.quarantined(connection, [f.claim.image_id for f in given_up if f.error != queue.GONE], now)
    changed |= give_up(connection, given_up, before, now)
    drop_ids = {before[c.image_id].drop_id for c in (*(s.claim for s in mine), *(f.claim for f in given_up))}
    speaking = [version, *(member for member, its in by_members if its)]
    if changed:
        derived.refresh(connection, drop_ids, inspection_ids, now, serving=speaking)
    else:
        derived.refresh_versions(connection, speaking, drop_ids, inspection_ids, now)
    return frozenset(f.claim.image_id for f in given_up)


def _hold_images(connection: Connection, image_ids: Collection[int]) -> dict[int, Any]:
    """Lock these images before their jobs, as a transaction that records a rewritten file does. Returns their rows."""
    columns = (
        image.c.id, image.c.drop_id, image.c.inspection_id, image.c.content_hash, image.c.unread, image.c.gone_at,
        image.c.warnings, image.c.size, image.c.mtime_ns, image.c.same_as_id, image.c.modality,
    )  # fmt: skip
    wanted = sa.select(*columns).order_by(image.c.id).with_for_update(key_share=True)
    return {row.id: row for row in select_in(connection, wanted, image.c.id, sorted(set(image_ids)))}


def give_up(
    connection: Connection, given_up: Sequence[queue.Failure], before: Mapping[int, Any], now: datetime
) -> bool:
    """Say of images that nobody could score what is known of their bytes. Returns whether any version is concerned.

    A score of former bytes does not count for a file whose present bytes could not be scored: where they were read
    their hash is kept, where the file changed unread nothing is known of it. A file that is gone did not change.
    """
    gone = [f.claim.image_id for f in given_up if f.error == queue.GONE]
    read = {f.claim.image_id: f.content_hash for f in given_up if f.content_hash is not None and f.error != queue.GONE}
    unknown = [
        f.claim.image_id
        for f in given_up
        if f.claim.image_id not in read and f.error != queue.GONE and before[f.claim.image_id].unread
    ]
    others = [i for i, found in read.items() if _is_fresh(before[i], found)]
    _set_content(connection, read)
    _forget_bytes(connection, unknown)
    # The file may have changed under an unchanged stat, so nobody said so of its copies when it was recorded.
    copies.release(connection, others, now)
    # Where another image has the same bytes that one goes on counting, for it may have a score.
    copies.find_again(connection, others, ())
    mark_gone(connection, gone, now)
    return bool(gone or unknown or others)


def _forget_bytes(connection: Connection, image_ids: Sequence[int]) -> None:
    """Say that nothing is known of these images' bytes: they changed, and nobody could read them since."""
    if image_ids:
        connection.execute(sa.update(image).where(image.c.id.in_(image_ids)).values(content_hash=None, unread=False))


def mark_gone(connection: Connection, image_ids: Sequence[int], now: datetime) -> None:
    """Say that these images' files are gone for good; the last champion's score of each goes on counting.

    Nobody can score them any more, so their jobs go, those in a worker's hands too.
    """
    if not image_ids:
        return
    marked = sa.update(image).where(image.c.id.in_(list(image_ids)))
    connection.execute(marked.values(gone_at=now, gone_score_id=_LAST_CHAMPIONS, gone_accepted=None))
    connection.execute(sa.delete(job).where(job.c.image_id.in_(list(image_ids))))
    copies.replace_gone(connection, image_ids, now)


def keep_score(connection: Connection, image_ids: Collection[int]) -> None:
    """Let images that are gone and were read in another light keep a score that was given in that light."""
    if image_ids:
        lit = sa.update(image).where(image.c.id.in_(list(image_ids)), image.c.gone_at.is_not(None))
        connection.execute(lit.values(gone_score_id=_LAST_CHAMPIONS))


_LAST_CHAMPIONS: Final = (
    sa.select(score.c.id)
    .join(model_version, model_version.c.id == score.c.model_version_id)
    .where(
        OF_PRESENT_BYTES,
        model_version.c.modality == image.c.modality,
        WAS_CHAMPION,
    )
    .order_by(model_version.c.promoted_at.desc(), score.c.id.desc())
    .limit(1)
    .correlate(image)
    .scalar_subquery()
)
"""The score of an image's present bytes, in its light, by the version that was champion last."""


def retry_failed(
    connection: Connection, now: datetime, image_ids: Iterable[int] | None = None, limit: int = CHUNK
) -> int:
    """Put quarantined images back into the queue and say so in the derived rows. Returns how many jobs.

    At most ``limit`` images, so that the transaction stays short; call it again until it returns 0.
    """
    failed = sa.select(job.c.image_id).where(job.c.failed_at.is_not(None))
    if image_ids is not None:
        failed = failed.where(job.c.image_id.in_(list(image_ids)))
    found = sorted(set(connection.execute(failed.order_by(job.c.failed_at, job.c.id).limit(limit)).scalars()))
    if not found:
        return 0
    locks.hold(connection, images=found)
    count = queue.retry(connection, now, found)
    derived.refresh_images(connection, found, now)
    return count


def give_up_exhausted(connection: Connection, *, max_attempts: int, now: datetime, limit: int = CHUNK) -> int:
    """Quarantine what its workers died with, and say so in the derived rows. Returns how many.

    At most ``limit`` images, so that the transaction stays short; call it again until it returns 0.
    """
    found = queue.exhausted(connection, max_attempts=max_attempts, now=now, limit=limit)
    if not found:
        return 0
    before = _hold_images(connection, found)
    images = queue.quarantine_exhausted(connection, found, max_attempts=max_attempts, now=now)
    _forget_bytes(connection, [i for i in images if before[i].unread])
    events.quarantined(connection, images, now)
    derived.refresh_images(connection, images, now)
    return len(images)


def _insert_scores(
    connection: Connection, version: Version, scored: list[Scored], before: Mapping[int, Any], now: datetime
) -> bool:
    """Write scores and say which bytes their images consist of. Returns whether those are others than before."""
    if not scored:
        return False
    _insert(connection, version, scored, now)
    hashes = {s.claim.image_id: s.content_hash for s in scored if _differs(before[s.claim.image_id], s.content_hash)}
    _set_content(connection, hashes)
    fresh = [s.claim.image_id for s in scored if _is_fresh(before[s.claim.image_id], s.content_hash)]
    released = copies.release(connection, fresh, now)
    same = copies.find(connection, fresh)
    if released or same or any(_changes(before[s.claim.image_id], s.content_hash) for s in scored):
        return True
    return _known_to_others(connection, version, [i for i in fresh if before[i].content_hash is None])


def _insert(connection: Connection, version: Version, scored: Sequence[Scored], now: datetime) -> None:
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
            "engine": s.engine,
            **{COLUMN_OF_CLASS[c]: p for c, p in zip(CLASSES, s.probabilities, strict=True)},
        }
        for s in scored
    ]
    if rows:
        connection.execute(insert(connection, score).on_conflict_do_nothing(), rows)


def _note_warnings(connection: Connection, scored: Iterable[Scored], before: Mapping[int, Any]) -> None:
    """Keep with each image what its present bytes warn of; the warnings of its path stay."""
    for one in scored:
        former = before[one.claim.image_id].warnings
        kept = [kind for kind in (former or "").split(",") if kind and kind not in PIXEL_WARNINGS]
        if (now := ",".join([*kept, *one.warnings]) or None) != former:
            connection.execute(sa.update(image).where(image.c.id == one.claim.image_id).values(warnings=now))


def _is_fresh(before: Any, content_hash: str) -> bool:
    """Tell if copies must be looked for: the bytes are others, or were known from before the file changed."""
    return bool(before.unread) or before.content_hash != content_hash


def _differs(before: Any, content_hash: str) -> bool:
    """Tell if the image's row does not say yet that its file is there and has these bytes."""
    return before.gone_at is not None or _is_fresh(before, content_hash)


def _changes(before: Any, content_hash: str) -> bool:
    """Tell if other versions' rows are stale: their scores are of former bytes, or the file came back."""
    former = before.content_hash
    return before.gone_at is not None or (former is not None and former != content_hash)


def _known_to_others(connection: Connection, version: Version, image_ids: list[int]) -> bool:
    """Tell if others scored bytes before of which nothing was known: a file was broken and is whole again."""
    theirs = sa.select(score.c.id).join(image, OF_PRESENT_BYTES).where(score.c.model_version_id != version.id)
    return bool(image_ids) and connection.execute(theirs.where(image.c.id.in_(image_ids)).limit(1)).first() is not None


def _set_content(connection: Connection, hashes: Mapping[int, str]) -> None:
    """Record the content that was just read of these images; their files exist again."""
    if not hashes:
        return
    statement = sa.update(image).where(image.c.id == sa.bindparam("image_key"))
    here = {"unread": False, "gone_at": None, "gone_score_id": None, "gone_accepted": None}
    connection.execute(
        statement.values(content_hash=sa.bindparam("new_hash"), **here),
        [{"image_key": image_id, "new_hash": content_hash} for image_id, content_hash in sorted(hashes.items())],
    )

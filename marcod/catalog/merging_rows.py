"""Rows of one plate in a merge: which of two rows of the same thing stays, and where the others move.

Images, scores, jobs, labels, hits, questions of the review and marks on drops are joined by their natural keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.rows import delete_in, parts, select_in, update_rows
from marcod.database.schema import drop_mark, follow, hit, image, job, label, label_inbox, review_item, score
from marcod.domain import PIXEL_WARNINGS, DropClass
from marcod.store import copies, results, votes
from marcod.store.selects import OF_PRESENT_BYTES
from marcod.store.votes import NewLabel


@dataclass(frozen=True, slots=True)
class RowSubject:
    """The drop, the inspection and perhaps the image that a row is about."""

    drop_id: int
    inspection_id: int
    image_id: int | None = None


@dataclass(slots=True)
class JoinedPlate:
    """One plate of the source, and where its rows belong in the target.

    ``pairs`` leads from an image to the same one of the target, ``placed`` from a drop at an inspection to where the
    target has one of its images; it may read the path differently. ``labelled`` are those of the two plates of which
    somebody labelled anything.
    """

    id: int
    target: int | None
    drops: dict[int, int] = field(default_factory=dict)
    inspections: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, Any] = field(default_factory=dict)
    placed: dict[tuple[int, int], RowSubject] = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)
    labelled: set[int] = field(default_factory=set)

    @property
    def drop_ids(self) -> set[int]:
        """Its drops that lead to the target or have images."""
        return {*self.drops, *(row.drop_id for row in self.images)}

    def place(self, drop_id: int, inspection_id: int, image_id: int | None = None) -> RowSubject:
        """Look up the drop, inspection and image that these are in the target."""
        if image_id in self.pairs:
            found = self.pairs[image_id]
            return RowSubject(found.drop_id, found.inspection_id, found.id)
        if (drop_id, inspection_id) in self.placed and image_id is None:
            return self.placed[drop_id, inspection_id]
        return RowSubject(
            self.drops.get(drop_id, drop_id), self.inspections.get(inspection_id, inspection_id), image_id
        )


def join_images(connection: Connection, one: JoinedPlate, now: datetime) -> None:
    """Move images to their drops and inspections in the target; of the same image its scores, job and newest bytes."""
    moves = []
    for row in one.images:
        place = one.place(row.drop_id, row.inspection_id, row.id)
        if row.id not in one.pairs and (place.drop_id, place.inspection_id) != (row.drop_id, row.inspection_id):
            moves.append({"row_id": row.id, "drop_id": place.drop_id, "inspection_id": place.inspection_id})
    update_rows(connection, image, moves)
    # A worker that holds one of them would refresh the summary of a deleted inspection.
    for part in parts(row.id for row in one.images):
        leased = sa.and_(job.c.image_id.in_(part), job.c.lease.is_not(None))
        connection.execute(sa.update(job).where(leased).values(lease=None, available_at=now))
    mine = {row.id: row for row in one.images if row.id in one.pairs}
    _join_jobs(connection, one, mine)
    _join_scores(connection, one)
    found = {old: _newest(mine[old], same) for old, same in one.pairs.items()}
    changed = [
        {"row_id": one.pairs[old].id, **values}
        for old, values in found.items()
        if any(getattr(one.pairs[old], name) != value for name, value in values.items())
    ]
    update_rows(connection, image, changed)
    _join_copies(connection, one)
    both_gone = {same.id: (mine[old], same) for old, same in one.pairs.items() if mine[old].gone_at and same.gone_at}
    results.mark_gone(connection, list(both_gone), now)
    let_be = [number for number, rows in both_gone.items() if any(row.gone_accepted for row in rows)]
    update_rows(connection, image, [{"row_id": number, "gone_accepted": True} for number in let_be])


def _join_copies(connection: Connection, one: JoinedPlate) -> None:
    """Let what stood for an image that is joined stand for the one that stays, and find what is the same there."""
    for old, same in one.pairs.items():
        pointing = (image.c.same_as_id == old, image.c.id != same.id)
        connection.execute(sa.update(image).where(*pointing).values(same_as_id=same.id))
    there = {staying.id: staying for staying in (one.pairs.get(row.id, row) for row in one.images)}
    update_rows(connection, image, [{"row_id": number, "same_as_id": None} for number in there])
    copies.find_again(connection, there, {number for number, row in there.items() if row.same_as_id is None})


def _age(mine: Any, theirs: Any) -> int:
    """Above 0 where the source saw later bytes of an image than the target, 0 where both saw the same."""
    later = _time(mine.mtime_ns) - _time(theirs.mtime_ns)
    hashes = {row.content_hash for row in (mine, theirs)} - {None}
    # Of two sizes or contents at one time the next look at the file decides; until then the target's counts.
    return -1 if later == 0 and (mine.size != theirs.size or len(hashes) > 1) else later


def _time(mtime_ns: int) -> int:
    """Decode a time of modification: an image to be read again has it below zero, see ``registration.read_again``."""
    return -mtime_ns - 1 if mtime_ns < 0 else mtime_ns


def _newest(mine: Any, theirs: Any) -> dict[str, Any]:
    """Size, time and content of an image that both sources have: what the one that saw it last saw."""
    age = _age(mine, theirs)
    newest = mine if age > 0 else theirs
    mtime_ns = _time(newest.mtime_ns)
    same = age == 0
    read = theirs if theirs.content_hash is not None and not theirs.unread else mine
    seen = read if same else newest
    return {
        "size": newest.size,
        "mtime_ns": -mtime_ns - 1 if theirs.mtime_ns < 0 else mtime_ns,
        "content_hash": seen.content_hash,
        "warnings": _warnings(seen, theirs),
        "unread": mine.unread and theirs.unread if same else newest.unread,
        "gone_at": theirs.gone_at if mine.gone_at is not None else None,
        "gone_score_id": None,
        "seen_at": min(mine.seen_at, theirs.seen_at) if same else newest.seen_at,
    }


def _warnings(seen: Any, theirs: Any) -> str | None:
    """Join the warnings of the bytes, from the row that saw them, to those of the path in the target."""
    of_bytes, of_path = ((row.warnings or "").split(",") for row in (seen, theirs))
    kinds = [kind for kind in of_path if kind and kind not in PIXEL_WARNINGS]
    return ",".join([*kinds, *(kind for kind in of_bytes if kind in PIXEL_WARNINGS)]) or None


def _join_scores(connection: Connection, one: JoinedPlate) -> None:
    """Keep a score of the same image, version and content once: the first that was made."""
    columns = (score.c.id, score.c.image_id, score.c.model_version_id, score.c.content_hash, score.c.scored_at)
    theirs = {
        (row.image_id, row.model_version_id, row.content_hash): row
        for row in select_in(connection, sa.select(*columns), score.c.image_id, [s.id for s in one.pairs.values()])
    }
    gone, moves = [], []
    for row in select_in(connection, sa.select(*columns), score.c.image_id, one.pairs):
        target = one.pairs[row.image_id].id
        same = theirs.get((target, row.model_version_id, row.content_hash))
        if same is not None and same.scored_at <= row.scored_at:
            gone.append(row.id)
            continue
        gone += [] if same is None else [same.id]
        moves.append({"row_id": row.id, "image_id": target})
    delete_in(connection, score, score.c.id, gone)
    update_rows(connection, score, moves)


def _join_jobs(connection: Connection, one: JoinedPlate, mine: dict[int, Any]) -> None:
    """Keep one job per image and version, unless those who saw the present bytes have scored them."""
    images = {**one.pairs, **{same.id: same for same in one.pairs.values()}}
    jobs: dict[tuple[int, int], list[Any]] = {}
    queued = set()
    for row in select_in(connection, sa.select(job), job.c.image_id, images):
        queued.add((row.image_id, row.model_version_id))
        jobs.setdefault((images[row.image_id].id, row.model_version_id), []).append(row)
    scored = sa.select(score.c.image_id, score.c.model_version_id).join(image, OF_PRESENT_BYTES)
    done = {tuple(row) for row in select_in(connection, scored, score.c.image_id, images)} - queued
    sides = {}
    for old, same in one.pairs.items():
        age = _age(mine[old], same)
        sides[same.id] = [old] * (age >= 0) + [same.id] * (age <= 0)
    gone, moves = [], []
    for (image_id, version_id), rows in jobs.items():
        if any((side, version_id) in done for side in sides[image_id]):
            gone += [row.id for row in rows]
            continue
        # One that gave up yields to one that waits.
        kept = min(rows, key=lambda row: (row.failed_at is not None, row.image_id not in sides[image_id]))
        gone += [row.id for row in rows if row is not kept]
        if kept.image_id != image_id:
            moves.append({"row_id": kept.id, "image_id": image_id})
    delete_in(connection, job, job.c.id, gone)
    update_rows(connection, job, moves)


def join_labels(connection: Connection, one: JoinedPlate) -> None:
    """Move labels to their places in the target; the same label of the same person and time is kept once."""
    moves: list[dict[str, Any]] = []
    gone: dict[int, int] = {}
    rows = []
    for row in _leading_to(connection, label, one):
        place = one.place(row.drop_id, row.inspection_id, row.image_id)
        if (place.drop_id, place.inspection_id, place.image_id) != (row.drop_id, row.inspection_id, row.image_id):
            rows.append((row, place, _key_at(row, place)))
    kept: dict[str, int] = {}
    for part in parts(key for _, _, key in rows):
        kept |= votes.key_ids(connection, part)
    for row, place, key in rows:
        if kept.setdefault(key, row.id) != row.id:
            gone[row.id] = kept[key]
        else:
            moves.append({"row_id": row.id, "key": key, **asdict(place)})
    for old, new in gone.items():
        connection.execute(sa.update(label_inbox).where(label_inbox.c.label_id == old).values(label_id=new))
    delete_in(connection, label, label.c.id, gone)
    update_rows(connection, label, moves)


def _key_at(row: Any, place: RowSubject) -> str:
    """Compute the key that the label would have at its place in the target."""
    given = NewLabel(
        row.drop_id, row.inspection_id, row.label and DropClass(row.label), row.person, row.labelled_at, row.origin,
        row.original, row.vocabulary, row.image_id,
    )  # fmt: skip
    # A label in the words of the four classes may have been given without its original text.
    short = replace(given, original="")
    written = short if short.key == row.key else given
    return replace(written, **asdict(place)).key


def _leading_to(connection: Connection, table: sa.Table, one: JoinedPlate) -> list[Any]:
    """Select the rows of a table that refer to a drop of the plate, or to an image that goes."""
    rows = {row.id: row for row in select_in(connection, sa.select(table), table.c.drop_id, one.drop_ids)}
    rows |= {row.id: row for row in select_in(connection, sa.select(table), table.c.image_id, one.pairs)}
    return [rows[number] for number in sorted(rows)]


def join_hits(connection: Connection, one: JoinedPlate) -> None:
    """Keep one hit per drop and version: one that has not ended, else the one that was found first."""
    _join(connection, one, hit, ("drop_id", "model_version_id"), lambda row: (row.ended_at is not None, row.found_at))


def join_questions(connection: Connection, one: JoinedPlate) -> None:
    """Keep, of the same question in the review, the one that was answered."""
    _join(connection, one, review_item, ("drop_id", "inspection_id", "stream"), lambda row: row.answered_at is None)


def join_marks(connection: Connection, one: JoinedPlate) -> None:
    """Move notes and marks to their places; who follows a drop in either source follows it in the target."""
    moves = []
    for row in select_in(connection, sa.select(drop_mark), drop_mark.c.drop_id, one.drop_ids):
        place = one.place(row.drop_id, row.inspection_id)
        if (place.drop_id, place.inspection_id) != (row.drop_id, row.inspection_id):
            moves.append({"row_id": row.id, "drop_id": place.drop_id, "inspection_id": place.inspection_id})
    update_rows(connection, drop_mark, moves)
    for row in list(select_in(connection, sa.select(follow), follow.c.drop_id, one.drop_ids)):
        if (there := one.drops.get(row.drop_id, row.drop_id)) != row.drop_id:
            values = {**row._mapping, "drop_id": there}
            connection.execute(insert(connection, follow).values(values).on_conflict_do_nothing())
            connection.execute(sa.delete(follow).where(follow.c.drop_id == row.drop_id, follow.c.person == row.person))


def _join(
    connection: Connection, one: JoinedPlate, table: sa.Table, keys: Sequence[str], rank: Callable[[Any], Any]
) -> None:
    """Move rows to their places; of two with one key there the lower rank stays, the target's on a tie."""
    mine = _leading_to(connection, table, one)
    places = {row.id: one.place(row.drop_id, row.inspection_id, row.image_id) for row in mine}

    def key(row: Any) -> tuple[Any, ...]:
        values = {**row._mapping, **asdict(places[row.id])} if row.id in moving else row._mapping
        return tuple(values[name] for name in keys)

    moving = {row.id for row in mine if places[row.id] != RowSubject(row.drop_id, row.inspection_id, row.image_id)}
    targets = {place.drop_id for place in places.values()}
    theirs = select_in(connection, sa.select(table), table.c.drop_id, targets)
    held = {key(row): row for row in (*theirs, *mine) if row.id not in moving}
    gone: list[int] = []
    moves: dict[int, dict[str, Any]] = {}
    for row in (row for row in mine if row.id in moving):
        other = held.get(key(row))
        if other is not None and rank(other) <= rank(row):
            gone.append(row.id)
            continue
        if other is not None:
            gone.append(other.id)
            moves.pop(other.id, None)
        held[key(row)] = row
        moves[row.id] = {"row_id": row.id, **asdict(places[row.id])}
    delete_in(connection, table, table.c.id, gone)
    update_rows(connection, table, list(moves.values()))

"""Retention: scores that the champion's own replaced, and old rows of the audit, are deleted.

Guarantees:

* Every view but the score history shows the same as before, also after a recount.
* Nothing goes that the champion, the challenger, a rollback or a promotion under way needs.
* No row or file of an image is touched.

A former version's scores of a drop go together, with its summary of the drop and of the inspections, when the champion
has scored all that it has and the champion's inspections are complete. A drop that people
labelled, or were asked about, keeps every score: data sets are made from them. So does one with a file that is gone for
good and whose score still counts. A score of bytes that a file does not hold any more goes when
there is one of the present bytes; a label that somebody brings later, dated before such a rewriting, is then taken to
be of the present bytes.

Everything is done in parts that walk the scores by their ids, so that no call reads more than its limit.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database
from marcod.database.rows import delete_in, select_in
from marcod.database.schema import (
    audit,
    drop_summary,
    image,
    inspection_summary,
    label,
    model_alias,
    promotion,
    review_item,
    score,
)
from marcod.settings import RetentionSettings
from marcod.store import derived, locks, versions
from marcod.store.selects import SHOWN_DROP, current_score, of_present_bytes

PART: Final = 2000
"""Scores that one transaction looks at: some tens of milliseconds."""

SKEW: Final = timedelta(hours=1)
"""Ids follow the time of scoring, but for this difference of two hosts' clocks."""

PASSING: Final = ("drift-clear", "plate barcode", "thin")
"""Actions in the audit that may go; those of models, roles and all that is not named here stay for ever."""

Report = Callable[[int, int], None]
"""Callback with the progress and the end of the walk, as ids of scores."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """Rows that went: ``scores`` of former versions, those of former ``contents`` of files, and of the ``audit``.

    ``last`` is the score after which the next call goes on, None at the end of the walk.
    """

    scores: int = 0
    contents: int = 0
    audit: int = 0
    last: int | None = None

    @property
    def rows(self) -> int:
        """All of them."""
        return self.scores + self.contents + self.audit


def run(
    db: Database,
    settings: RetentionSettings,
    now: datetime,
    *,
    after: int = 0,
    rounds: int | None = None,
    limit: int = PART,
    dry: bool = False,
    report: Report | None = None,
) -> Thinned:
    """Call :func:`thin`, each time in a transaction of its own, to the end of the walk or so many times.

    Give ``last``, or 0 for None, as ``after`` of the next call.
    """
    total, last, done = Thinned(), after, 0
    end = db.read(_last_score) if report else 0
    while rounds is None or done < rounds:
        step = partial(thin, settings=settings, now=now, limit=limit, after=last, dry=dry)
        part = db.read(step) if dry else db.write(step)
        sums = (total.scores + part.scores, total.contents + part.contents, total.audit + part.audit)
        total, done = Thinned(*sums, part.last), done + 1
        if report:
            report(end if part.last is None else part.last, end)
        if part.last is None:
            break
        last = part.last
    return total


def thin(
    connection: Connection,
    settings: RetentionSettings,
    now: datetime,
    limit: int = PART,
    *,
    after: int = 0,
    dry: bool = False,
) -> Thinned:
    """Thin the next ``limit`` scores after an id, and as many rows of the audit; ``dry`` only counts.

    Does nothing where the settings name no days. To be called until ``last`` is None.
    """
    # A dry run sees the same rows of the audit in every part.
    old_notes = _thin_audit(connection, settings.audit_days, now, limit, dry) if not (dry and after) else 0
    if settings.scores_days is None or not versions.has_champion(connection):
        more = settings.audit_days is not None and not dry and old_notes == limit
        return Thinned(audit=old_notes, last=after if more else None)
    # A promotion waits meanwhile, because the versions that serve decide here.
    champion = versions.champion(connection, lock=not dry)
    before = now - timedelta(days=settings.scores_days)
    part = _part(connection, champion.id, after, limit)
    old = [row for row in part if row.scored_at < before]
    contents = _former_contents(connection, old)
    groups = _former_versions(connection, old, champion.id, before, after)
    scores = sum(len(group.score_ids) for group in groups)
    if not dry:
        delete_in(connection, score, score.c.id, contents)
        _delete_groups(connection, groups, now)
    ended = len(part) < limit or all(row.scored_at >= before + SKEW for row in part)
    return Thinned(scores, len(contents), old_notes, None if ended else part[-1].id)


def _last_score(connection: Connection) -> int:
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(score.c.id), 0))).scalar_one())


def _part(connection: Connection, champion_id: int, after: int, limit: int) -> list[Any]:
    """Read the next scores by id, each with the state of its image and the champion's score."""
    champions = score.alias("champions")
    present = score.alias("present")
    has_present = sa.exists().where(of_present_bytes(present))
    coming = sa.exists().where(promotion.c.model_version_id == score.c.model_version_id)
    serves = sa.or_(coming, sa.exists().where(model_alias.c.model_version_id == score.c.model_version_id))
    statement = (
        sa.select(
            score.c.id,
            score.c.model_version_id,
            score.c.scored_at,
            image.c.drop_id,
            (score.c.content_hash == image.c.content_hash).label("is_present"),
            has_present.label("has_present"),
            champions.c.id.is_not(None).label("by_champion"),
            serves.label("serves"),
        )
        .join(image, image.c.id == score.c.image_id)
        .outerjoin(champions, current_score(champion_id, champions))
        .where(score.c.id > after)
        .order_by(score.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement).all())


def _former_contents(connection: Connection, rows: Iterable[Any]) -> list[int]:
    """Find the scores of bytes that their files do not hold any more."""
    found = [row for row in rows if row.has_present and not row.is_present]
    spoken_of = _spoken_of(connection, {row.drop_id for row in found})
    return [row.id for row in found if row.drop_id not in spoken_of]


def _spoken_of(connection: Connection, drop_ids: set[int]) -> set[int]:
    """Choose the drops that people labelled, or were asked about."""
    ids = sorted(drop_ids)
    found: set[int] = set()
    for table in (label, review_item) if ids else ():
        found |= set(
            connection.execute(sa.select(table.c.drop_id).where(table.c.drop_id.in_(ids)).distinct()).scalars()
        )
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """A former version's scores of a drop in its present state."""

    drop_id: int
    version_id: int
    score_ids: tuple[int, ...]
    inspection_ids: frozenset[int]


def _former_versions(
    connection: Connection, rows: Iterable[Any], champion_id: int, before: datetime, after: int
) -> list[_Group]:
    """Group former versions' scores that the champion has too, each met for the first time in this part."""
    wanted: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        if row.is_present and row.by_champion and not row.serves:
            wanted[row.model_version_id].add(row.drop_id)
    kept = _spoken_of(connection, {drop_id for drop_ids in wanted.values() for drop_id in drop_ids})
    groups = []
    for version_id, drop_ids in sorted(wanted.items()):
        found = _groups(connection, version_id, champion_id, sorted(drop_ids - kept), before, after)
        groups += _not_shown(connection, found, version_id)
    return groups


def _groups(
    connection: Connection, version_id: int, champion_id: int, drop_ids: list[int], before: datetime, after: int
) -> list[_Group]:
    """Group a version's scores by drop, where all are old, first met here and scored by the champion too.

    The champion's inspections of them are complete, so that its rows are shown. No score of them goes on
    counting for a file that is gone.
    """
    champions = score.alias("champions")
    of_champion = sa.and_(
        inspection_summary.c.inspection_id == image.c.inspection_id,
        inspection_summary.c.model_version_id == champion_id,
    )
    # What goes on counting for a file that is gone counts for every version that never scored it.
    counts_on = sa.func.coalesce(image.c.gone_score_id == score.c.id, sa.false())
    complete = sa.func.coalesce(inspection_summary.c.complete, sa.false())
    replaced = sa.and_(champions.c.id.is_not(None), complete, sa.not_(counts_on))
    # Outer joins make both databases begin with the few images, not with all that a version ever scored.
    statement = (
        sa.select(image.c.drop_id, image.c.inspection_id, score.c.id, score.c.scored_at, replaced)
        .outerjoin(score, current_score(version_id))
        .outerjoin(champions, current_score(champion_id, champions))
        .outerjoin(inspection_summary, of_champion)
        .where(image.c.drop_id.in_(drop_ids))
        .order_by(image.c.drop_id, score.c.id)
    )
    of_drop: dict[int, list[Any]] = defaultdict(list)
    for row in connection.execute(statement):
        if row[2] is not None:
            of_drop[row[0]].append(row)
    return [
        _Group(drop_id, version_id, tuple(row[2] for row in found), frozenset(row[1] for row in found))
        for drop_id, found in of_drop.items()
        if found[0][2] > after and all(row[3] < before and row[4] for row in found)
    ]


def _not_shown(connection: Connection, groups: list[_Group], version_id: int) -> list[_Group]:
    """Choose the groups for whose drops the views show another version."""
    its = SHOWN_DROP.c.model_version_id == version_id
    shown = sa.select(SHOWN_DROP.c.drop_id).where(its, SHOWN_DROP.c.drop_id.in_([g.drop_id for g in groups]))
    drop_ids = set(connection.execute(shown).scalars())
    return [g for g in groups if g.drop_id not in drop_ids]


def _delete_groups(connection: Connection, groups: list[_Group], now: datetime) -> None:
    """Delete scores and what was counted from them, held in the order in which those who score hold them."""
    of_version: dict[int, list[_Group]] = defaultdict(list)
    for group in groups:
        of_version[group.version_id].append(group)
    inspection_ids = {i for group in groups for i in group.inspection_ids}
    locks.hold(connection, inspections=inspection_ids, drops={group.drop_id for group in groups})
    for version_id, its in of_version.items():
        drop_ids = [group.drop_id for group in its]
        delete_in(connection, score, score.c.id, [score_id for group in its for score_id in group.score_ids])
        _delete(connection, drop_summary, drop_summary.c.drop_id, drop_ids, version_id)
        inspections = {i for group in its for i in group.inspection_ids}
        left = _still_scored(connection, version_id, inspections)
        _delete(connection, inspection_summary, inspection_summary.c.inspection_id, inspections - left, version_id)
        derived.refresh_version(connection, versions.get(connection, version_id), (), left, now)


def _still_scored(connection: Connection, version_id: int, inspection_ids: Collection[int]) -> set[int]:
    """Choose the inspections of which a version keeps a score, since one of their drops stays."""
    wanted = sa.select(image.c.inspection_id).join(score, current_score(version_id)).distinct()
    return {int(row.inspection_id) for row in select_in(connection, wanted, image.c.inspection_id, inspection_ids)}


def _delete(
    connection: Connection, table: sa.Table, column: sa.Column[Any], ids: Iterable[int], version_id: int
) -> None:
    """Delete a version's summaries of these drops or inspections."""
    of_version = sa.and_(column.in_(sorted(ids)), table.c.model_version_id == version_id)
    connection.execute(sa.delete(table).where(of_version))


def _thin_audit(connection: Connection, days: int | None, now: datetime, limit: int, dry: bool) -> int:
    if days is None:
        return 0
    old = sa.and_(audit.c.at < now - timedelta(days=days), audit.c.action.in_(PASSING))
    if dry:
        return int(connection.execute(sa.select(sa.func.count()).select_from(audit).where(old)).scalar_one())
    oldest = sa.select(audit.c.id).where(old).order_by(audit.c.at).limit(limit)
    return connection.execute(sa.delete(audit).where(audit.c.id.in_(oldest))).rowcount

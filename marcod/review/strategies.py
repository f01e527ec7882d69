"""Query strategies: drops near the threshold, and drops on which models, people or inspections disagree.

Each strategy returns a bounded list, the most useful first, found by the database. Drops whose inspection was ever
asked about are left out, except in disagreements of people's labels.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import drop_summary, image, inspection, label, review_item, score
from marcod.domain import DropClass
from marcod.review.queue import ReviewCandidate, Stream, same_subject
from marcod.store import votes as store_votes
from marcod.store.drops import Trend
from marcod.store.selects import counted_in, current_score, is_hit
from marcod.store.versions import Version

MOST_DISPUTED: Final = 0.05
"""The share of the labelled drops that is looked at again (Bruno et al., PLoS ONE 13(6): e0198883, 2018)."""

SURE: Final = 0.5
"""A class with at least this probability does not disagree with a label of that class."""

RECENT: Final = 500
"""Drops, the latest changed first, in which an inspection that differs from its neighbours is looked for."""

_LIFE: Final = drop_summary.c
_FOUND: Final = (_LIFE.drop_id, _LIFE.inspection_id, _LIFE.image_id, _LIFE.p_crystals)


def near_threshold(connection: Connection, version: Version, limit: int) -> list[ReviewCandidate]:
    """Find unlabelled drops whose latest score is nearest to the crystal threshold, from both sides in turn."""
    t = version.crystal_threshold
    unlabelled = sa.select(*_FOUND).where(_of(version), _LIFE.label_person.is_(None), ~_asked()).limit(limit)
    above = unlabelled.where(is_hit(_LIFE.p_crystals, t)).order_by(_LIFE.p_crystals, _LIFE.drop_id)
    below = unlabelled.where(~is_hit(_LIFE.p_crystals, t)).order_by(_LIFE.p_crystals.desc(), _LIFE.drop_id)
    sides = (connection.execute(above).all(), connection.execute(below).all())
    mixed = [row for pair in zip_longest(*sides) for row in pair if row is not None][:limit]
    return [
        _candidate(row, f"Its crystal probability of {row[3]:.2f} is near the threshold of {t:.2f}.", abs(row[3] - t))
        for row in mixed
    ]


def among_models(
    connection: Connection, version: Version, challenger: Version | None, limit: int
) -> list[ReviewCandidate]:
    """Find unlabelled drops on which two models or two inspections disagree; the worst of both kinds in turn."""
    against = [] if challenger is None else _against_challenger(connection, version, challenger, limit)
    return _mixed((against, _against_time(connection, version, limit)), limit)


def with_people(connection: Connection, version: Version, limit: int) -> list[ReviewCandidate]:
    """Find labelled drops on which people disagree with the model or with one another; the worst of both in turn."""
    return _mixed((_against_people(connection, version, limit), _among_people(connection, version, limit)), limit)


def _mixed(kinds: Iterable[list[ReviewCandidate]], limit: int) -> list[ReviewCandidate]:
    found: dict[tuple[int, int], ReviewCandidate] = {}
    for candidate in (each for turn in zip_longest(*kinds) for each in turn if each is not None):
        found.setdefault((candidate.drop_id, candidate.inspection_id), candidate)
    return list(found.values())[:limit]


def _candidate(row: Any, reason: str, rank: float) -> ReviewCandidate:
    """Make a candidate of a row that starts with the columns of ``_FOUND``."""
    return ReviewCandidate(int(row[0]), int(row[1]), int(row[2]), row[3], reason, rank)


def _of(version: Version) -> sa.ColumnElement[bool]:
    return sa.and_(_LIFE.model_version_id == version.id, _LIFE.p_crystals.is_not(None))


def _asked(stream: Stream | None = None) -> sa.ColumnElement[bool]:
    """Select drops whose inspection is, or was, an item of one stream, or of any."""
    return sa.exists().where(
        same_subject(review_item, drop_summary), *([] if stream is None else [review_item.c.stream == str(stream)])
    )


def _against_people(connection: Connection, version: Version, limit: int) -> list[ReviewCandidate]:
    """Find the labelled drops to whose label the model gives least, without those that an audit drew."""
    labelled = sa.and_(_of(version), _LIFE.label_person.is_not(None))
    count = connection.execute(sa.select(sa.func.count()).select_from(drop_summary).where(labelled)).scalar_one()
    given = sa.case({str(c): _LIFE[f"p_{c.lower()}"] for c in DropClass}, value=_LIFE.label, else_=None)
    # Looked at again because the model disagrees, an audit's answers would turn towards the model.
    asked = sa.or_(_asked(Stream.DISAGREEMENT), _asked(Stream.AUDIT))
    worst = (
        sa.select(*_FOUND, _LIFE.label, given.label("given"), asked.label("asked"))
        .where(labelled)
        .order_by(given, _LIFE.drop_id)
        .limit(math.ceil(count * MOST_DISPUTED))
        .subquery()
    )
    statement = sa.select(worst).where(~worst.c.asked, worst.c.given < SURE).order_by(worst.c.given).limit(limit)
    return [
        _candidate(row, f"It is labelled {row[4]}, to which {version} gives {row[5]:.2f}.", row[5])
        for row in connection.execute(statement)
    ]


def _against_challenger(connection: Connection, version: Version, other: Version, limit: int) -> list[ReviewCandidate]:
    """Find drops that are a hit for one of two models only; both scored the present images.

    The other one's say is read from its scores: a version that never was champion has no rows of drops.
    """
    theirs = (
        sa.select(image.c.drop_id, image.c.inspection_id, sa.func.max(score.c.p_crystals).label("p_crystals"))
        .join(score, current_score(other.id))
        .where(counted_in(other.modality))
        .group_by(image.c.drop_id, image.c.inspection_id)
        .subquery("theirs")
    )
    apart = sa.func.abs(_LIFE.p_crystals - theirs.c.p_crystals)
    one = is_hit(_LIFE.p_crystals, version.crystal_threshold)
    two = is_hit(theirs.c.p_crystals, other.crystal_threshold)
    statement = (
        sa.select(*_FOUND, theirs.c.p_crystals)
        .join(theirs, same_subject(theirs, drop_summary))
        .where(_of(version), _LIFE.label_person.is_(None), ~_asked())
        .where(sa.or_(sa.and_(one, ~two), sa.and_(two, ~one)))
        .order_by(apart.desc(), _LIFE.drop_id)
        .limit(limit)
    )
    return [
        _candidate(
            row, f"For crystals {version} gives {row[3]:.2f} and {other} gives {row[4]:.2f}.", 1 - abs(row[3] - row[4])
        )
        for row in connection.execute(statement)
    ]


def _among_people(connection: Connection, version: Version, limit: int) -> list[ReviewCandidate]:
    """Find drops on which persons disagree now."""
    disputed = sa.and_(_LIFE.model_version_id == version.id, _LIFE.label_disputed, ~_asked(Stream.DISAGREEMENT))
    rows = connection.execute(
        sa.select(*_FOUND).where(disputed).order_by(_LIFE.updated_at.desc(), _LIFE.drop_id).limit(limit)
    ).all()
    given = store_votes.of_drops(connection, [row[0] for row in rows])
    found = []
    for row in rows:
        verdict = given.get((row[0], row[1]), store_votes.NO_VOTES).majority({})
        votes = {} if verdict is None else verdict.votes
        each = " and ".join(f"{n} for {c}" for c, n in sorted(votes.items(), key=lambda vote: (-vote[1], vote[0])))
        found.append(_candidate(row, f"Persons disagree: {each}." if each else "Persons disagree.", 0.5))
    return found


@dataclass(frozen=True, slots=True)
class _Look:
    """A drop's most crystalline image at one inspection."""

    drop_id: int
    inspection_id: int
    image_id: int
    p_crystals: float
    key: str


def _against_time(connection: Connection, version: Version, limit: int) -> list[ReviewCandidate]:
    """Find inspections between two others of another class, as in crystals, clear, crystals."""
    by_drop = groupby(_looks(connection, version), key=attrgetter("drop_id"))
    found = [candidate for _, looks in by_drop for candidate in _flickers(list(looks), version)]
    known = _known(connection, {p.drop_id for p in found})
    fresh = [p for p in found if (p.drop_id, p.inspection_id) not in known]
    return sorted(fresh, key=lambda p: (p.rank, p.drop_id))[:limit]


def _flickers(looks: list[_Look], version: Version) -> Iterator[ReviewCandidate]:
    t = version.crystal_threshold
    for before, look, after in zip(looks, looks[1:], looks[2:], strict=False):
        earlier, here, later = (is_hit(each.p_crystals, t) for each in (before, look, after))
        if here == earlier or earlier != later:
            continue
        apart = min(abs(look.p_crystals - each.p_crystals) for each in (before, after))
        reason = (
            f"Its crystal probability of {look.p_crystals:.2f} stands between {before.p_crystals:.2f} at inspection "
            f"{before.key} and {after.p_crystals:.2f} at inspection {after.key}."
        )
        yield ReviewCandidate(look.drop_id, look.inspection_id, look.image_id, look.p_crystals, reason, 1 - apart)


def _looks(connection: Connection, version: Version) -> Iterator[_Look]:
    """Read the inspections of drops that changed lately and appear or dissolve, in order of time."""
    changing = _LIFE.trend.in_([str(Trend.APPEARING), str(Trend.DISSOLVING)])
    recent = (
        sa.select(_LIFE.drop_id)
        .where(_LIFE.model_version_id == version.id, changing, _LIFE.scored_inspections >= 3)
        .order_by(_LIFE.updated_at.desc(), _LIFE.drop_id)
        .limit(RECENT)
    )
    drop_ids = list(connection.execute(recent).scalars())
    of_version = current_score(version.id)
    rows = connection.execute(
        sa.select(image.c.drop_id, image.c.inspection_id, image.c.id, score.c.p_crystals, inspection.c.key)
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .join(score, of_version)
        .where(image.c.drop_id.in_(drop_ids))
        .order_by(image.c.drop_id, inspection.c.order_key, inspection.c.id, image.c.id)
    )
    images = (_Look(*row) for row in rows)
    for _, group in groupby(images, key=lambda look: (look.drop_id, look.inspection_id)):
        yield max(group, key=attrgetter("p_crystals"))


def _known(connection: Connection, drop_ids: Iterable[int]) -> set[tuple[int, int]]:
    """Find drops at inspections that somebody labelled or was asked about."""
    ids = sorted(drop_ids)
    labelled: sa.Select[Any] = sa.select(label.c.drop_id, label.c.inspection_id).where(label.c.drop_id.in_(ids))
    asked = sa.select(review_item.c.drop_id, review_item.c.inspection_id).where(review_item.c.drop_id.in_(ids))
    return {(int(row[0]), int(row[1])) for row in connection.execute(labelled.union(asked))}

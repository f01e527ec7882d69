"""Stratified random sampling of drops for audits of the champion, and the tallies of their answers.

Drops are drawn by their rank among hundreds of thousands, in one pass of the database.

Guarantees:
- A draw sees the drops of one moment, and never depends on their labels.
- Every draw is stored with its inclusion probabilities.
- Answers count in the order of the draw; a drop labelled for another reason would else count as drawn at random.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import parts, select_in
from marcod.database.schema import drop_summary, review_item, review_round
from marcod.domain import DropClass
from marcod.review import queue
from marcod.review.queue import ReviewCandidate, Stream
from marcod.review.recall import Slice
from marcod.store import votes
from marcod.store.selects import is_hit
from marcod.store.versions import Version

REASON: Final = "It was drawn at random, to measure how many crystals the model misses."
_LIFE: Final = drop_summary.c


@dataclass(frozen=True, slots=True)
class Stratum(Slice):
    """Drops of similar score, and how many of them were drawn; ``low`` and ``high`` are their scores' ends.

    ``subjects`` are the drops and inspections drawn of it, in the random order in which they are asked and count.
    """

    low: float | None = None
    high: float | None = None
    subjects: tuple[tuple[int, int], ...] = ()

    @property
    def inclusion(self) -> float:
        """The probability with which each of its drops was drawn."""
        return self.sample / self.population if self.population else 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """One draw, with its strata from the highest score down."""

    id: int
    threshold: float
    strata: tuple[Stratum, ...]
    drawn_at: datetime

    @property
    def population(self) -> int:
        return sum(stratum.population for stratum in self.strata)


@dataclass(frozen=True, slots=True)
class StratumAnswers(Slice):
    """Answers of one stratum of a draw.

    ``answered``, ``crystals`` and ``skipped`` are counted up to the first item that is ``open``; ``waiting`` are the
    answers and skips behind it.
    """

    answered: int = 0
    crystals: int = 0
    skipped: int = 0
    open: int = 0
    waiting: int = 0
    low: float | None = None
    high: float | None = None


def start_draw(connection: Connection) -> None:
    """Lock out other draws, and let all that follows see one moment. Call first in a transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("set transaction isolation level repeatable read"))
        connection.execute(sa.text("lock table review_round in share row exclusive mode"))


def sides(connection: Connection, version: Version) -> tuple[int, int]:
    """Count the drops whose latest score is at or above the version's threshold, and those below.

    A drop counts once, by its last inspection of which anything is known; without a present score there, not at all.
    """
    flagged = sa.func.sum(sa.case((is_hit(_LIFE.p_crystals, version.crystal_threshold), 1), else_=0))
    row = connection.execute(sa.select(sa.func.count(), flagged).where(_of(version))).one()
    above = int(row[1] or 0)
    return above, int(row[0]) - above


def _of(version: Version) -> sa.ColumnElement[bool]:
    return sa.and_(_LIFE.model_version_id == version.id, _LIFE.p_crystals.is_not(None))


def draw(connection: Connection, version: Version, strata: Sequence[Slice], seed: int, now: datetime) -> int:
    """Draw from the drops in falling order of score; ``strata`` say how many each has, and how many are drawn of it.

    Together they must have all drops that :func:`sides` counts. Returns how many drops were drawn.
    """
    rng = random.Random(seed)
    chosen: dict[int, int] = {}
    ends: dict[int, int] = {}
    start = 1
    for index, stratum in enumerate(strata):
        ranks = range(start, start + stratum.population)
        chosen |= dict.fromkeys(rng.sample(ranks, stratum.sample), index)
        ends |= dict.fromkeys((*ranks[:1], *ranks[-1:]), index)
        start += stratum.population
    found = _at_ranks(connection, version, sorted({*chosen, *ends}))
    scores: dict[int, list[float]] = {}
    for rank, index in ends.items():
        scores.setdefault(index, []).append(found[rank].p_crystals)
    known = [
        Stratum(s.flagged, s.population, s.sample, min(scores.get(i, [0.0])), max(scores.get(i, [0.0])))
        for i, s in enumerate(strata)
    ]
    _keep(connection, version, known, seed, now, [(found[rank], index, rng.random()) for rank, index in chosen.items()])
    return len(chosen)


def _at_ranks(connection: Connection, version: Version, ranks: list[int]) -> dict[int, Any]:
    """Read the drops at these places, counted from 1, in falling order of score, in one pass over all."""
    rank = (
        sa.func.row_number(type_=sa.BigInteger()).over(order_by=(_LIFE.p_crystals.desc(), _LIFE.drop_id)).label("rank")
    )
    columns = (_LIFE.drop_id, _LIFE.inspection_id, _LIFE.image_id, _LIFE.p_crystals)
    ranked = sa.select(*columns, rank).where(_of(version)).subquery()
    wanted = ranked.c.rank.in_(sa.bindparam("ranks", expanding=True, literal_execute=True))
    return {row.rank: row for row in connection.execute(sa.select(ranked).where(wanted), {"ranks": ranks})}


def _keep(
    connection: Connection,
    version: Version,
    strata: list[Stratum],
    seed: int,
    now: datetime,
    drawn: list[tuple[Any, int, float]],
) -> None:
    values = {"model_version_id": version.id, "threshold": version.crystal_threshold, "seed": seed, "drawn_at": now}
    made = sa.insert(review_round).values(**values, strata=[]).returning(review_round.c.id)
    round_id = int(connection.execute(made).scalar_one())
    candidates = [
        ReviewCandidate(
            row.drop_id, row.inspection_id, row.image_id, row.p_crystals, REASON, rank,
            round_id=round_id, stratum=index, inclusion=strata[index].inclusion,
        )
        for row, index, rank in drawn
    ]  # fmt: skip
    new = queue.add(connection, Stream.AUDIT, version, candidates, now)
    queue.propose_again(
        connection, version, [p for p in candidates if (p.drop_id, p.inspection_id) not in new], Stream.AUDIT, now
    )
    members: dict[int | None, list[tuple[int, int]]] = {}
    for p in sorted(candidates, key=lambda p: p.rank):
        members.setdefault(p.stratum, []).append((p.drop_id, p.inspection_id))
    # Not as ids of items: SQLite gives the id of a removed item to another.
    stored = [asdict(s) | {"subjects": members.get(i, [])} for i, s in enumerate(strata)]
    connection.execute(sa.update(review_round).where(review_round.c.id == round_id).values(strata=stored))


def rounds(connection: Connection, version: Version) -> list[Round]:
    """List the draws for a version at its threshold, the latest first."""
    rows = connection.execute(
        sa.select(review_round)
        .where(review_round.c.model_version_id == version.id, review_round.c.threshold == version.crystal_threshold)
        .order_by(review_round.c.id.desc())
    )
    return [Round(row.id, row.threshold, tuple(_stratum(s) for s in row.strata), row.drawn_at) for row in rows]


def _stratum(kept: dict[str, Any]) -> Stratum:
    known = {name: kept[name] for name in ("flagged", "population", "sample", "low", "high")}
    return Stratum(**known, subjects=tuple((int(d), int(i)) for d, i in kept.get("subjects", ())))


def open_items(connection: Connection, version: Version) -> int:
    """Count the drawn drops of a version that wait for an answer."""
    waiting = sa.and_(
        review_item.c.answered_at.is_(None),
        review_item.c.stream == str(Stream.AUDIT),
        review_item.c.model_version_id == version.id,
    )
    return int(connection.execute(sa.select(sa.func.count()).select_from(review_item).where(waiting)).scalar_one())


def lost(connection: Connection, drawn: Round) -> bool:
    """Return whether items of a draw were removed, so that it can never be answered whole."""
    found = _items(connection, drawn)
    return any(sum(subject in found for subject in stratum.subjects) < stratum.sample for stratum in drawn.strata)


def _items(connection: Connection, drawn: Round) -> dict[tuple[int, int], Any]:
    """Read the items of a draw that are there, by drop and inspection."""
    item = review_item.c
    statement = sa.select(item.drop_id, item.inspection_id, item.image_id, item.answer)
    of_audits = statement.where(item.stream == str(Stream.AUDIT))
    ids = sorted({drop_id for stratum in drawn.strata for drop_id, _ in stratum.subjects})
    rows = select_in(connection, of_audits, item.drop_id, ids)
    return {(int(row.drop_id), int(row.inspection_id)): row for row in rows}


def tallies(connection: Connection, drawn: Round) -> list[StratumAnswers]:
    """Tally the answers of a draw, stratum by stratum.

    An answer is the present label of the drop at that inspection, from whatever way and time. Within a
    stratum only what comes before the first open item counts.
    """
    answers = _answers(connection, _items(connection, drawn))
    return [_tally(stratum, [answers.get(subject) for subject in stratum.subjects]) for stratum in drawn.strata]


def _tally(stratum: Stratum, answers: list[str | None]) -> StratumAnswers:
    in_turn = list(takewhile(lambda answer: answer is not None, answers))
    is_open = answers.count(None)
    skipped = in_turn.count(queue.SKIPPED)
    return StratumAnswers(
        stratum.flagged,
        stratum.population,
        stratum.sample,
        answered=len(in_turn) - skipped,
        crystals=in_turn.count(DropClass.CRYSTALS),
        skipped=skipped,
        open=is_open,
        waiting=len(answers) - len(in_turn) - is_open,
        low=stratum.low,
        high=stratum.high,
    )


def _answers(connection: Connection, items: dict[tuple[int, int], Any]) -> dict[tuple[int, int], str]:
    """Read the present labels of these items, or their skips; open ones are left out.

    An item whose answer was withdrawn is not asked again, and counts as skipped. A label that was given to several
    drops at once is none here: perhaps no one looked at the drop.
    """
    labelled: dict[tuple[int, int], votes.DropVotes] = {}
    for part in parts(sorted({drop_id for drop_id, _ in items})):
        labelled |= votes.of_drops(connection, part, singly=True)
    found: dict[tuple[int, int], str] = {}
    for subject, row in items.items():
        given = labelled.get(subject, votes.NO_VOTES)
        verdict = given.majority({row.image_id: row.image_id not in given.of_images})
        if verdict is not None:
            found[subject] = str(verdict.label)
        elif row.answer is not None:
            found[subject] = queue.SKIPPED
    return found

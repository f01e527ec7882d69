"""Counts of a challenger's and the champion's predictions for the same new images."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import parts
from marcod.database.schema import image, job, score
from marcod.domain import DropClass
from marcod.store import votes
from marcod.store.selects import IS_COUNTED, current_score, is_hit
from marcod.store.versions import Version


@dataclass(frozen=True, slots=True)
class Both:
    """Counts of images that both versions scored; ``failed`` are those that only the challenger could not score.

    ``crystals`` counts the drops labelled as crystals since, and which of the two flagged them.
    """

    images: int
    champion_hits: int
    challenger_hits: int
    failed: int
    crystals: int
    champion_found: int
    challenger_found: int


def compare(connection: Connection, champion: Version, challenger: Version, since: datetime) -> Both:
    """Count what both predicted for images since then."""
    theirs, ours = score.alias("theirs"), score.alias("ours")
    rows = connection.execute(
        sa.select(image.c.drop_id, image.c.inspection_id, ours.c.p_crystals, theirs.c.p_crystals.label("new"))
        .select_from(image)
        .join(theirs, current_score(challenger.id, theirs))
        .join(ours, current_score(champion.id, ours))
        .where(image.c.seen_at >= since, IS_COUNTED)
    ).all()
    mine, new = champion.crystal_threshold, challenger.crystal_threshold
    flags = [(r.drop_id, r.inspection_id, is_hit(r.p_crystals, mine), is_hit(r.new, new)) for r in rows]
    labelled = {
        (vote.drop_id, vote.inspection_id)
        for part in parts(sorted({row.drop_id for row in rows}))
        for vote in votes.current(connection, drop_ids=part)
        if vote.label is DropClass.CRYSTALS
    }
    crystals = [(old, new) for drop_id, inspection_id, old, new in flags if (drop_id, inspection_id) in labelled]
    return Both(
        images=len(flags),
        champion_hits=sum(old for _, _, old, _ in flags),
        challenger_hits=sum(new for _, _, _, new in flags),
        failed=_failed(connection, champion, challenger, since),
        crystals=len(crystals),
        champion_found=sum(old for old, _ in crystals),
        challenger_found=sum(new for _, new in crystals),
    )


def _failed(connection: Connection, champion: Version, challenger: Version, since: datetime) -> int:
    by_champion = sa.exists().where(score.c.image_id == job.c.image_id, score.c.model_version_id == champion.id)
    statement = (
        sa.select(sa.func.count())
        .select_from(job)
        .where(
            job.c.model_version_id == challenger.id,
            job.c.failed_at.is_not(None),
            job.c.enqueued_at >= since,
            by_champion,
        )
    )
    return int(connection.execute(statement).scalar_one())

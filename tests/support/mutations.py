"""Rules of the derived rows, each broken by hand as somebody might break it, to see that the stories find it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from marcod.catalog import deliveries
from marcod.database.schema import model_version
from marcod.store import (
    copies,
    drops,
    events,
    promotions,
    queue,
    results,
    serving,
    summaries,
    verdicts,
    versions,
    votes,
)


def _only_gone(connection: sa.Connection, given_up: Any, before: Any, now: datetime) -> bool:
    gone = [f.claim.image_id for f in given_up if f.error == queue.GONE]
    results.mark_gone(connection, gone, now)
    return bool(gone)


def _first_image_alone(images: Iterable[verdicts.ImageVerdict], words: votes.DropVotes) -> verdicts.DropVerdict:
    return verdicts.of_drop(list(images)[:1], words)


def _with_rows_of_those_that_spoke(connection: sa.Connection) -> set[int]:
    spoke = sa.select(model_version.c.id).where(model_version.c.promoted_at.is_not(None))
    return set(connection.execute(spoke).scalars())


MUTATIONS: Final[dict[str, tuple[Any, str, Any]]] = {
    "drops follow for the champion alone": (drops, "existing", lambda *_: set()),
    "summaries follow for who scores alone": (summaries, "existing", lambda *_: {}),
    "a score of former bytes counts for bytes that failed": (results, "give_up", _only_gone),
    "a copy counts beside its original": (copies, "find", lambda *_: False),
    "what a copy stood for is forgotten": (copies, "release", lambda *_: []),
    "labels stay where an image was": (deliveries, "_move_labels", lambda *_: None),
    "a promotion queues nothing that the former champion began": (serving, "_plates_to_do", lambda *_: []),
    "failures of a former champion go on counting": (serving, "_forget_failures", lambda *_: None),
    "completion is told to nobody": (events, "completed", lambda *_: None),
    "summaries know nothing of labels": (votes, "of_inspection", lambda *_: {}),
    "the first image of a drop counts": (drops, "of_drop", _first_image_alone),
    "a promotion makes no rows": (promotions, "_work_out", lambda *_: None),
    "rows that a silent version has are left as they are": (drops, "existing_of", lambda *_: set()),
    "who becomes champion is silent until it is": (versions, "with_rows", _with_rows_of_those_that_spoke),
    "a hit never ends": (drops, "_end_hits", lambda *_: None),
}
"""By what is broken: module, function, and what stands in its place."""


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Break one rule for a while."""
    module, function, instead = MUTATIONS[name]
    right = getattr(module, function)
    setattr(module, function, instead)
    try:
        yield
    finally:
        setattr(module, function, right)

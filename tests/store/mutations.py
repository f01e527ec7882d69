"""Rules of the derived rows, each broken by hand as somebody might break it, to see that the stories find it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from marcod.store import catalog, copies, drops, queue, results, serving, summaries
from marcod.store.schema import model_version


def _only_gone(connection: sa.Connection, given_up: Any, before: Any, now: datetime) -> bool:
    gone = [f.claim.image_id for f in given_up if f.error == queue.GONE]
    results.mark_gone(connection, gone, now)
    return bool(gone)


def _only_crowned(connection: sa.Connection, version: Any, now: datetime) -> None:
    connection.execute(sa.update(model_version).where(model_version.c.id == version.id).values(promoted_at=now))


def _only_queued(connection: sa.Connection, now: datetime, image_ids: Any = None, limit: int = 500) -> int:
    queue.retry(connection, now, image_ids)
    return 0


MUTATIONS: Final[dict[str, tuple[Any, str, Any]]] = {
    "drops follow for the champion alone": (drops, "existing", lambda *_: set()),
    "summaries follow for who scores alone": (summaries, "existing", lambda *_: {}),
    "a score of former bytes counts for bytes that failed": (results, "give_up", _only_gone),
    "a copy counts beside its original": (copies, "find", lambda *_: False),
    "what a copy stood for is forgotten": (copies, "release", lambda *_: []),
    "labels stay where an image was": (catalog, "_move_labels", lambda *_: None),
    "a promotion queues nothing that the former champion began": (serving, "_plates_to_do", lambda *_: []),
    "hits of a challenger are never told": (serving, "_publish_hits", _only_crowned),
    "completion is forgotten and told again": (summaries, "_completed", lambda *_: {}),
    "a retry leaves the counts as they are": (results, "retry_failed", _only_queued),
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

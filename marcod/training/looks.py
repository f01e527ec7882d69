"""Looks at a test side: candidates that were judged before on drops that it has.

A look counts as the share of this test side's drops that were labelled when its labels were frozen, of all drops or of
those with crystals, whichever is more. So a test side that grows by a drop a night, or on which labels are swapped,
stays nearly the same one, and one that is wholly new has not been looked at.

Limits: a drop whose file was missing then counts as judged, because a label's time is known and a file's is not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from marcod.database.schema import dataset, label, model_version, source, training_run
from marcod.domain import DropClass
from marcod.training.run_rows import JUDGED
from marcod.training.snapshot import Item

PART: Final = 1000
"""Drops that one statement asks for."""


@dataclass(frozen=True, slots=True)
class Look:
    """Earlier look: the newest label in its data set, and the sources that it was limited to, if any."""

    last_label_id: int
    sources: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class JudgedDrops:
    """Drops of a test side: source [n], id of the first label [n], and whether it has crystals, bool [n]."""

    sources: Sequence[str]
    first_labels: NDArray[np.int64]
    crystals: NDArray[np.bool_]

    def shared(self, look: Look) -> float:
        """Return the share of these drops that an earlier look was at, 0 to 1."""
        seen = self.first_labels <= look.last_label_id
        if look.sources is not None:
            seen &= np.array([name in look.sources for name in self.sources], np.bool_)
        return max((float(seen[part].mean()) for part in (slice(None), self.crystals) if len(seen[part])), default=0.0)


def count(connection: Connection, run_id: int, modality: str, tested: Iterable[Item]) -> float:
    """Count the looks before this run at the test side with these images, of candidates for the same modality."""
    drops = _drops(connection, tested)
    return sum(drops.shared(look) for look in _earlier(connection, run_id, modality))


def _drops(connection: Connection, tested: Iterable[Item]) -> JudgedDrops:
    sources: dict[int, str] = {}
    crystals: set[int] = set()
    for item in tested:
        sources[item.drop_id] = item.source
        if item.label is DropClass.CRYSTALS:
            crystals.add(item.drop_id)
    first = _first_labels(connection, list(sources))
    never = np.iinfo(np.int64).max
    return JudgedDrops(
        list(sources.values()),
        np.array([first.get(drop_id, never) for drop_id in sources], np.int64),
        np.array([drop_id in crystals for drop_id in sources], np.bool_),
    )


def _first_labels(connection: Connection, drop_ids: Sequence[int]) -> dict[int, int]:
    """Find the first label of each drop, whatever it says: a look at a drop is one, whatever it was called then."""
    found: dict[int, int] = {}
    for start in range(0, len(drop_ids), PART):
        mine = label.c.drop_id.in_(drop_ids[start : start + PART])
        first = sa.select(label.c.drop_id, sa.func.min(label.c.id)).where(mine).group_by(label.c.drop_id)
        found |= {int(drop_id): int(label_id) for drop_id, label_id in connection.execute(first)}
    return found


def _earlier(connection: Connection, run_id: int, modality: str) -> list[Look]:
    """List the earlier looks; a model that is no longer known may have been for this modality."""
    parent = model_version.c.name + ":" + model_version.c.version
    judged = (
        sa.select(dataset.c.last_label_id, training_run.c.options)
        .join(dataset, dataset.c.id == training_run.c.dataset_id)
        .outerjoin(model_version, parent == training_run.c.parent)
        .where(
            training_run.c.id < run_id,
            training_run.c.state.in_(JUDGED),
            training_run.c.candidate.is_not(None),
            sa.or_(model_version.c.modality.is_(None), model_version.c.modality == modality),
            dataset.c.last_label_id.is_not(None),
        )
    )
    known = set(connection.execute(sa.select(source.c.name)).scalars())
    return [Look(int(last), _limited_to(options, known)) for last, options in connection.execute(judged)]


def _limited_to(options: dict[str, object], known: set[str]) -> frozenset[str] | None:
    """Return the sources that a run was limited to; None for all of them, and where one was renamed since."""
    asked = options.get("sources")
    names = frozenset(map(str, asked)) if isinstance(asked, (list, tuple)) else None
    return names if names and names <= known else None

"""Labels as the page asks for them: each once by its request, however often and at how many servers it is asked.

Guarantees:
- A request that comes again, at once or after years, adds nothing and gets the same answer.
- Taking a label back brings the label before it to count again; the history keeps both.
- A batch is stored whole or not at all; requests that cannot be are named, and the others are stored.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import select_in
from marcod.database.schema import image, label
from marcod.domain import DropClass
from marcod.labels import recorder
from marcod.store.votes import SEVERAL, NewLabel

SINGLE: Final = "web"
"""Origin of a label that was given to one drop on the page."""

UNDO: Final = " undo"
"""End of the origin of a row that takes a label back."""

MOST: Final = 1536
"""Requests of one batch: the drops of the largest plate."""

_TICK: Final = timedelta(microseconds=1)
_OTHER: Final = "this request was used for another label"


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """One answer of a person: a label, None for no label, or with ``undo`` the request whose label is taken back."""

    key: str
    drop_id: int
    inspection_id: int
    label: DropClass | None = None
    undo: str | None = None


@dataclass(frozen=True, slots=True)
class _Vote:
    """A label of the person on one drop at an inspection."""

    label: DropClass | None
    origin: str
    at: datetime
    request: str | None


def give(
    connection: Connection, requests: Sequence[LabelRequest], *, person: str, several: bool, now: datetime
) -> dict[str, str]:
    """Store a batch of requests. Returns the sentence of each that was refused, by its key.

    ``several`` says that the drops were chosen together. The drops, inspections and their images must be there.
    """
    known = _by_request(connection, [r.key for r in requests])
    places = _pictured(connection, requests)
    votes = _votes(connection, {r.drop_id for r in requests}, person)
    refused: dict[str, str] = {}
    new: list[NewLabel] = []
    seen: dict[str, LabelRequest] = {}
    for place, request in enumerate(requests):
        if seen.setdefault(request.key, request) is not request:
            if seen[request.key] != request:
                refused[request.key] = _OTHER
        elif request.key in known:
            if not _is_same(request, known[request.key], person):
                refused[request.key] = _OTHER
        elif (request.drop_id, request.inspection_id) not in places:
            refused[request.key] = "there is no image of this drop at this inspection"
        else:
            before = votes.setdefault((request.drop_id, request.inspection_id), [])
            given = _new(request, before, person, several=several, now=now + place * _TICK)
            if isinstance(given, str):
                refused[request.key] = given
                continue
            new.append(given)
            before.append(_Vote(given.label, given.origin, given.labelled_at, request.key))
    recorder.add(connection, new, now)
    return refused


def _new(
    request: LabelRequest, before: Sequence[_Vote], person: str, *, several: bool, now: datetime
) -> NewLabel | str:
    """Make the label of a request, or the sentence why there is none."""
    # A label dated after now, by a clock that was ahead, must not outlive this one.
    at = max([now, *(vote.at + _TICK for vote in before[-1:])])
    given = NewLabel(
        request.drop_id, request.inspection_id, request.label, person, at, SEVERAL if several else SINGLE,
        request=request.key,
    )  # fmt: skip
    if request.undo is None:
        return given
    standing = _standing(before)
    if all(vote.request != request.undo for vote in before):
        return "there is no such label of yours to take back"
    if not standing or standing[-1].request != request.undo:
        return "you have labelled this drop again since, so nothing was taken back"
    former = standing[-2] if len(standing) > 1 else None
    origin = former.origin.removesuffix(UNDO) if former else SINGLE
    kept = origin if origin.startswith((SINGLE, SEVERAL)) else SINGLE
    return replace(given, label=former.label if former else None, origin=kept + UNDO)


def _standing(votes: Sequence[_Vote]) -> list[_Vote]:
    """Choose the labels that were not taken back, the last one last."""
    found: list[_Vote] = []
    for vote in votes:
        if not vote.origin.endswith(UNDO):
            found.append(vote)
        elif found:
            found.pop()
    return found


def _by_request(connection: Connection, keys: Collection[str]) -> dict[str, Any]:
    return {row.request: row for row in select_in(connection, sa.select(label), label.c.request, keys)}


def _is_same(request: LabelRequest, row: Any, person: str) -> bool:
    """Tell if a stored row is of this request; one that took a label back has the label before it."""
    subject = (row.drop_id, row.inspection_id, row.person) == (request.drop_id, request.inspection_id, person)
    if request.undo is not None:
        return subject and row.origin.endswith(UNDO)
    return subject and row.label == (request.label and str(request.label)) and not row.origin.endswith(UNDO)


def _pictured(connection: Connection, requests: Sequence[LabelRequest]) -> set[tuple[int, int]]:
    """Find the drops and inspections of requests that have an image."""
    seen = sa.select(image.c.drop_id, image.c.inspection_id).distinct()
    seen = seen.where(image.c.inspection_id.in_(sorted({r.inspection_id for r in requests})))
    rows = select_in(connection, seen, image.c.drop_id, sorted({r.drop_id for r in requests}))
    return {(int(row.drop_id), int(row.inspection_id)) for row in rows}


def _votes(connection: Connection, drop_ids: Collection[int], person: str) -> dict[tuple[int, int], list[_Vote]]:
    """Read a person's labels of drops, not of single images, the oldest first, by drop and inspection."""
    columns = (
        label.c.drop_id, label.c.inspection_id, label.c.label, label.c.origin, label.c.labelled_at, label.c.request
    )  # fmt: skip
    theirs = sa.select(*columns).where(label.c.person == person, label.c.image_id.is_(None))
    found: dict[tuple[int, int], list[_Vote]] = {}
    for row in select_in(connection, theirs.order_by(label.c.labelled_at, label.c.id), label.c.drop_id, drop_ids):
        word = None if row.label is None else DropClass(row.label)
        vote = _Vote(word, row.origin, row.labelled_at, row.request)
        found.setdefault((row.drop_id, row.inspection_id), []).append(vote)
    return found

"""Labels, notes and marks that people set on the page. The person is the one whom the server knows."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from marcod import telemetry
from marcod.database.rows import select_in
from marcod.database.schema import drop, image, plate
from marcod.errors import NotFoundError
from marcod.labels import requests
from marcod.labels.requests import LabelRequest
from marcod.plates.harvest import MarkKind
from marcod.store import verdicts, versions, votes
from marcod.store.selects import SHOWN_INSPECTION
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version
from marcod.web import drop_marks, live
from marcod.web.access import User
from marcod.web.bodies import LabelsGiven, MarkGiven, body_of
from marcod.web.plate_cells import look_of, said
from marcod.web.queries import visible
from marcod.web.site import site_of, user_of

log = telemetry.logger(__name__)

FEW: Final = 50
"""Drops up to which each is read by itself; of more the whole inspection is."""


async def labels(request: Request) -> Response:
    """Store labels. Answers ``{saved: [{key, state, error?, now}]}``, in the order of what was sent.

    ``state`` is saved or refused, with its sentence. ``now`` says what counts of the drop at that inspection: the
    fields of ``plate_cells.Said``, ``drop`` and ``inspection``, and ``looks`` with letter and style for now and
    disagreement.
    """
    given = await body_of(request, LabelsGiven)
    site, user = site_of(request), user_of(request)
    saved = await run_in_threadpool(site.db.write, _store, user, given, site.db.now())
    live.wake(request)
    refused = sum(each["state"] == "refused" for each in saved)
    log.info("labels saved", user=user.name, labels=len(saved), refused=refused, drop=given.labels[0].drop)
    return JSONResponse({"saved": saved})


def _store(connection: Connection, user: User, given: LabelsGiven, now: Any) -> list[dict[str, Any]]:
    seen = _visible(connection, user, {each.drop for each in given.labels})
    wanted = [LabelRequest(g.key, g.drop, g.inspection, g.label, g.undo) for g in given.labels if g.drop in seen]
    several = given.several and len(given.labels) > 1
    refused = requests.give(connection, wanted, person=user.name, several=several, now=now)
    refused |= {g.key: "there is no such drop" for g in given.labels if g.drop not in seen}
    live.announce(connection)
    places = {(g.drop, g.inspection) for g in given.labels if g.key not in refused}
    current = states(connection, user, places)
    return [_answer(g.key, refused.get(g.key), current.get((g.drop, g.inspection))) for g in given.labels]


def _answer(key: str, refused: str | None, now: dict[str, Any] | None) -> dict[str, Any]:
    if refused is not None:
        return {"key": key, "state": "refused", "error": refused}
    return {"key": key, "state": "saved", "now": now}


def _visible(connection: Connection, user: User, drop_ids: Collection[int]) -> set[int]:
    its = sa.select(drop.c.id).join(plate, plate.c.id == drop.c.plate_id).where(visible(user))
    return {int(row.id) for row in select_in(connection, its, drop.c.id, sorted(drop_ids))}


def states(
    connection: Connection, user: User, places: Collection[tuple[int, int]]
) -> dict[tuple[int, int], dict[str, Any]]:
    """Read what counts of drops at inspections, as the answers to labels tell it."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for inspection_id in sorted({inspection_id for _, inspection_id in places}):
        drop_ids = sorted({drop_id for drop_id, at in places if at == inspection_id})
        version = _version_at(connection, inspection_id)
        audits = drop_marks.asked_in_audit(connection, user, inspection_id)
        for verdict in _verdicts(connection, inspection_id, drop_ids, version):
            drop_id = verdict.image.drop_id
            now = said(verdict, version, user, hidden=drop_id in audits)
            looks = {by: look_of(now, by) for by in ("now", "disagreement")}
            found[drop_id, inspection_id] = {"drop": drop_id, "inspection": inspection_id, **now, "looks": looks}
    return found


def _version_at(connection: Connection, inspection_id: int) -> Version:
    """Return the model version that the views show for the inspection."""
    shown = sa.select(SHOWN_INSPECTION.c.model_version_id).where(SHOWN_INSPECTION.c.inspection_id == inspection_id)
    version_id = connection.execute(shown).scalars().first()
    return versions.champion(connection) if version_id is None else versions.get(connection, version_id)


def _verdicts(
    connection: Connection, inspection_id: int, drop_ids: Sequence[int], version: Version
) -> list[DropVerdict]:
    if len(drop_ids) > FEW:
        return [v for v in verdicts.drops_at(connection, inspection_id, version) if v.image.drop_id in set(drop_ids)]
    given = votes.of_drops(connection, drop_ids)
    images = verdicts.of_drops(connection, drop_ids, version, given.keys())
    of_here = {drop_id: votes_ for (drop_id, at), votes_ in given.items() if at == inspection_id}
    return verdicts.by_drop((i for i in images if i.inspection_id == inspection_id), of_here)


async def marks(request: Request) -> Response:
    """Store a note or mark. Answers ``{saved: {key, state, harvested, followed, marks}}``, all marks latest first."""
    given = await body_of(request, MarkGiven)
    site, user = site_of(request), user_of(request)
    if given.kind == MarkKind.NOTE and not given.text.strip():
        raise HTTPException(400, "a note has a text")
    if any(not (letter.isprintable() or letter in "\n\t") for letter in given.text):
        raise HTTPException(400, "the text holds characters that cannot be printed")
    saved = await run_in_threadpool(site.db.write, _mark, user, given, site.db.now())
    live.wake(request)
    log.info("mark saved", user=user.name, drop=given.drop, kind=given.kind)
    return JSONResponse({"saved": saved})


def _mark(connection: Connection, user: User, given: MarkGiven, now: Any) -> dict[str, Any]:
    there = sa.exists().where(image.c.drop_id == given.drop, image.c.inspection_id == given.inspection)
    if given.drop not in _visible(connection, user, {given.drop}) or not connection.scalar(sa.select(there)):
        raise NotFoundError("there is no image of this drop at this inspection")
    if given.kind in ("follow", "unfollow"):
        drop_marks.set_followed(connection, given.drop, user.name, now, followed=given.kind == "follow")
    else:
        kind, text = MarkKind(given.kind), given.text.strip()
        row = drop_marks.add(
            connection, kind, given.drop, given.inspection, text, person=user.name, request=given.key, now=now
        )
        if row is None or (row.drop_id, row.kind, row.text, row.person) != (given.drop, kind, text, user.name):
            raise HTTPException(409, "this request was used for another mark")
    live.announce(connection)
    found = drop_marks.of_drop(connection, user, given.drop)
    return {
        "key": given.key,
        "state": "saved",
        "harvested": given.drop in found.harvested,
        "followed": given.drop in found.followed,
        "marks": drop_marks.as_json(drop_marks.history(connection, given.drop)),
    }


ROUTES: Final[list[BaseRoute]] = [
    Route("/api/labels", labels, methods=["POST"]),
    Route("/api/marks", marks, methods=["POST"]),
]

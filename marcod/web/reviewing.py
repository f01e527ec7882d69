"""The review on the page: one drop after the other with its reason.

A drop of a random audit comes without anything that a model says of it, until the person who holds it has answered.
"""

from collections.abc import Sequence
from typing import Any, Final, TypedDict

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from marcod import telemetry
from marcod.database.schema import drop, plate
from marcod.domain import DropClass, drop_name, path_text
from marcod.errors import NotFoundError
from marcod.review import desk, queue
from marcod.review.queue import ReviewItem, Stream
from marcod.text import printable
from marcod.web import labelling, live
from marcod.web.access import User
from marcod.web.bodies import ItemAnswered, ItemReopened, ItemsReleased, NextWanted, body_of
from marcod.web.drop_view import Photograph, photographs, probabilities_of
from marcod.web.queries import visible
from marcod.web.site import Site, render, site_of, user_of

log = telemetry.logger(__name__)

SKIP: Final = "skip"


class ReviewCard(TypedDict):
    """One item of the review.

    ``stream`` is threshold, disagreement, audit or manual, ``reason`` one sentence. ``plate`` has source, key and name;
    ``name`` is the drop's, such as A01.2, ``inspection_name`` the inspection's number or key. ``images`` are as on the
    page of a drop, that of the question first. ``probabilities`` are by class, empty where there is no score and in a
    random audit before the answer; ``model`` is None there too. ``answer`` is the class, skip, or None.
    ``um_per_px`` is None where nobody configured it.
    """

    item: int
    stream: str
    reason: str
    drop: int
    inspection: int
    plate: dict[str, Any]
    name: str
    inspection_name: str
    images: list[Photograph]
    probabilities: dict[str, float]
    model: str | None
    answer: str | None
    um_per_px: float | None


def review(request: Request) -> Response:
    """Show the review; ``waiting`` counts open items by stream, for whose first the browser asks by itself."""
    site = site_of(request)
    counts = site.db.read(queue.counts, site.db.now())
    waiting = {str(stream): each.open for stream, each in counts.items()}
    return render(request, "review.html", waiting=waiting)


async def next_item(request: Request) -> Response:
    """Claim an item. Answers ``{item: ReviewCard or null}``; null where nothing waits for this person."""
    wanted = await body_of(request, NextWanted)
    site, user = site_of(request), user_of(request)

    def work() -> ReviewCard | None:
        item = desk.next_item(site.db, site.settings.review, user.name, site.db.now(), besides=wanted.besides)
        return None if item is None else site.db.read(card, site, user, item)

    return JSONResponse({"item": await run_in_threadpool(work)})


async def answer(request: Request) -> Response:
    """Store an answer. Answers ``{saved: {key, state, now, item}}``, with what the model said."""
    given = await body_of(request, ItemAnswered)
    site, user = site_of(request), user_of(request)
    saved = await run_in_threadpool(_answer, site, user, given)
    live.wake(request)
    log.info("review answered", user=user.name, item=given.item)
    return JSONResponse({"saved": saved})


def _answer(site: Site, user: User, given: ItemAnswered) -> dict[str, Any]:
    item = desk.one(site.db, given.item)
    site.db.read(_require_visible, user, item)
    if given.answer == SKIP:
        if item.person != user.name:
            raise HTTPException(409, "somebody else has this drop now; ask for the next one")
        desk.skip(site.db, item, user.name, site.db.now())
    else:
        desk.answer(site.db, item, DropClass(given.answer), user.name, site.db.now(), given.key)
    site.db.write(live.announce)
    return {"key": given.key, "state": "saved", **_after(site, user, given.item)}


def _after(site: Site, user: User, item_id: int) -> dict[str, Any]:
    """Describe an item and its drop, after an answer or without it again."""

    def work(connection: Connection) -> dict[str, Any]:
        (item,) = queue.items(connection, [item_id])
        place = (item.drop_id, item.inspection_id)
        now = labelling.states(connection, user, {place}).get(place)
        return {"now": now, "item": card(connection, site, user, item)}

    return site.db.read(work)


async def undo(request: Request) -> Response:
    """Take an answer or a skip back; the item is this person's again. Answers ``{saved: {state, now, item}}``."""
    given = await body_of(request, ItemReopened)
    site, user = site_of(request), user_of(request)
    saved = await run_in_threadpool(_undo, site, user, given.item)
    live.wake(request)
    log.info("review answer taken back", user=user.name, item=given.item)
    return JSONResponse({"saved": saved})


def _undo(site: Site, user: User, item_id: int) -> dict[str, Any]:
    item = desk.one(site.db, item_id)
    site.db.read(_require_visible, user, item)
    again = item.answer is None and item.person == user.name
    word = DropClass(item.answer) if item.answer in list(DropClass) else None
    if not again and not desk.undo(site.db, item, word, user.name, site.db.now()):
        raise HTTPException(409, "this answer is not yours, or was changed since, so nothing was taken back")
    site.db.write(live.announce)
    return {"state": "saved", **_after(site, user, item_id)}


async def release(request: Request) -> Response:
    """Give items back that this person does not answer now. Answers ``{}``."""
    given = await body_of(request, ItemsReleased)
    site, user = site_of(request), user_of(request)

    def work(connection: Connection) -> None:
        queue.release(connection, given.items, user.name)

    await run_in_threadpool(site.db.write, work)
    return JSONResponse({})


def card(connection: Connection, site: Site, user: User, item: ReviewItem) -> ReviewCard:
    """Describe an item for this person. Raises NotFoundError for one that is not theirs to see."""
    _require_visible(connection, user, item)
    asked = item.stream is Stream.AUDIT and item.answer is None
    its_source = site.settings.sources.get(item.source)
    return {
        "item": item.item_id,
        "stream": str(item.stream),
        "reason": item.reason,
        "drop": item.drop_id,
        "inspection": item.inspection_id,
        "plate": {"source": item.source, "key": item.plate_key, "name": printable(item.barcode or item.plate_key)},
        "name": drop_name(item.well, item.drop_number),
        "inspection_name": str(item.inspection_ordinal or printable(path_text(item.inspection_key))),
        "images": _first(photographs(connection, item.drop_id, item.inspection_id), item.image_id),
        "probabilities": {} if asked else probabilities_of(item),
        "model": None if asked else item.model,
        "answer": SKIP if item.answer == queue.SKIPPED else item.answer,
        "um_per_px": its_source.um_per_px if its_source else None,
    }


def _first(images: Sequence[Photograph], image_id: int) -> list[Photograph]:
    return sorted(images, key=lambda each: each["image"] != image_id)


def _require_visible(connection: Connection, user: User, item: ReviewItem) -> None:
    its = sa.select(drop.c.id).join(plate, plate.c.id == drop.c.plate_id).where(drop.c.id == item.drop_id)
    if connection.execute(its.where(visible(user))).first() is None:
        raise NotFoundError("there is no such item")


ROUTES: Final[list[BaseRoute]] = [
    Route("/review", review),
    Route("/api/review/next", next_item, methods=["POST"]),
    Route("/api/review/answer", answer, methods=["POST"]),
    Route("/api/review/undo", undo, methods=["POST"]),
    Route("/api/review/release", release, methods=["POST"]),
]

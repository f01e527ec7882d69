"""The drops before and after a drop, in the order of the list that a person came from.

A label may take a drop out of the list; its neighbours stay those that it had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypedDict
from urllib.parse import urlencode

from sqlalchemy.engine import Connection

from marcod.domain import drop_name
from marcod.settings import WebSettings
from marcod.text import printable
from marcod.web.access import User
from marcod.web.drop_view import DropView
from marcod.web.hit_list import HitFilter, HitRow, around
from marcod.web.image_address import ImageSize
from marcod.web.plate_cells import MapCell, PlateChoice, look_of, ordered
from marcod.web.plate_view import plate_view

HITS: Final = 300
"""Hits that one may move through without loading the page again."""

AHEAD: Final = 3
"""Images that a browser loads before they are asked for."""


class Neighbour(TypedDict):
    """A drop in the list: its page, and its image at 1024 pixels where it has one."""

    drop: int
    inspection: int
    address: str
    view: str | None


class Neighbours(TypedDict):
    """Neighbours of a drop, None at the ends; ``ahead`` are the next ones, ``place`` of ``total`` counts from 1.

    ``query`` is what the address of every drop of this list ends in, without ``?``.
    """

    first: Neighbour | None
    previous: Neighbour | None
    next: Neighbour | None
    last: Neighbour | None
    ahead: list[Neighbour]
    place: int
    total: int
    query: str


class ListedDrop(TypedDict):
    """A drop in the list with what the drop's page shows of it before anything more is loaded.

    ``p`` is the probability of Crystals, ``label`` what counts and ``mine`` what the asking person said.
    """

    drop: int
    inspection: int
    name: str
    view: str | None
    thumb: str | None
    state: str
    p: float | None
    label: str | None
    mine: str | None
    letter: str
    style: str
    address: str


class Order(TypedDict):
    """The whole list that a drop's page moves in; ``query`` is as in ``Neighbours``."""

    query: str
    entries: list[ListedDrop]


def of_plate(
    connection: Connection,
    user: User,
    settings: WebSettings,
    plate_id: int,
    drop_id: int,
    inspection_id: int,
    query: Mapping[str, str],
) -> Order:
    """List the drops that the plate's page shows with this choice, and the drop itself at its place among them."""
    choice = PlateChoice.of(query)
    shown = plate_view(connection, user, settings, plate_id, inspection_id, replace(choice, by="now"))
    text = urlencode({"from": "plate", **choice.query(), "inspection": inspection_id})
    cells = [cell for cell in ordered(shown["cells"], choice.sort) if cell["shown"] or cell["drop"] == drop_id]
    return {"query": text, "entries": [_entry(cell, inspection_id, text) for cell in cells]}


def _entry(cell: MapCell, inspection_id: int, query: str) -> ListedDrop:
    return {
        "drop": cell["drop"],
        "inspection": inspection_id,
        "name": drop_name(cell["well"], cell["number"]),
        "view": cell["view"],
        "thumb": cell["thumb"],
        "state": cell["state"],
        "p": cell["p"],
        "label": cell["label"],
        "mine": cell["mine"],
        "letter": cell["letter"],
        "style": cell["style"],
        "address": f"/drop/{cell['drop']}?{query}",
    }


def of_hits(connection: Connection, user: User, shown: DropView, query: Mapping[str, str], now: datetime) -> Order:
    """List the hits of the gallery with these filters, and the drop itself, before them where they have it not."""
    chosen, text = HitFilter.of(query), _hits_query(query)
    rows = around(connection, user, chosen, shown["drop"]["id"], now, HITS)
    entries = [_hit_entry(row, user, text) for row in rows]
    if all(entry["drop"] != shown["drop"]["id"] for entry in entries):
        entries.insert(0, _own_entry(shown, text))
    return {"query": text, "entries": entries}


def _hits_query(query: Mapping[str, str]) -> str:
    filters = HitFilter.of(query).query(after="")
    return f"from=hits&{filters}" if filters else "from=hits"


def _hit_entry(row: HitRow, user: User, query: str) -> ListedDrop:
    return {
        "drop": row.drop_id,
        "inspection": row.inspection_id,
        "name": printable(f"{row.plate} {drop_name(row.well, row.drop_number)}"),
        "view": row.thumb and row.thumb.replace(f"/{ImageSize.THUMB}/", f"/{ImageSize.VIEW}/"),
        "thumb": row.thumb,
        "state": "scored",
        "p": row.p_crystals,
        "label": row.label,
        "mine": row.label if row.label_person == user.name else None,
        "letter": "X",
        "style": "hit",
        "address": f"/drop/{row.drop_id}?{query}&inspection={row.inspection_id}",
    }


def _own_entry(shown: DropView, query: str) -> ListedDrop:
    """Describe the drop that is shown, which its list has not or not any more."""
    look = next(look for look in shown["looks"] if look["inspection"] == shown["inspection"])
    letter, style = look_of(look, "now")
    return {
        "drop": shown["drop"]["id"],
        "inspection": shown["inspection"],
        "name": printable(f"{shown['plate']['name']} {shown['drop']['name']}"),
        "view": look["images"][0]["view"],
        "thumb": look["images"][0]["thumb"],
        "state": look["state"],
        "p": look["p"],
        "label": look["label"],
        "mine": look["mine"],
        "letter": letter,
        "style": style,
        "address": f"/drop/{shown['drop']['id']}?{query}&inspection={shown['inspection']}",
    }


def in_hits(connection: Connection, user: User, shown: DropView, query: Mapping[str, str], now: datetime) -> Neighbours:
    """Find the neighbours in the gallery of hits with these filters."""
    found = of_hits(connection, user, shown, query, now)
    entries = found["entries"]
    at = next(place for place, entry in enumerate(entries) if entry["drop"] == shown["drop"]["id"])
    before, after = ([_of_entry(entry) for entry in part] for part in (entries[:at], entries[at + 1 :]))
    return {
        "first": before[0] if before else None,
        "previous": before[-1] if before else None,
        "next": after[0] if after else None,
        "last": after[-1] if after else None,
        "ahead": after[:AHEAD],
        "place": at + 1,
        "total": len(entries),
        "query": f"{found['query']}&inspection={shown['inspection']}",
    }


def _of_entry(entry: ListedDrop) -> Neighbour:
    return {
        "drop": entry["drop"],
        "inspection": entry["inspection"],
        "address": entry["address"],
        "view": entry["view"],
    }


def on_plate(
    connection: Connection,
    user: User,
    settings: WebSettings,
    plate_id: int,
    drop_id: int,
    inspection_id: int,
    query: Mapping[str, str],
) -> Neighbours:
    """Find the neighbours on the plate's page with this choice, at the inspection that it showed."""
    choice = PlateChoice.of(query)
    shown = plate_view(connection, user, settings, plate_id, inspection_id, choice)
    return among(ordered(shown["cells"], choice.sort), drop_id, inspection_id, {"from": "plate", **choice.query()})


def among(cells: Sequence[MapCell], drop_id: int, inspection_id: int, query: Mapping[str, Any]) -> Neighbours:
    """Find the neighbours of a drop among cells in their order; those that are not shown are passed over."""
    text = urlencode({**query, "inspection": inspection_id})
    at = next((place for place, cell in enumerate(cells) if cell["drop"] == drop_id), len(cells))
    before = [_neighbour(cell, inspection_id, text) for cell in cells[:at] if cell["shown"]]
    after = [_neighbour(cell, inspection_id, text) for cell in cells[at + 1 :] if cell["shown"]]
    itself = at < len(cells) and cells[at]["shown"]
    return {
        "first": before[0] if before else None,
        "previous": before[-1] if before else None,
        "next": after[0] if after else None,
        "last": after[-1] if after else None,
        "ahead": after[:AHEAD],
        "place": len(before) + 1,
        "total": len(before) + len(after) + itself,
        "query": text,
    }


def _neighbour(cell: MapCell, inspection_id: int, query: str) -> Neighbour:
    address = f"/drop/{cell['drop']}?{query}"
    return {"drop": cell["drop"], "inspection": inspection_id, "address": address, "view": cell["view"]}

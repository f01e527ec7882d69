"""The drops before and after a drop, in the order of the list that a person came from.

A label may take a drop out of the list; its neighbours stay those that it had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypedDict
from urllib.parse import urlencode

from sqlalchemy.engine import Connection

from marcod.domain import drop_name
from marcod.settings import WebSettings
from marcod.web.access import User
from marcod.web.plate_cells import MapCell, PlateChoice, ordered
from marcod.web.plate_view import plate_view

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


class Entry(TypedDict):
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
    entries: list[Entry]


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


def _entry(cell: MapCell, inspection_id: int, query: str) -> Entry:
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

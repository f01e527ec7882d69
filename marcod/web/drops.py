"""Pages of a plate and of a drop, and the same as JSON."""

from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy.engine import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from marcod.errors import NotFoundError
from marcod.web import orders
from marcod.web.drop_view import DropView, drop_view
from marcod.web.hit_list import HitFilter
from marcod.web.map_rows import map_rows
from marcod.web.plate_cells import BYS, LOOKS_OF_CLASS, SHOWS, SORTS, PlateChoice, legend, ordered
from marcod.web.plate_view import find_plate, inspection_named, plate_view
from marcod.web.site import Site, render, site_of, user_of

LARGEST_ID: Final = 2**63 - 1


def number(text: str | None) -> int | None:
    """Read an id of an address; None for none. Raises NotFoundError for what no row can have."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= LARGEST_ID):
        raise NotFoundError("there is nothing at this address")
    return int(text)


def plate(request: Request) -> Response:
    """Show a plate: ``shown`` is its ``PlateView``; ``bys``, ``sorts`` and ``classes`` are the possible choices.

    ``rows`` are those of the map, ``gallery`` the drops that are shown in their order, ``query`` what a drop's address
    ends in.
    """
    site, choice = site_of(request), PlateChoice.of(request.query_params)
    source, rest = request.path_params["source"], request.path_params["rest"]

    def work(connection: Connection) -> Any:
        plate_id, named = _plate_named(connection, request, source, rest)
        inspection_id = None if named is None else inspection_named(connection, plate_id, named)
        return plate_view(connection, user_of(request), site.settings.web, plate_id, inspection_id, choice)

    shown = site.db.read(work)
    explained = legend(choice.by, shown["model"]["rule"])
    query = urlencode({"from": "plate", **choice.query(), "inspection": shown["inspection"]})
    rows = map_rows(shown["cells"], shown["grid"])
    gallery = [cell for cell in ordered(shown["cells"], choice.sort) if cell["shown"]]
    lists: dict[str, Any] = {"rows": rows, "gallery": gallery, "bys": BYS, "sorts": SORTS, "classes": SHOWS}
    lists |= {"legend": explained, "looks_of_class": LOOKS_OF_CLASS}
    return render(request, "plate.html", shown=shown, query=query, now=site.db.now(), **lists)


def _plate_named(connection: Connection, request: Request, source: str, rest: str) -> tuple[int, str | None]:
    """Find the plate of an address, and the inspection that follows it; a key may have slashes itself."""
    try:
        return find_plate(connection, user_of(request), source, rest), None
    except NotFoundError:
        key, slash, inspection = rest.rpartition("/")
        if not slash:
            raise
        return find_plate(connection, user_of(request), source, key), inspection


def plate_json(request: Request) -> Response:
    """Answer with a ``PlateView``."""
    site, choice = site_of(request), PlateChoice.of(request.query_params)
    plate_id, inspection_id = (number(request.path_params.get(name)) for name in ("plate", "inspection"))
    assert plate_id is not None
    found = site.db.read(plate_view, user_of(request), site.settings.web, plate_id, inspection_id, choice)
    return JSONResponse(found)


def drop(request: Request) -> Response:
    """Show a drop: ``shown`` is its ``DropView``, ``beside`` that of ``compare``, ``neighbours`` those of the list.

    With ``part=panel`` the answer is what changes from drop to drop, without the list.
    """
    site = site_of(request)
    if request.query_params.get("part") == "panel":
        shown, beside = site.db.read(_shown, request, site)
        values: dict[str, Any] = {"shown": shown, "beside": beside, "places": _places(request, shown)}
        return render(request, "drop_panel.html", now=site.db.now(), **values)
    shown, beside, neighbours = site.db.read(_drop, request, site)
    values = {"shown": shown, "beside": beside, "neighbours": neighbours, "places": _places(request, shown)}
    section = "/hits" if request.query_params.get("from") == "hits" else "/"
    return render(request, "drop.html", now=site.db.now(), section=section, **values)


def _places(request: Request, shown: DropView) -> dict[str, str | None]:
    """Return the addresses of the ``plate`` at this inspection, and of the ``hits`` where one came from there."""
    query, its = request.query_params, shown["plate"]
    from_hits = query.get("from") == "hits"
    key = next(look["key"] for look in shown["looks"] if look["inspection"] == shown["inspection"])
    choice = {} if from_hits else PlateChoice.of(query).query()
    plate_ = "/".join(quote(part) for part in ("plate", its["source"], its["key"], key))
    filters = HitFilter.of(query).query(after="")
    return {
        "plate": f"/{plate_}?{urlencode(choice)}".rstrip("?"),
        "hits": f"/hits?{filters}".rstrip("?") if from_hits else None,
    }


def drop_json(request: Request) -> Response:
    """Answer with a ``DropView``, and its ``Neighbours`` under ``neighbours``."""
    site = site_of(request)
    shown, beside, neighbours = site.db.read(_drop, request, site)
    return JSONResponse({**shown, "beside": beside, "neighbours": neighbours})


def order_json(request: Request) -> Response:
    """Answer with the ``Order`` that the drop's page moves in."""
    site, query = site_of(request), request.query_params
    drop_id = number(request.path_params["drop"])

    def work(connection: Connection) -> orders.Order:
        assert drop_id is not None
        shown = drop_view(connection, user_of(request), site.settings, drop_id, number(query.get("inspection")))
        if query.get("from") == "hits":
            return orders.of_hits(connection, user_of(request), shown, query, site.db.now())
        place = (shown["plate"]["id"], drop_id, shown["inspection"])
        return orders.of_plate(connection, user_of(request), site.settings.web, *place, query)

    return JSONResponse(site.db.read(work))


def _drop(connection: Connection, request: Request, site: Site) -> tuple[DropView, DropView | None, orders.Neighbours]:
    shown, beside = _shown(connection, request, site)
    user, query = user_of(request), request.query_params
    if query.get("from") == "hits":
        return shown, beside, orders.in_hits(connection, user, shown, query, site.db.now())
    place = (shown["plate"]["id"], shown["drop"]["id"], shown["inspection"])
    return shown, beside, orders.on_plate(connection, user, site.settings.web, *place, query)


def _shown(connection: Connection, request: Request, site: Site) -> tuple[DropView, DropView | None]:
    query, user = request.query_params, user_of(request)
    of = partial(drop_view, connection, user, site.settings)
    drop_id = number(request.path_params["drop"])
    assert drop_id is not None
    shown = of(drop_id, number(query.get("inspection")))
    other, at = number(query.get("compare")), number(query.get("at"))
    if other is None and at is not None and all(look["inspection"] != at for look in shown["looks"]):
        at = _before(shown)
    return shown, of(other or drop_id, at) if other or at else None


def _before(shown: DropView) -> int | None:
    """Return the inspection before the one shown, else the one after; comparing goes on from plate to plate so."""
    looks = [look["inspection"] for look in shown["looks"]]
    here = looks.index(shown["inspection"])
    return looks[here - 1] if here else next(iter(looks[1:]), None)


ROUTES: Final[list[BaseRoute]] = [
    Route("/plate/{source}/{rest:path}", plate),
    Route("/drop/{drop}", drop),
    Route("/api/plate/{plate}/{inspection}", plate_json),
    Route("/api/plate/{plate}", plate_json),
    Route("/api/drop/{drop}", drop_json),
    Route("/api/order/{drop}", order_json),
]

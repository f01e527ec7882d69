"""Pages that only show lists: plates and hits, and the same as CSV."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from marcod.plates import reports
from marcod.plates.plate_map import csv_text
from marcod.web import hit_list, plate_list, queries
from marcod.web.hit_list import HitFilter, HitRow
from marcod.web.plate_list import PlateFilter, PlateRow
from marcod.web.site import render, site_of, user_of

PLATE_COLUMNS: Final = tuple(field.name for field in dataclasses.fields(PlateRow) if field.name != "newest")
HIT_COLUMNS: Final = (*(field.name for field in dataclasses.fields(reports.Hit)), "followed")


def plates(request: Request) -> Response:
    """Show the list of plates, the latest first."""
    site, chosen = site_of(request), PlateFilter.of(request.query_params)
    now = site.db.now()
    page = site.db.read(plate_list.plates, user_of(request), chosen, now)
    return render(request, "plates.html", page=page, chosen=chosen, **_choices(request, chosen.since))


def plates_csv(request: Request) -> Response:
    """Send all plates that pass the filters."""
    site, chosen = site_of(request), PlateFilter.of(request.query_params)
    found = plate_list.all_plates(site.db, user_of(request), chosen, site.db.now())
    return _csv("plates.csv", PLATE_COLUMNS, found)


def hits(request: Request) -> Response:
    """Show the gallery of hits."""
    site, chosen = site_of(request), HitFilter.of(request.query_params)
    page = site.db.read(hit_list.hits, user_of(request), chosen, site.db.now())
    return render(request, "hits.html", page=page, chosen=chosen, **_choices(request, chosen.since))


def hits_csv(request: Request) -> Response:
    """Send all hits that pass the filters, with the columns of `marcod hits --export`."""
    site, chosen = site_of(request), HitFilter.of(request.query_params)
    return _csv("hits.csv", HIT_COLUMNS, hit_list.all_hits(site.db, user_of(request), chosen, site.db.now()))


def _choices(request: Request, since: str) -> dict[str, Any]:
    """Return what the form of the filters offers, and if a time cannot be read."""
    site = site_of(request)
    now = site.db.now()
    sources, projects = site.db.read(plate_list.choices)
    unread = bool(since) and queries.since(since, now) is None
    return {"sources": sources, "projects": projects, "unread_since": unread, "now": now}


def _csv(name: str, columns: tuple[str, ...], portions: Iterable[list[PlateRow] | list[HitRow]]) -> Response:
    def text() -> Iterator[str]:
        yield csv_text(columns, ())
        for rows in portions:
            records = ({column: getattr(row, column) for column in columns} for row in rows)
            yield csv_text(columns, records).partition("\n")[2]

    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(text(), media_type="text/csv; charset=utf-8", headers=headers)


ROUTES: Final[list[BaseRoute]] = [
    Route("/", plates),
    Route("/plates.csv", plates_csv),
    Route("/hits", hits),
    Route("/hits.csv", hits_csv),
]

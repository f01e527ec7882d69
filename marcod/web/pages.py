"""Pages that only show: plates, hits, models, status."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from marcod.web import plate_list, queries
from marcod.web.plate_list import PlateFilter
from marcod.web.site import render, site_of, user_of


def plates(request: Request) -> Response:
    """Show the list of plates, the latest first."""
    site, chosen = site_of(request), PlateFilter.of(request.query_params)
    now = site.db.now()
    page = site.db.read(plate_list.plates, user_of(request), chosen, now)
    sources, projects = site.db.read(plate_list.choices)
    unread = bool(chosen.since) and queries.since(chosen.since, now) is None
    shown: dict[str, Any] = {"page": page, "chosen": chosen, "sources": sources, "projects": projects, "now": now}
    return render(request, "plates.html", unread_since=unread, **shown)


ROUTES: Final[list[BaseRoute]] = [Route("/", plates)]

"""Pages that only show: plates, hits, models, status."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from marcod.web import queries
from marcod.web.site import render, site_of, user_of


def plates(request: Request) -> Response:
    """Show the list of plates, the latest first."""
    site = site_of(request)
    found = site.db.read(queries.plates, user_of(request))
    return render(request, "plates.html", plates=found, now=site.db.now())


ROUTES: Final[list[BaseRoute]] = [Route("/", plates)]

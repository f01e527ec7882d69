"""The application: every route, the guard before them, and what errors become."""

from typing import Final
from urllib.parse import unquote, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from marcod import telemetry
from marcod.database.engine import Database
from marcod.errors import MarcodError, NotFoundError, StoreError
from marcod.settings import Settings
from marcod.web import (
    drops,
    images,
    labelling,
    live,
    login,
    pages,
    reports,
    reviewing,
)
from marcod.web.access import Access, User, access_of
from marcod.web.safety import Safety
from marcod.web.site import STATIC, Site, is_for_programs, refusal, site_of, static, static_names

log = telemetry.logger(__name__)

OPEN: Final = ("/static/", "/login")
"""Paths that everybody may ask for; below the first one too."""

PERSON: Final = "X-Marcod-Person"
"""Header that names the person of the labels that a page sends, percent-encoded; another person's are refused."""

KEPT: Final = "public, max-age=31536000, immutable"


def build(settings: Settings, db: Database, access: Access | None = None) -> Starlette:
    """Build the page over a database that may be written. ``access`` is the settings' where none is given."""
    app = Starlette(
        routes=routes(),
        middleware=[Middleware(Safety, settings=settings.web), Middleware(Guard)],
        exception_handlers={HTTPException: _refused, MarcodError: _failed},
    )
    app.state.site = Site(settings, db, access or access_of(settings.web, db))
    app.state.imaging = images.Imaging.of(settings)
    app.state.pulse = live.Pulse(db)
    return app


def routes() -> list[BaseRoute]:
    """List every route of the page."""
    return [
        Route("/static/{digest}/{name}", asset),
        *login.ROUTES,
        *pages.ROUTES,
        *reports.ROUTES,
        *drops.ROUTES,
        *images.ROUTES,
        *labelling.ROUTES,
        *reviewing.ROUTES,
        *live.ROUTES,
    ]


class Guard:
    """Refusal of everybody who is not known, and of what a viewer may not do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if "\0" in scope["path"]:
            # PostgreSQL refuses it within a text, and no name of ours has it.
            await refusal(request, 404, "there is nothing at this address")(scope, receive, send)
            return
        if not _is_open(scope["path"]):
            try:
                user = await run_in_threadpool(site_of(request).access.who, request)
            except (HTTPException, MarcodError) as error:
                answer = _refused(request, error) if isinstance(error, HTTPException) else _failed(request, error)
                await answer(scope, receive, send)
                return
            if user is None:
                await _unknown(request)(scope, receive, send)
                return
            scope["marcod.user"] = user
            if sentence := _forbidden(request, user):
                await refusal(request, 403, sentence)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _forbidden(request: Request, user: User) -> str | None:
    """Return why a person may not do this, None where they may."""
    if request.method != "POST" or not request.url.path.startswith("/api/"):
        return None
    # Labels may wait in a browser in which somebody else logs in.
    meant = request.headers.get(PERSON)
    if meant is not None and unquote(meant) != user.name:
        return f"this page is {unquote(meant)}'s, and you are {user.name} now"
    return None if user.may_label else f"{user.name} may look and not label"


def _is_open(path: str) -> bool:
    return path == OPEN[1] or path.startswith(OPEN[0])


_WHY: Final = {
    "local": "this page is another user's of this host, or its connection tells no user; see web.access",
    "proxy": "the proxy named no person, or this is not the proxy",
    "accounts": "log in first",
}


def _unknown(request: Request) -> Response:
    """Answer somebody unknown: a person who may log in goes to the form, a program gets 401."""
    if site_of(request).settings.web.access == "accounts" and request.method == "GET" and not is_for_programs(request):
        return RedirectResponse(f"/login?{urlencode({'next': _asked(request)})}", 303)
    return refusal(request, 401, f"marcod does not know who you are: {_WHY[site_of(request).settings.web.access]}")


def _asked(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def asset(request: Request) -> Response:
    """Send a file of ``static/``, which a browser keeps for ever under this address."""
    name = request.path_params["name"]
    if name not in static_names():
        raise HTTPException(404)
    if request.url.path != static(name):
        return RedirectResponse(static(name), 307)
    return FileResponse(STATIC / name, headers={"Cache-Control": KEPT})


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address"}.get(error.status_code, error.detail)
    return refusal(request, error.status_code, said)


def _failed(request: Request, error: Exception) -> Response:
    """Answer an error that marcod raised on purpose with its sentence."""
    if isinstance(error, NotFoundError):
        return refusal(request, 404, str(error))
    log.error("request failed", path=request.url.path, error=str(error))
    if isinstance(error, StoreError):
        # Its sentence names the server and the user.
        return refusal(request, 503, "the database cannot be reached; try again in a minute")
    return refusal(request, 500, str(error))

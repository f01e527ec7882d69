"""Login and logout, where the page has accounts of its own."""

import time
from typing import Final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from marcod import telemetry
from marcod.web import accounts
from marcod.web.access import COOKIE
from marcod.web.passwords import LONGEST, matches
from marcod.web.site import Site, refusal, render, site_of

log = telemetry.logger(__name__)


def login(request: Request) -> Response:
    """Show the form."""
    site, onward = site_of(request), _onward(request.query_params.get("next"))
    if site.settings.web.access != "accounts" or site.access.who(request) is not None:
        return RedirectResponse(onward, 303)
    return render(request, "login.html", onward=onward, failure=None, name="")


async def log_in(request: Request) -> Response:
    """Check name and password, and begin a session."""
    site = site_of(request)
    if site.settings.web.access != "accounts":
        return refusal(request, 404, "there are no accounts here")
    given = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    name, password, onward = (given.get(field, [""])[0] for field in ("name", "password", "next"))
    client = request.client.host if request.client else "socket"
    return await run_in_threadpool(_checked, request, site, name, password[: LONGEST + 1], _onward(onward), client)


def _checked(request: Request, site: Site, name: str, password: str, onward: str, client: str) -> Response:
    now = time.monotonic()
    if wait_s := site.guessing.wait_s(name, client, now):
        log.warning("login throttled", client=client)
        minutes = int(wait_s / 60) + 1
        answer = _again(request, 429, f"too many failures; try again in {minutes} min", onward, name)
        answer.headers["Retry-After"] = str(int(wait_s) + 1)
        return answer
    kept = site.db.read(accounts.kept_password, name)
    if not matches(password, kept):
        site.guessing.fail(name, client, now)
        log.warning("login failed", client=client, known=bool(kept))
        return _again(request, 403, "name and password do not belong together", onward, name)
    site.guessing.forget(name, client)
    token = site.db.write(accounts.open_session, name, site.db.now())
    log.info("logged in", user=name)
    inside = RedirectResponse(onward, 303)
    secure = (site.settings.web.public_url or "").startswith("https://")
    age_s = accounts.SESSION_DAYS * 86_400
    inside.set_cookie(COOKIE, token, max_age=age_s, httponly=True, samesite="lax", secure=secure)
    return inside


def _again(request: Request, status: int, failure: str, onward: str, name: str) -> Response:
    return render(request, "login.html", status, onward=onward, failure=failure, name=name)


def log_out(request: Request) -> Response:
    """End the session."""
    site = site_of(request)
    if token := request.cookies.get(COOKIE):
        site.db.write(accounts.close_session, token, site.db.now())
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


def _onward(path: str | None) -> str:
    """Return a path of this page, whatever was asked for."""
    plain = path is not None and path.startswith("/") and path.isprintable() and not path.startswith(("//", "/\\"))
    return path if plain and path is not None else "/"


ROUTES: Final[list[BaseRoute]] = [
    Route("/login", login),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]

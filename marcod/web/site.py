"""The site that a request belongs to: settings, database and person; and the answers that every route gives."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from marcod import __version__
from marcod.database.engine import Database
from marcod.settings import Settings
from marcod.settings.key_maps import MEANINGS, keys_of
from marcod.web.access import Access, User
from marcod.web.passwords import Guessing
from marcod.web.words import FILTERS

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"


@dataclass(frozen=True, slots=True)
class Site:
    """Settings, database and access, which every route of one page shares."""

    settings: Settings
    db: Database
    access: Access
    guessing: Guessing = field(default_factory=Guessing)


def site_of(request: Request) -> Site:
    """Return the site of a request."""
    site: Site = request.app.state.site
    return site


def user_of(request: Request) -> User:
    """Return who asks; the guard has refused everybody else before."""
    user: User = request.scope["marcod.user"]
    return user


def render(request: Request, template: str, /, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Render a template of ``templates/``; it has ``user``, ``path`` and ``keys`` besides these values."""
    site = site_of(request)
    shared = {
        "user": request.scope.get("marcod.user"),
        "path": request.url.path,
        "access": site.settings.web.access,
        "keys": keys_of(site.settings.web.key_map, site.settings.web.keys),
        "advance": site.settings.web.advance,
    }
    return HTMLResponse(_templates().get_template(template).render(**shared, **values), status_code)


def is_for_programs(request: Request) -> bool:
    """Tell if the page's script or another program asks, which no form and no page of text would help."""
    return request.url.path.startswith(("/api/", "/image/", "/events")) or request.url.path.endswith(".csv")


def refusal(request: Request, status: int, sentence: str) -> Response:
    """Answer with one sentence: a page, or ``{"error": ...}`` where a program asked."""
    if is_for_programs(request):
        return JSONResponse({"error": sentence}, status)
    return render(request, "refusal.html", status, status=status, sentence=sentence)


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    made.globals |= {"static": static, "version": __version__, "meanings": MEANINGS}
    return made


def static(name: str) -> str:
    """Return the address of a file of ``static/``; it changes with any of them, so that browsers may keep them.

    All have one digest, so that a module finds the ones that it imports next to it.
    """
    return f"/static/{_static_digest()}/{name}"


@cache
def static_names() -> frozenset[str]:
    """Return the names of the files of ``static/``."""
    return frozenset(path.name for path in STATIC.iterdir())


@cache
def _static_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def json_of(value: Any) -> str:
    """Write JSON for a ``data-`` attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"))

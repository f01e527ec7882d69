"""A browser without a screen: requests to a page over a real database."""

from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.settings import Settings, WebSettings
from marcod.web.access import Access, User, UserRole
from marcod.web.app import build

PAGE: Final = "http://127.0.0.1:8750"


class OnePerson:
    """Access for the person whom a test sets; None for somebody unknown."""

    def __init__(self) -> None:
        self.user: User | None = User("ann", UserRole.LABELLER)

    def who(self, request: HTTPConnection) -> User | None:
        return self.user


def browser(
    settings: Settings, db: Database, access: Access | None = None, client: tuple[str, int] = ("testclient", 50000)
) -> TestClient:
    """A browser that comes from an address; what it changes, it changes from the page itself."""
    base = settings.web.public_url or PAGE
    app = build(settings, db, access)
    return TestClient(app, base_url=base, headers={"Origin": base}, follow_redirects=False, client=client)


def settings_with(settings: Settings, **values: Any) -> Settings:
    """The same settings with other values of the page."""
    return settings.model_copy(update={"web": WebSettings(**{"cache_folder": settings.web.cache_folder, **values})})

"""A page over a real database, asked without a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.settings import Settings, StoreSettings, WebSettings
from marcod.web.access import User, UserRole
from marcod.web.app import build

PAGE = "http://127.0.0.1:8750"


class OnePerson:
    """Access for the person whom a test sets; None for somebody unknown."""

    def __init__(self) -> None:
        self.user: User | None = User("ann", UserRole.LABELLER)

    def who(self, request: HTTPConnection) -> User | None:
        return self.user


@pytest.fixture
def person() -> OnePerson:
    """Who asks; a test may set `person.user`."""
    return OnePerson()


@pytest.fixture
def web_settings(db_url: str, tmp_path: Path) -> Settings:
    return Settings(store=StoreSettings(url=SecretStr(db_url)), web=WebSettings(cache_folder=tmp_path / "cache"))


@pytest.fixture
def client(db: Database, web_settings: Settings, person: OnePerson) -> Iterator[TestClient]:
    """A browser's requests to the page; unsafe ones come from the page itself."""
    app = build(web_settings, db, person)
    with TestClient(app, base_url=PAGE, headers={"Origin": PAGE}, follow_redirects=False) as client:
        yield client

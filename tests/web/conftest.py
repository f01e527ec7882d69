"""A page over a real database, asked without a browser."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import OnePerson, browser
from pydantic import SecretStr
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.settings import Settings, StoreSettings, WebSettings

collect_ignore = [] if importlib.util.find_spec("playwright") else ["browser"]
"""The library of browsers is installed by `make test-web` alone, which runs what is in there."""


@pytest.fixture
def person() -> OnePerson:
    """Who asks; a test may set `person.user`."""
    return OnePerson()


@pytest.fixture
def web_settings(db_url: str, tmp_path: Path) -> Settings:
    return Settings(store=StoreSettings(url=SecretStr(db_url)), web=WebSettings(cache_folder=tmp_path / "cache"))


@pytest.fixture
def client(db: Database, web_settings: Settings, person: OnePerson) -> Iterator[TestClient]:
    """The browser of `person`."""
    with browser(web_settings, db, person) as client:
        yield client

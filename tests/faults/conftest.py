"""A PostgreSQL database behind a network that a test can cut, and a watched site that walks alone keep up to date."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_tools import Network
from sqlalchemy.engine import URL
from watched_site import Site, made_sites

from marcod.database.engine import Database
from marcod.store.versions import Version


@pytest.fixture(scope="module")
def server_url(postgres: Any, postgres_template: URL) -> Iterator[str]:
    """A PostgreSQL database that the tests of a file share."""
    url = postgres.create(postgres_template)
    yield url.render_as_string(hide_password=False)
    postgres.drop(url)


@pytest.fixture
def server(server_url: str) -> Iterator[Database]:
    """That database, which gives up at once."""
    database = Database(server_url, patience_s=0.0)
    yield database
    database.close()


@pytest.fixture
def network(server_url: str) -> Iterator[Network]:
    """Give ``network.url`` to what shall be cut off from that database."""
    network = Network(server_url)
    yield network
    network.cut()


@pytest.fixture
def make_site(db: Database, champion: Version, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes watched sites on ``db``; found by walks alone unless told otherwise."""
    with made_sites(db, tmp_path, observer="polling", poll_s=1e9) as make:
        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()

"""A watched site: one root on a real disk, a real SQLite database, and a watcher whose time the test passes in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watched_site import Site, made_sites

from marcod.database.engine import Database
from marcod.store.versions import Version


@pytest.fixture
def backend() -> str:
    """Both databases are tested with the catalogue; watching needs one."""
    return "sqlite"


@pytest.fixture
def make_site(db: Database, champion: Version, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites, whose observers are stopped at the end."""
    with made_sites(db, tmp_path) as make:
        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A Rock Imager whose files are found by walks and inotify, settled after 10 s."""
    return make_site()

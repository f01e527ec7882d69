"""People with real browsers before a real server over a real database. `make test-web` runs them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from page_crowd import PageCrowd
from page_lab import PageLab
from page_museum import furnish
from playwright.sync_api import Browser, sync_playwright

from marcod.database.engine import Database

CHROMIUM: Final = Path(os.environ.get("MARCOD_CHROMIUM", "/usr/bin/chromium"))
FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each person has a profile in it."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is not there: `apt-get install chromium`, or name a browser by MARCOD_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def lab(db: Database, db_url: str, tmp_path: Path) -> Iterator[PageLab]:
    made = PageLab(db, db_url, tmp_path / "lab")
    yield made
    made.stop()


@pytest.fixture
def accounts_lab(db: Database, db_url: str, tmp_path: Path) -> Iterator[PageLab]:
    """A lab whose page has accounts."""
    made = PageLab(db, db_url, tmp_path / "lab", access="accounts")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def museum(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageLab]:
    """A lab with something of everything, on SQLite, for tests that only look."""
    folder = tmp_path_factory.mktemp("museum")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'marcod.sqlite')}"
    with closing(Database(url)) as db:
        made = PageLab(db, url, folder / "lab")
        furnish(made)
        yield made
        made.stop()


def crowd(chromium: Browser, lab: PageLab) -> Iterator[PageCrowd]:
    people = PageCrowd(chromium, lab.url)
    yield people
    people.leave()
    assert people.faults == []


@pytest.fixture
def person(chromium: Browser, lab: PageLab) -> Iterator[PageCrowd]:
    """Somebody with a browser of their own. What the policy of contents blocks, or a script throws, fails the test."""
    yield from crowd(chromium, lab)


@pytest.fixture
def visitor(chromium: Browser, museum: PageLab) -> Iterator[PageCrowd]:
    """Somebody in the museum."""
    yield from crowd(chromium, museum)


@pytest.fixture
def account(chromium: Browser, accounts_lab: PageLab) -> Iterator[PageCrowd]:
    """Somebody who has to log in."""
    yield from crowd(chromium, accounts_lab)

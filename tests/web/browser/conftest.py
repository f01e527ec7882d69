"""People with real browsers before a real server over a real database. `make test-web` runs them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from page_lab import HEADER, PageLab
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from marcod.database.engine import Database

CHROMIUM: Final = Path(os.environ.get("MARCOD_CHROMIUM", "/usr/bin/chromium"))
FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PATIENCE_MS: Final = 60_000


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


People = Callable[..., Page]


@pytest.fixture
def person(chromium: Browser, lab: PageLab) -> Iterator[People]:
    """Somebody with a browser of their own. What the policy of contents blocks, or a script throws, fails the test."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def come(name: str = "ann", **more: Any) -> Page:
        context = chromium.new_context(extra_http_headers={HEADER: name}, base_url=lab.url, **more)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.extend(blocked(message)))
        return page

    yield come
    for context in contexts:
        context.close()
    assert faults == []


def blocked(message: ConsoleMessage) -> list[str]:
    """What a message of the browser says of the policy of contents."""
    return [message.text] if "Content Security Policy" in message.text else []

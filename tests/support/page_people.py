"""Movements of a person in front of the page, and of their labels in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from marcod.database.engine import Database
from marcod.database.schema import drop, label
from marcod.web import accounts
from marcod.web.people import UserRole

if TYPE_CHECKING:
    from playwright.sync_api import Page

PASSWORD: Final = "correct horse battery"


def visit(page: Page, address: str) -> None:
    """Open a page and wait for its script."""
    page.goto(address)
    ready(page)


def ready(page: Page) -> None:
    """Wait for the script of a page that is opening."""
    page.wait_for_selector("body[data-ready]")


def saved(page: Page) -> None:
    """Wait until the page says that everything is in the database."""
    page.wait_for_selector("#saving.good")


def enrol(db: Database, *names: str) -> None:
    """Give people accounts, all with one password."""
    for name in names:
        db.write(accounts.add, name, UserRole.LABELLER, accounts.check_password(PASSWORD), db.now(), "root")


def log_in(page: Page, name: str, password: str = PASSWORD) -> None:
    """Fill the form of the login in, and send it."""
    page.fill("[name=name]", name)
    page.fill("[name=password]", password)
    page.click("form.login button")


def look(page: Page, *, away: bool) -> None:
    """Look away from a page or back, as a browser tells it of a tab behind others; without a screen it hides none."""
    page.evaluate(
        """(away) => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => away });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )


def given(db: Database) -> list[tuple[str, str | None, str]]:
    """Every label in the order in which it was given: the drop, the class or None, the person."""
    statement = sa.select(drop.c.well, drop.c.drop_number, label.c.label, label.c.person)
    rows: Any = db.read(
        lambda c: c.execute(statement.join(drop, drop.c.id == label.c.drop_id).order_by(label.c.id)).all()
    )
    return [(f"{row.well}.{row.drop_number}", row.label, row.person) for row in rows]

"""Movements of a person in front of the page, and of their labels in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from marcod.database.engine import Database
from marcod.database.schema import drop, label

if TYPE_CHECKING:
    from playwright.sync_api import Page


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


def given(db: Database) -> list[tuple[str, str | None, str]]:
    """Every label in the order in which it was given: the drop, the class or None, the person."""
    statement = sa.select(drop.c.well, drop.c.drop_number, label.c.label, label.c.person)
    rows: Any = db.read(
        lambda c: c.execute(statement.join(drop, drop.c.id == label.c.drop_id).order_by(label.c.id)).all()
    )
    return [(f"{row.well}.{row.drop_number}", row.label, row.person) for row in rows]

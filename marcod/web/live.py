"""Changes of the database, as they happen, for open pages.

One thread of a process looks, however many browsers listen, and none while nobody does. On PostgreSQL it waits for
notifications and looks now and then besides, because not every change sends one; on SQLite it looks at a few counters.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from starlette.requests import Request

CHANNEL: Final = "marcod_page"
"""PostgreSQL's channel on which pages are woken; the payload is empty."""


def announce(connection: Connection) -> None:
    """Wake the pages of all servers once this transaction is committed; SQLite has no notifications."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


def wake(request: Request) -> None:
    """Wake the pages of this server."""

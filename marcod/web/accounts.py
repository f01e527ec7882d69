"""Accounts of the page and their sessions, in the database.

A session is a random token in the browser's cookie and its SHA-256 here, so that sessions survive a restart, can be
ended, and cannot be made from a copy of the database. The page has no key that could be lost.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import web_session, web_user
from marcod.errors import MarcodError, NotFoundError
from marcod.store import audit_log
from marcod.text import offer
from marcod.web import passwords
from marcod.web.people import User, UserRole

LONGEST_NAME: Final = 64
SESSION_DAYS: Final = 30
"""Days after which a login ends whatever happens."""

SEEN_S: Final = 60.0
"""Seconds after which the use of a session is written again."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person whom `marcod web user` knows."""

    name: str
    role: UserRole
    has_password: bool
    created_at: datetime
    sessions: int
    seen_at: datetime | None


def accounts(connection: Connection) -> list[Account]:
    """List everybody by name, with their sessions that have not been ended."""
    is_open = web_session.c.ended_at.is_(None)
    seen = sa.func.max(web_session.c.seen_at, type_=web_session.c.seen_at.type)
    statement: sa.Select[Any] = (
        sa.select(web_user, sa.func.count(sa.case((is_open, 1))), seen)
        .outerjoin(web_session, web_session.c.user_name == web_user.c.name)
        .group_by(*web_user.c)
        .order_by(web_user.c.name)
    )
    return [
        Account(name, UserRole(role), bool(password), created_at, sessions, seen_at)
        for name, role, password, created_at, sessions, seen_at in connection.execute(statement)
    ]


def role_of(connection: Connection, name: str) -> UserRole | None:
    """Return the role that was given to a person, None for somebody unknown."""
    role = connection.execute(sa.select(web_user.c.role).where(web_user.c.name == name)).scalar()
    return None if role is None else UserRole(role)


def add(connection: Connection, name: str, role: UserRole, kept: str, now: datetime, actor: str) -> None:
    """Add a person; ``kept`` is the hash of the password, or empty where a proxy logs them in.

    Raises MarcodError for a name that is taken or cannot be one.
    """
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= LONGEST_NAME:
        raise MarcodError(f"{name!r} is no name: give 1 to {LONGEST_NAME} characters, without blanks at its ends")
    if role_of(connection, name) is not None:
        raise MarcodError(f"{name} is known already; `marcod web user password {name}` gives another password")
    values = {"name": name, "role": role, "password": kept, "created_at": now}
    connection.execute(sa.insert(web_user).values(values))
    audit_log.write(connection, actor, "web-user-add", name, {"role": role}, now)


def remove(connection: Connection, name: str, now: datetime, actor: str) -> None:
    """Remove a person and end their sessions; their labels keep the name. Raises NotFoundError."""
    _require(connection, name)
    connection.execute(sa.delete(web_session).where(web_session.c.user_name == name))
    connection.execute(sa.delete(web_user).where(web_user.c.name == name))
    audit_log.write(connection, actor, "web-user-remove", name, {}, now)


def set_password(connection: Connection, name: str, kept: str, now: datetime, actor: str) -> int:
    """Give a person another password and end their sessions. Returns how many. Raises NotFoundError."""
    _require(connection, name)
    connection.execute(sa.update(web_user).where(web_user.c.name == name).values(password=kept))
    audit_log.write(connection, actor, "web-user-password", name, {}, now)
    return end_sessions(connection, name, now)


def end_sessions(connection: Connection, name: str, now: datetime) -> int:
    """End every session of a person. Returns how many."""
    open_ones = sa.and_(web_session.c.user_name == name, web_session.c.ended_at.is_(None))
    return connection.execute(sa.update(web_session).where(open_ones).values(ended_at=now)).rowcount


def log_out_everywhere(connection: Connection, name: str, now: datetime) -> int:
    """End every session of a person. Returns how many. Raises NotFoundError."""
    _require(connection, name)
    return end_sessions(connection, name, now)


def kept_password(connection: Connection, name: str) -> str:
    """Return the hash of a person's password, empty where there is none."""
    found = connection.execute(sa.select(web_user.c.password).where(web_user.c.name == name)).scalar()
    return str(found or "")


def open_session(connection: Connection, name: str, now: datetime) -> str:
    """Begin a session. Returns the token for the cookie. Sessions long over go."""
    old = now - timedelta(days=SESSION_DAYS)
    connection.execute(sa.delete(web_session).where(web_session.c.created_at < old))
    token = secrets.token_urlsafe(32)
    values = {"token_hash": _digest(token), "user_name": name, "created_at": now, "seen_at": now}
    connection.execute(sa.insert(web_session).values(values))
    return token


@dataclass(frozen=True, slots=True)
class Session:
    """A session that has not been ended, and whose it is."""

    user: User
    token_hash: str
    seen_at: datetime


def session(connection: Connection, token: str, now: datetime, idle_h: float) -> Session | None:
    """Return the session of a token, None for one that is over."""
    statement = (
        sa.select(web_user.c.name, web_user.c.role, web_session.c.token_hash, web_session.c.seen_at)
        .join(web_user, web_user.c.name == web_session.c.user_name)
        .where(
            web_session.c.token_hash == _digest(token),
            web_session.c.ended_at.is_(None),
            web_session.c.seen_at > now - timedelta(hours=idle_h),
            web_session.c.created_at > now - timedelta(days=SESSION_DAYS),
        )
    )
    found = connection.execute(statement).one_or_none()
    return None if found is None else Session(User(found.name, UserRole(found.role)), found.token_hash, found.seen_at)


def see(connection: Connection, token_hash: str, now: datetime) -> None:
    """Write that a session is in use."""
    connection.execute(sa.update(web_session).where(web_session.c.token_hash == token_hash).values(seen_at=now))


def close_session(connection: Connection, token: str, now: datetime) -> None:
    """End the session of a token, where there is one."""
    its = sa.and_(web_session.c.token_hash == _digest(token), web_session.c.ended_at.is_(None))
    connection.execute(sa.update(web_session).where(its).values(ended_at=now))


def check_password(password: str) -> str:
    """Return the hash of a new password. Raises MarcodError for one that is too short or too long."""
    if not passwords.SHORTEST <= len(password) <= passwords.LONGEST:
        raise MarcodError(f"give a password of at least {passwords.SHORTEST} characters")
    return passwords.hash_of(password)


def _require(connection: Connection, name: str) -> None:
    if role_of(connection, name) is None:
        known = list(connection.execute(sa.select(web_user.c.name).order_by(web_user.c.name)).scalars())
        raise NotFoundError(f"there is no account {name!r}; {offer(name, known, 'accounts')}")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

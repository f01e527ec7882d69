"""Access to the page: who asks.

The name on a label is the one found here, never one that the browser says.
"""

import os
import time
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from marcod.database.engine import Database
from marcod.settings import WebSettings
from marcod.web import accounts
from marcod.web.people import User as User
from marcod.web.people import UserRole as UserRole

COOKIE: Final = "marcod_session"
LONGEST_NAME: Final = 100
ROLES_KEPT_S: Final = 10.0
"""Seconds for which the role of a person whom a proxy names is not asked again."""

FIRST_PERSON: Final = 1000
"""User ids below belong to the system's services and root."""

CONNECTIONS: Final = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED: Final = "01"
UNTOLD: Final = 65_534
"""User id that the kernel tells instead of one that this process must not know, as in a unit of systemd."""


class Access(Protocol):
    """One way to find out who asks."""

    def who(self, request: HTTPConnection) -> User | None:
        """Return the person, or None for an unknown one. Raises HTTPException for a forged request."""


class LocalAccess:
    """Access of the users of this host, by the owner of the connection as the kernel tells it.

    A page that a person started is theirs alone; one that a service started is for every user of the host.
    """

    def who(self, request: HTTPConnection) -> User | None:
        """Return the system's user at the other end of the connection."""
        own = os.getuid()
        uid = _owner(request)
        if uid in (None, UNTOLD) or (own >= FIRST_PERSON and uid not in (own, 0)):
            return None
        assert uid is not None
        return User(_name_of(uid), UserRole.LABELLER)


def _owner(request: HTTPConnection) -> int | None:
    """Return the user id that owns the other end of a connection of this host, None where no such one stands."""
    if request.client is None:
        return None
    server = request.scope["server"]
    ends = f":{request.client.port:04X}", f":{server[1]:04X}"
    tables = [Path(name) for name in CONNECTIONS]
    if not any(table.exists() for table in tables):
        return os.getuid()
    for table in tables:
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, remote, state, _, _, _, uid, *_ = line.split()
            # A connection that its owner has left has no owner's id.
            if state == ESTABLISHED and local.endswith(ends[0]) and remote.endswith(ends[1]):
                return int(uid)
    return None


@cache
def _name_of(uid: int) -> str:
    """Return the name of a user, asked once: a directory of the network may take its time."""
    import pwd  # no such module where there are no user ids

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class ProxyAccess:
    """Access of whom a reverse proxy names in a header, believed from its addresses or over the Unix socket alone."""

    def __init__(self, settings: WebSettings, db: Database) -> None:
        self._settings, self._db = settings, db
        self._networks = [ip_network(network) for network in settings.trusted_proxies]
        self._roles: dict[str, tuple[UserRole, float]] = {}

    def who(self, request: HTTPConnection) -> User | None:
        """Return whom the proxy names."""
        if not self._is_trusted(request):
            return None
        named = request.headers.getlist(self._settings.header)
        if len(named) > 1:
            raise HTTPException(400, "the header of the proxy is there more than once; the proxy must replace it")
        name = named[0].strip() if named else ""
        if not name:
            return None
        if not name.isprintable() or "," in name or len(name) > LONGEST_NAME:
            raise HTTPException(400, "the header of the proxy holds no name")
        return User(name, self._role(name))

    def _is_trusted(self, request: HTTPConnection) -> bool:
        if request.client is None:
            return self._settings.socket is not None
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network for network in self._networks)

    def _role(self, name: str) -> UserRole:
        role, until = self._roles.get(name, (UserRole.VIEWER, 0.0))
        if until < time.monotonic():
            role = self._db.read(accounts.role_of, name) or UserRole(self._settings.role)
            if len(self._roles) > 10_000:
                self._roles.clear()
            self._roles[name] = (role, time.monotonic() + ROLES_KEPT_S)
        return role


class AccountAccess:
    """Access of those who logged in with an account of the page."""

    def __init__(self, settings: WebSettings, db: Database) -> None:
        self._idle_h, self._db = settings.session_h, db

    def who(self, request: HTTPConnection) -> User | None:
        """Return whose session the cookie names, and write from time to time that it is in use."""
        token = request.cookies.get(COOKIE)
        if not token:
            return None
        now = self._db.now()
        found = self._db.read(accounts.session, token, now, self._idle_h)
        if found is None:
            return None
        if (now - found.seen_at).total_seconds() > accounts.SEEN_S:
            self._db.write(accounts.see, found.token_hash, now)
        return found.user


def access_of(settings: WebSettings, db: Database) -> Access:
    """Make the access that the settings choose."""
    if settings.access == "proxy":
        return ProxyAccess(settings, db)
    if settings.access == "accounts":
        return AccountAccess(settings, db)
    return LocalAccess()

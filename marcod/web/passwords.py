"""Passwords of the page: salted scrypt hashes, and a limit to guessing."""

import base64
import hashlib
import hmac
import os
import threading
from collections import deque
from typing import Final

SHORTEST: Final = 10
"""Characters that a password has at least."""

LONGEST: Final = 1024
FAILURES_S: Final = 300.0
"""Seconds for which a failed login counts."""

COST: Final = (2**15, 8, 1)
"""Cost, block size and lanes of scrypt: 32 MiB and about a tenth of a second."""

_HASHING: Final = threading.BoundedSemaphore(2)
"""Logins that are checked at a time, so that guessing takes neither the memory nor the processors."""


def hash_of(password: str) -> str:
    """Return the text that is kept of a password."""
    salt = os.urandom(16)
    return "$".join(("scrypt", *map(str, COST), _text(salt), _text(_scrypt(password, salt, COST))))


def matches(password: str, kept: str) -> bool:
    """Tell if a password is the one of the kept text; an empty text takes as long and matches none."""
    name, *numbers, salt, wanted = (kept or _NOBODY).split("$")
    assert name == "scrypt"
    cost, block, lanes = map(int, numbers)
    found = _scrypt(password, base64.b64decode(salt), (cost, block, lanes))
    return hmac.compare_digest(found, base64.b64decode(wanted)) and bool(kept)


def _scrypt(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    with _HASHING:
        return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


_NOBODY: Final = "$".join(("scrypt", *map(str, COST), _text(bytes(16)), _text(bytes(32))))


class Throttle:
    """Limit of failures by key within a time, forgotten as it passes. Thread-safe; times are seconds of one clock."""

    MOST_KEYS: Final = 10_000

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit, self._window_s = limit, window_s
        self._failures: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, key: str, now: float) -> float:
        """Return the seconds until another try is taken, 0 for at once."""
        with self._lock:
            found = self._recent(key, now)
            return 0.0 if len(found) < self._limit else max(0.0, found[-self._limit] + self._window_s - now)

    def fail(self, key: str, now: float) -> None:
        """Count a failure."""
        with self._lock:
            if len(self._failures) >= self.MOST_KEYS and key not in self._failures:
                self._failures = {name: self._recent(name, now) for name in list(self._failures)}
                self._failures = {name: found for name, found in self._failures.items() if found}
            self._failures.setdefault(key, deque(maxlen=self._limit)).append(now)

    def forget(self, key: str) -> None:
        """Forget the failures of somebody who got in."""
        with self._lock:
            self._failures.pop(key, None)

    def _recent(self, key: str, now: float) -> deque[float]:
        found = self._failures.get(key, deque())
        while found and found[0] <= now - self._window_s:
            found.popleft()
        return found


class Guessing:
    """Limits of failed logins: of a name from one address, of a name, of an address."""

    def __init__(self) -> None:
        self._limits = (Throttle(5, FAILURES_S), Throttle(30, FAILURES_S), Throttle(50, FAILURES_S))

    def wait_s(self, name: str, address: str, now: float) -> float:
        """Return the seconds until another try is taken, 0 for at once."""
        return max(limit.wait_s(key, now) for limit, key in self._keys(name, address))

    def fail(self, name: str, address: str, now: float) -> None:
        """Count a failure."""
        for limit, key in self._keys(name, address):
            limit.fail(key, now)

    def forget(self, name: str, address: str) -> None:
        """Forget the failures of this name from this address."""
        limit, key = self._keys(name, address)[0]
        limit.forget(key)

    def _keys(self, name: str, address: str) -> list[tuple[Throttle, str]]:
        return list(zip(self._limits, (f"{address} {name}", name, address), strict=True))

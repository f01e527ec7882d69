"""Access to the page: who asks, and what they may do.

The name on a label is the one found here, never one that the browser says.
"""

import getpass
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection

from marcod.settings import WebSettings


class UserRole(StrEnum):
    """Rights of a person on the page."""

    VIEWER = "viewer"
    LABELLER = "labeller"


@dataclass(frozen=True, slots=True)
class User:
    """A person, as marcod knows them."""

    name: str
    role: UserRole

    @property
    def may_label(self) -> bool:
        """Tell if labels, notes and marks of this person are taken."""
        return self.role is UserRole.LABELLER


class Access(Protocol):
    """One way to find out who asks."""

    def who(self, request: HTTPConnection) -> User | None:
        """Return the person, or None where nobody is known."""


class LocalAccess:
    """Access of the one person who started the page on their own machine."""

    def __init__(self) -> None:
        self._user = User(_system_user(), UserRole.LABELLER)

    def who(self, request: HTTPConnection) -> User | None:
        """Return the system's user."""
        return self._user


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def access_of(settings: WebSettings) -> Access:
    """Make the access that the settings choose."""
    return LocalAccess()

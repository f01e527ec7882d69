"""People of the page, and what each may do."""

from dataclasses import dataclass
from enum import StrEnum


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

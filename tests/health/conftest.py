"""The lab of `lab_fixtures` for this room."""

from lab_fixtures import site  # noqa: F401

"""The lab of `lab_fixtures` for this room."""

from lab_fixtures import deliveries, site  # noqa: F401

"""Words of the page: moments, and days of which the hour is not known."""

from datetime import UTC, datetime

import pytest

from marcod.web import words


@pytest.mark.parametrize(
    ("at", "written"),
    [
        (None, ""),
        (datetime(2026, 3, 4, tzinfo=UTC), "2026-03-04"),
        (datetime(2026, 3, 4, 0, 0, 1, tzinfo=UTC), "2026-03-04 00:00 UTC"),
        (datetime(2026, 3, 4, 15, 7, tzinfo=UTC), "2026-03-04 15:07 UTC"),
    ],
)
def test_a_day_without_an_hour_has_none(at: datetime | None, written: str) -> None:
    assert words.moment(at) == written

"""A lab on each database, and plates for it."""

from pathlib import Path

import pytest
from lab import Delivery, Site, delivery

from marcod.domain import PLATE_FORMATS
from marcod.synthetic import ImagerStyle


@pytest.fixture
def deliveries() -> dict[str, Delivery]:
    """One plate of each of the three imagers."""
    return {
        "rock-imager": delivery("formulatrix", ImagerStyle.FORMULATRIX, "2041", 1),
        "minstrel": delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2),
        "hwi": delivery("hwi", ImagerStyle.HWI, "X000016042", 3, PLATE_FORMATS[1536], filled=0.01),
    }


@pytest.fixture
def site(tmp_path: Path, db_url: str) -> Site:
    """A lab on each database, with nothing delivered yet."""
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder, db_url)

"""`marcod drift` on a lab whose lamp dims. All synthetic."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import factories
import imager_days
import pytest
from lab import Site

from marcod.database.engine import Database
from marcod.drift import days as store
from marcod.drift import monitor
from marcod.model.registry import Registry
from marcod.settings import DriftSettings

pytestmark = pytest.mark.story


@pytest.fixture
def dimmed(site: Site) -> Site:
    """The minstrel, two usual days and then less light; the other imager has only begun."""
    site.write(drift={"reference_images": 50, "min_images": 20, "window_days": 2})
    now = datetime.now(UTC)
    db = Database(site.url)
    champion = Registry(db).ensure_champion(now - timedelta(days=20))
    minstrel, other = (factories.register_source(db, name) for name in ("minstrel", "rock-imager"))
    for age, light in ((6, 1.0), (5, 1.0), (1, 0.7), (0, 0.7)):
        imager_days.day(db, minstrel, champion, now - timedelta(days=age, minutes=5), light=light)
    factories.record(db, other, factories.sightings(5, captured_at=now), now - timedelta(minutes=3))
    imager_days.score_waiting(db, champion, now - timedelta(minutes=2))
    db.close()
    return site


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_drift_is_reported_and_cleared(dimmed: Site) -> None:
    shown = dimmed.call("drift")
    assert shown.exit_code == 3, shown.output
    assert "minstrel, visible, lite0:1: ALARM, plates of 0 days are compared" in shown.stdout
    assert "the images of minstrel are darker; look at its lamp, exposure and shutter" in shown.stdout
    assert "rock-imager, visible, lite0:1: collecting, 5 of 50 images, 1 of 8 plates" in shown.stdout

    told = dimmed.call("drift", "--source", "minstrel", "--days", "3", "--json")
    assert told.exit_code == 3
    [imager] = json.loads(told.stdout)["imagers"]
    assert imager["state"] == "ALARM"
    brightness = next(finding for finding in imager["findings"] if finding["signal"] == "brightness")
    assert brightness["alarm"]
    assert brightness["value"] == pytest.approx(0.7 * brightness["reference"], rel=0.1)
    assert brightness["signal"] in {alarm["signal"] for alarm in imager["alarms"]}
    assert [day["images"] for day in imager["days"]] == [imager_days.IMAGES] * 2
    assert "brightness" in dimmed.call("drift", "--days", "3").stdout

    assert dimmed.call("drift", "--source", "rock-imager").exit_code == 0
    cleared = dimmed.call("drift", "--clear", "minstrel")
    assert (cleared.exit_code, "alarms of minstrel cleared" in cleared.stdout) == (0, True)
    assert dimmed.rows("select action, subject from audit where action = 'drift-clear'") == [
        ("drift-clear", "minstrel")
    ]
    again = dimmed.call("drift", "--clear", "minstrel", "--new-reference")
    assert "minstrel, visible, lite0:1: collecting" in again.stdout


def test_looking_says_what_the_schedule_records(dimmed: Site) -> None:
    now, settings = datetime.now(UTC), DriftSettings(reference_images=50, min_images=20, window_days=2)
    with closing(Database(dimmed.url, read_only=True)) as db:
        looked, days = monitor.look(db, settings, now), monitor.history(db, "minstrel", 9, now)
    with closing(Database(dimmed.url)) as db:
        assert db.read(store.open_alarms) == []
        recorded = monitor.run(db, settings, now)
        assert (days, len(looked.new)) == (monitor.history(db, "minstrel", 9, now), len(recorded.new))
    assert [_without_ids(imager) for imager in looked.imagers] == [_without_ids(imager) for imager in recorded.imagers]
    with closing(Database(dimmed.url, read_only=True)) as db:
        again = monitor.look(db, settings, now + timedelta(minutes=1))
    assert (again.imagers, again.new) == (recorded.imagers, [])


def _without_ids(imager: monitor.ImagerDrift) -> monitor.ImagerDrift:
    return replace(imager, alarms=[replace(alarm, id=0) for alarm in imager.alarms])


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_cannot_be_done_is_said(site: Site) -> None:
    site.write()
    db = Database(site.url)
    Registry(db).ensure_champion(datetime.now(UTC))
    db.close()
    assert "has scored nothing new yet" in site.ok("drift")
    assert site.call("drift", "--new-reference").exit_code == 2
    unknown = site.call("drift", "--source", "nobody")
    assert (unknown.exit_code, "nobody" in unknown.stderr) == (1, True)

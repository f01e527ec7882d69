"""Open pages hear of changes, on both databases, by one thread however many listen."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, drain, record, sightings, utc
from starlette.requests import Request

from marcod.database.engine import Database
from marcod.database.schema import label, plate
from marcod.domain import DropClass
from marcod.labels import requests
from marcod.labels.requests import LabelRequest
from marcod.settings import Settings
from marcod.store.versions import Version
from marcod.web import live
from marcod.web.app import build
from marcod.web.changes import MANY, ChangeWatch, PageChange
from marcod.web.live import OpenPage, Pulse
from marcod.web.people import User, UserRole

LONG_S = 20.0


def say(db: Database, key: str, drop_id: int = 1) -> None:
    def work(connection: sa.Connection) -> None:
        asked = LabelRequest(key, drop_id, drop_id, DropClass.CLEAR)
        assert requests.give(connection, [asked], person="ann", several=False, now=utc(9)) == {}
        live.announce(connection)

    db.write(work)


def two_plates(db: Database, source_id: int) -> None:
    for name in ("P1", "P2"):
        record(db, source_id, sightings(1, plate=name))


def test_a_look_finds_what_is_new_and_that_once(db: Database, champion: Version, source_id: int) -> None:
    changes = ChangeWatch()
    assert not db.read(changes.look)
    two_plates(db, source_id)
    assert db.read(changes.look) == PageChange(frozenset({1, 2}))
    assert not db.read(changes.look)
    drain(db, champion, scores=lambda c: CRYSTALS if "P1" in c.path else CLEAR)
    assert db.read(changes.look) == PageChange(frozenset({1, 2}))
    say(db, "request-a", 2)
    assert db.read(changes.look) == PageChange(frozenset({2}))
    db.write(lambda c: c.execute(sa.delete(label)))
    assert not db.read(changes.look)
    say(db, "request-b", 2)
    assert db.read(changes.look) == PageChange(frozenset({2}))


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_a_row_that_becomes_visible_late_is_found(db: Database, champion: Version, source_id: int) -> None:
    """Two write at once, and the one with the lower id commits last."""
    two_plates(db, source_id)
    changes = ChangeWatch()
    db.read(changes.look)
    with db.engine.begin() as slow:
        slow.execute(sa.insert(plate).values(source_id=source_id, key="P3", first_seen_at=utc()))
        with db.engine.begin() as quick:
            quick.execute(sa.insert(plate).values(source_id=source_id, key="P4", first_seen_at=utc()))
        assert db.read(changes.look) == PageChange(frozenset({4}))
    assert db.read(changes.look) == PageChange(frozenset({3}))


def test_very_many_changes_name_no_plate() -> None:
    assert (PageChange(frozenset(range(500))) + PageChange(frozenset({1}))).plates is None
    assert (PageChange(None) + PageChange()).as_json() == {"plates": None}
    assert MANY > 0


@asynccontextmanager
async def listening(pulse: Pulse) -> AsyncIterator[OpenPage]:
    """A page, once the thread has looked for the first time."""
    listener = pulse.open()
    assert listener is not None
    yield listener
    pulse.close(listener)


async def until(listener: OpenPage, plate_id: int) -> PageChange:
    found = PageChange()
    while plate_id not in (found.plates or ()):
        found += await asyncio.wait_for(listener.get(), LONG_S)
    return found


@pytest.mark.timeout(60)
def test_pages_hear_of_a_change_and_the_thread_ends_with_the_last(
    db: Database, champion: Version, source_id: int
) -> None:
    two_plates(db, source_id)
    drain(db, champion)
    pulse = Pulse(db)

    async def story() -> None:
        async with listening(pulse) as one, listening(pulse) as other:
            number = 0
            # Until the thread has looked first, a change is none.
            while not one.ready.is_set():
                number += 1
                await asyncio.to_thread(say, db, f"request-{number:04}")
                pulse.wake()
                await asyncio.sleep(0.02)
            for page in (one, other):
                assert 1 in ((await until(page, 1)).plates or ())
            await asyncio.to_thread(say, db, "request-last", 2)
            if db.is_sqlite:
                pulse.wake()
            assert 2 in ((await until(other, 2)).plates or ())
            assert sum(thread.name == "page changes" for thread in threading.enumerate()) == 1
        while any(thread.name == "page changes" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    asyncio.run(story())


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_events_name_the_plates_that_the_person_sees(
    db: Database, champion: Version, source_id: int, web_settings: Settings
) -> None:
    two_plates(db, source_id)
    app = build(web_settings, db)
    pulse = Pulse(db)

    async def story() -> None:
        async with listening(pulse) as listener:
            request = Request({"type": "http", "app": app, "marcod.user": User("ann", UserRole.LABELLER)})
            messages = live._messages(request, pulse, listener)
            assert (await anext(messages)).startswith("retry: ")
            for plates in ({3}, {2, 1, 3}):
                listener.put(PageChange(frozenset(plates)))
            assert await anext(messages) == 'event: change\ndata: {"plates": [1, 2]}\n\n'
            await messages.aclose()

    asyncio.run(story())

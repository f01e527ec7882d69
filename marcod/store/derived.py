"""Derived rows kept true: plate summaries, drops over time and hits follow every change of what they are made from.

A caller names the drops and inspections that a change of an image (bytes, reading, light, place, absence) or of a label
touches; this module knows which versions' rows that makes stale and refreshes exactly those, in the same transaction.

Guarantees:

* A row that exists is right, for every model version: champion, former champion, challenger or any other.
* A version that never was champion is silent: its scores make no row, so that an archive is scored again cheaply.
  ``promotions`` has its rows made when it becomes champion.
* Rows are held in one order everywhere: images, jobs, inspections, drops, each by id. Two writers never wait in a ring,
  and none computes from what the other is about to change.
"""

from collections import Counter
from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import parts
from marcod.database.schema import image
from marcod.store import drops, locks, summaries, versions
from marcod.store.versions import Version


def refresh(
    connection: Connection,
    drop_ids: Collection[int],
    inspection_ids: Collection[int],
    now: datetime,
    *,
    serving: Collection[Version] = (),
) -> None:
    """Refresh every version's rows of these drops and inspections, after images or labels changed.

    ``serving`` versions get a row of each inspection even where they had none, unless they are silent. The champion
    gets a row of each drop that is known, since a label alone makes a drop known.
    """
    if not drop_ids and not inspection_ids:
        return
    held = locks.hold(connection, inspections=inspection_ids, drops=drop_ids)
    # Asked while both are held: a row that another transaction was making is there by now.
    rows = summaries.existing(connection, held)
    champion = versions.champion(connection)
    # An image that comes back into a version's light, or from another drop, brings its scores with it.
    scored = {*(v.id for v in serving), *drops.scored_by(connection, drop_ids)}
    speaking = _speaking(connection, scored)
    made = scored & speaking
    wanted = {champion.id, *made, *rows, *drops.existing(connection, drop_ids)}
    # The champion first: it confirms a former champion's hit, which is not notified again.
    for version_id in sorted(wanted, key=lambda v: (v != champion.id, v)):
        version = versions.get(connection, version_id)
        its = held if version_id in made else rows.get(version_id, [])
        loud = version_id in speaking
        _refresh(connection, version, drop_ids if loud else drops.existing_of(connection, drop_ids, version), its, now)


def _speaking(connection: Connection, version_ids: set[int]) -> set[int]:
    """List the versions with rows. Those of these that are silent stay so until the transaction ends.

    For callers that hold the inspections: who makes rows of a version that is about to speak holds them too.
    """
    found = versions.with_rows(connection)
    if version_ids <= found:
        return found
    locks.begin_silent_writing(connection)
    return versions.with_rows(connection)


def make_rows(
    connection: Connection, version: Version, drop_ids: Collection[int], inspection_ids: Collection[int], now: datetime
) -> None:
    """Make a version's rows of what it scored before it was to speak. Nobody is notified: it does not speak yet."""
    held = locks.hold(connection, inspections=inspection_ids, drops=drop_ids)
    drops.refresh(connection, drop_ids, version, now)
    summaries.refresh(connection, held, version, now, as_others=True)


def refresh_version(
    connection: Connection, version: Version, drop_ids: Collection[int], inspection_ids: Collection[int], now: datetime
) -> None:
    """Refresh one version's rows, after nothing but its own scores or jobs of these drops and inspections changed."""
    refresh_versions(connection, [version], drop_ids, inspection_ids, now)


def refresh_versions(
    connection: Connection,
    scored: Collection[Version],
    drop_ids: Collection[int],
    inspection_ids: Collection[int],
    now: datetime,
) -> None:
    """Refresh some versions' rows, as :func:`refresh_version`; the champion's first, as :func:`refresh` does.

    Of a silent version the rows that it has, and no others: where it has none, this asks and writes nothing.
    """
    held = locks.hold(connection, inspections=inspection_ids)
    speaking = _speaking(connection, {v.id for v in scored})
    wanted = {
        v: (drop_ids, held)
        if v.id in speaking
        else (drops.existing_of(connection, drop_ids, v), summaries.existing_of(connection, held, v))
        for v in scored
    }
    if not any(of_drops or of_inspections for of_drops, of_inspections in wanted.values()):
        return
    locks.hold(connection, drops=drop_ids)
    champion_id = versions.champion(connection).id if len(scored) > 1 else None
    for version in sorted(wanted, key=lambda v: (v.id != champion_id, v.id)):
        _refresh(connection, version, *wanted[version], now)


def _refresh(
    connection: Connection, version: Version, drop_ids: Collection[int], inspection_ids: Collection[int], now: datetime
) -> None:
    new_hits = drops.refresh(connection, drop_ids, version, now) if drop_ids else Counter[int]()
    summaries.refresh(connection, inspection_ids, version, now, new_hits)


def refresh_images(connection: Connection, image_ids: Collection[int], now: datetime) -> None:
    """Refresh what follows from these images, for every version."""
    drop_ids, inspection_ids = places_of(connection, image_ids)
    refresh(connection, drop_ids, inspection_ids, now)


def places_of(connection: Connection, image_ids: Collection[int]) -> tuple[set[int], set[int]]:
    """Find the drops and the inspections that these images show now."""
    drop_ids, inspection_ids = set[int](), set[int]()
    places = sa.select(image.c.drop_id, image.c.inspection_id)
    for part in parts(sorted(image_ids)):
        for drop_id, inspection_id in connection.execute(places.where(image.c.id.in_(part))):
            drop_ids.add(int(drop_id))
            inspection_ids.add(int(inspection_id))
    return drop_ids, inspection_ids

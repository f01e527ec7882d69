"""The challenger scores everything behind the champion, and nobody who does not ask for it sees its scores."""

import factories
import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    CRYSTALS,
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    rewritten,
    rows,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import audit, image, job, score
from marcod.domain import Modality
from marcod.errors import StoreError
from marcod.plates import reports
from marcod.store import queue, serving, versions
from marcod.store.versions import Version

SUMMARY = "select inspection_key, model_version, n_crystals, hits, scored from lims_plate_summary_v1 order by 1"
CURRENT = "select distinct model_version from lims_image_score_v1 where is_current order by 1"


def challenge(db: Database, version: Version | None, now: float = 0) -> Version | None:
    return db.write(lambda c: serving.challenge(c, version, actor="test", now=utc(now)))


def jobs(db: Database) -> list[tuple[str, str, int]]:
    """Path's well, version and priority of every job."""
    columns = (image.c.path, job.c.model_version_id, job.c.priority)
    found = rows(db, sa.select(*columns).join(image, image.c.id == job.c.image_id).order_by(job.c.id))
    named = {r.version.id: r.version.version for r in db.read(versions.listed)}
    return [(path.rsplit("/", 1)[1], named[version], priority) for path, version, priority in found]


def by_version(db: Database) -> dict[str, set[tuple[str, int]]]:
    """Wells and priorities that wait, by version."""
    waiting: dict[str, set[tuple[str, int]]] = {}
    for path, version, priority in jobs(db):
        waiting.setdefault(version, set()).add((path, priority))
    return waiting


@pytest.fixture
def second(db: Database, champion: Version) -> Version:
    """small:2, challenger."""
    version = register(db, version="2")
    assert challenge(db, version) is None
    return version


def test_every_new_image_waits_for_the_challenger_behind_the_champion(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(2, plate="EARLIER"))
    second = register(db, version="2")
    challenge(db, second)
    assert record(db, source_id, sightings(2)).queued == 2
    assert by_version(db) == {"1": {("A01.jpg", 0), ("A02.jpg", 0)}, "2": {("A01.jpg", 10), ("A02.jpg", 10)}}
    turns = [lease.model_version_id for lease in factories.leases(db)]
    assert turns == [champion.id, second.id]


def test_a_challengers_scores_reach_no_current_view(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    record(db, source_id, sightings(3))
    finish(db, claimed(db), champion, utc(1), scores=lambda c: CLEAR)
    finish(db, claimed(db), second, utc(2), scores=lambda c: CRYSTALS)
    assert len(rows(db, sa.select(score.c.id))) == 6
    assert [tuple(r) for r in rows(db, sa.text(SUMMARY))] == [("1", "1", 0, 0, 3)]
    assert [tuple(r) for r in rows(db, sa.text(CURRENT))] == [("1",)]
    assert db.read(lambda c: reports.hits(c, None, 10)) == []
    promote(db, second, utc(3))
    assert [tuple(r) for r in rows(db, sa.text(SUMMARY))] == [("1", "2", 3, 3, 3)]
    assert [tuple(r) for r in rows(db, sa.text(CURRENT))] == [("2",)]
    assert len(db.read(lambda c: reports.hits(c, None, 10))) == 3


def test_a_challenger_that_scores_a_plate_first_is_not_shown_for_it(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    record(db, source_id, sightings(2))
    in_hand = claimed(db)
    finish(db, claimed(db), second, utc(1), scores=lambda c: CRYSTALS)
    assert [tuple(r) for r in rows(db, sa.text(SUMMARY))] == [("1", "1", 0, 0, 0)]
    finish(db, in_hand, champion, utc(2))
    assert [tuple(r) for r in rows(db, sa.text(SUMMARY))] == [("1", "1", 0, 0, 2)]


def test_a_rewritten_file_is_scored_again_by_the_challenger_too(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    files = sightings(2)
    record(db, source_id, files)
    finish(db, claimed(db), champion)
    finish(db, claimed(db), second)
    record(db, source_id, [rewritten(files[0])], utc(1))
    assert by_version(db) == {"1": {("A01.jpg", 0)}, "2": {("A01.jpg", 10)}}


def test_a_plate_that_goes_on_arriving_does_not_bring_its_older_inspections_back(
    db: Database, source_id: int, champion: Version
) -> None:
    """A challenger's summary beside the champion's is no sign that a former champion began the plate."""
    record(db, source_id, sightings(2))
    drain(db, champion)
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    drain(db, newer, utc(1))
    assert record(db, source_id, sightings(2, inspection="2"), utc(2)).queued == 2
    third = register(db, version="3")
    challenge(db, third)
    record(db, source_id, sightings(3, inspection="2"), utc(3))
    assert by_version(db)["2"] == {("A01.jpg", 0), ("A02.jpg", 0), ("A03.jpg", 0)}


def test_only_light_that_the_challenger_was_made_for(db: Database, source_id: int, champion: Version) -> None:
    challenge(db, register(db, name="uv", version="9", modality="uv"))
    record(db, source_id, [*sightings(1), *sightings(1, modality=Modality.UV)])
    assert jobs(db) == [("A01.jpg", "1", 0), ("A01.jpg", "9", 10)]


def test_ending_it_withdraws_what_waits_and_leaves_what_is_in_hand(
    db: Database, source_id: int, champion: Version
) -> None:
    second = register(db, version="2")
    record(db, source_id, sightings(2, plate="EARLIER"))
    drain(db, champion)
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(1)))
    challenge(db, second, 2)
    record(db, source_id, sightings(3), utc(3))
    finish(db, claimed(db, utc(3)), champion)
    in_hand = claimed(db, utc(4), limit=3)
    assert {c.path.split("/")[0] for c in in_hand.claims} == {"EARLIER", "P1"}
    assert challenge(db, None, 5) == second
    assert len(jobs(db)) == 3, "the two rescores of before and what is in hand"
    assert finish(db, in_hand, second, utc(6)).scored == 3
    assert challenge(db, None, 7) is None
    record(db, source_id, sightings(1, plate="LATER"), utc(8))
    assert {version for _, version, _ in jobs(db)} == {"1"}


def test_the_champion_cannot_challenge_itself(db: Database, champion: Version) -> None:
    with pytest.raises(StoreError, match="small:1 is champion"):
        challenge(db, champion)


def test_a_promoted_challenger_is_challenger_no_more(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    record(db, source_id, sightings(2))
    promote(db, second, utc(1))
    assert {r.version.version: r.aliases for r in db.read(versions.listed)} == {"1": ("previous",), "2": ("champion",)}
    assert by_version(db) == {"2": {("A01.jpg", 0), ("A02.jpg", 0)}}


def test_a_new_challenger_replaces_the_former_one(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    record(db, source_id, sightings(1), utc(1))
    third = register(db, version="3")
    assert challenge(db, third, 2) == second
    assert challenge(db, third, 3) == third
    assert by_version(db) == {"1": {("A01.jpg", 0)}}
    notes = rows(db, sa.select(audit.c.action, audit.c.subject, audit.c.detail).order_by(audit.c.id))
    assert [tuple(row) for row in notes][1:] == [
        ("challenge", "small:2", {"from": None, "withdrawn": 0}),
        ("challenge", "small:3", {"from": "small:2", "withdrawn": 1}),
    ]


def test_a_file_gone_before_the_challenger_came_costs_the_champion_nothing(
    db: Database, source_id: int, champion: Version, second: Version
) -> None:
    record(db, source_id, sightings(1))
    finish(db, claimed(db), champion)
    lease = claimed(db)
    finish(db, lease, second, failures=[queue.Failure(lease.claims[0], queue.GONE, retryable=False)])
    assert [tuple(r) for r in rows(db, sa.text(SUMMARY))] == [("1", "1", 0, 0, 1)]

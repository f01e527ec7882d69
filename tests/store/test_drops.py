"""Drops over time: the same answer whatever comes first, people's words in it, hits recorded once."""

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from factories import (
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    register_source,
    rewritten,
    rows,
    sightings,
    utc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marcod.database.engine import Database
from marcod.database.schema import drop, event, hit, image, inspection, inspection_summary, metadata
from marcod.domain import DropClass, Modality
from marcod.plates import reports
from marcod.store import derived, drops, queue, serving, summaries, votes
from marcod.store.drops import Cause, Trend, order_key
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

HIT, NONE = (0.05, 0.9, 0.03, 0.02), (0.9, 0.05, 0.03, 0.02)


def shown(db: Database, order: str = "well, drop_number") -> list[dict[str, Any]]:
    """The rows of lims_drop_v1."""
    statement = sa.text(f"select * from lims_drop_v1 order by {order}")
    return db.read(lambda c: [dict(row) for row in c.execute(statement).mappings()])


def say(
    db: Database,
    well: str,
    inspection_key: str,
    word: DropClass | None,
    person: str,
    minute: int = 0,
    *,
    path: str | None = None,
) -> None:
    """A label through the store, of a drop or of its image at ``path``, with everything that follows from it."""

    def work(connection: sa.Connection) -> None:
        drop_id = connection.execute(sa.select(drop.c.id).where(drop.c.well == well)).scalar_one()
        where = connection.execute(sa.select(inspection.c.id).where(inspection.c.key == inspection_key)).scalar_one()
        named = sa.select(image.c.id).where(image.c.path == (path or ""))
        image_id = connection.execute(named).scalar_one_or_none()
        given_ = NewLabel(drop_id, where, word, person, utc(minutes=minute), "test", image_id=image_id)
        votes.add(connection, [given_], utc())
        derived.refresh(connection, [drop_id], [where], utc(minutes=minute))

    db.write(work)


@pytest.mark.parametrize(
    ("keys", "ordinals"),
    [
        (["8001", "8012", "10003"], [None] * 3),
        (["2026-01-02", "2026-01-10", "2026-11-01"], [None] * 3),
        (["201203040506", "201203040507"], [None] * 2),
        (["b", "a"], [9, 10]),
    ],
)
def test_inspections_sort_in_time(keys: list[str], ordinals: list[int | None]) -> None:
    found = [order_key(key, ordinal) for key, ordinal in zip(keys, ordinals, strict=True)]
    assert found == sorted(found)


def trend_of(seen: list[bool]) -> Trend:
    """Said anew, from the words' meaning."""
    if True not in seen:
        return Trend.NONE
    if seen[-1] is False:
        return Trend.DISSOLVING
    return Trend.APPEARING if False in seen else Trend.STEADY


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_the_order_of_arrival_changes_nothing(db_url: str, data: st.DataObject) -> None:
    db = Database(db_url)
    try:
        _empty(db)
        _arrive_in_any_order(db, data)
    finally:
        db.close()


def _empty(db: Database) -> None:
    db.write(lambda c: [c.execute(sa.delete(table)) for table in reversed(metadata.sorted_tables)])


def _arrive_in_any_order(db: Database, data: st.DataObject) -> None:
    champion = register(db)
    promote(db, champion)
    source_id = register_source(db)
    truth = {
        (f"A0{well}", str(number)): data.draw(st.booleans(), label=f"A0{well} at {number}")
        for well in (1, 2)
        for number in (2, 9, 10, 11)
    }
    files = [f for number in (2, 9, 10, 11) for f in sightings(2, inspection=str(number))]
    repeats = data.draw(st.lists(st.sampled_from(files), max_size=3))
    for minute, sighting in enumerate(data.draw(st.permutations([*files, *repeats]))):
        record(db, source_id, [sighting], utc(minutes=minute))
        drain(db, champion, utc(minutes=minute), scores=lambda c: HIT if _is_hit(truth, c) else NONE)
    for row in shown(db):
        seen = [truth[row["well"], str(number)] for number in (2, 9, 10, 11)]
        first = next((str(n) for n, s in zip((2, 9, 10, 11), seen, strict=True) if s), None)
        assert row["first_hit_inspection_key"] == first
        assert row["trend"] == trend_of(seen)
        assert (row["inspections"], row["inspection_key"], bool(row["hit"])) == (4, "11", seen[-1])
        assert row["highest_p_crystals"] == (0.9 if any(seen) else 0.05)


def _is_hit(truth: dict[tuple[str, str], bool], claim: queue.Claim) -> bool:
    _, number, _, name = claim.path.split("/")
    return truth[name.removesuffix(".jpg"), number]


def test_a_later_inspection_has_its_own_verdict(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1, inspection="1"))
    drain(db, champion, scores=lambda c: HIT)
    say(db, "A01", "1", DropClass.CLEAR, "ann")
    (row,) = shown(db)
    assert (row["label"], row["label_person"], bool(row["hit"]), row["first_hit_inspection_key"]) == (
        "Clear", "ann", False, None,
    )  # fmt: skip
    record(db, source_id, sightings(1, inspection="2"))
    drain(db, champion, scores=lambda c: HIT)
    (row,) = shown(db)
    assert (row["label"], row["label_person"], bool(row["hit"])) == ("Crystals", None, True)
    assert (row["first_hit_inspection_key"], row["trend"]) == ("2", "appearing")


def test_a_label_overrides_and_taking_it_back_restores(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion)
    before = shown(db), rows(db, sa.select(inspection_summary))
    say(db, "A02", "1", DropClass.CRYSTALS, "ann", 1)
    row = shown(db)[1]
    assert (row["label"], row["label_person"], bool(row["hit"]), row["p_crystals"]) == ("Crystals", "ann", True, 0.05)
    (summary,) = rows(db, sa.select(inspection_summary))
    assert (summary.n_crystals, summary.n_clear, summary.hits, summary.labelled) == (1, 1, 1, 1)
    assert '"A02"' in summary.best_wells.split("}")[0]
    say(db, "A02", "1", None, "ann", 2)
    after = shown(db), rows(db, sa.select(inspection_summary))
    for old, new in zip(before[0], after[0], strict=True):
        assert {k: v for k, v in old.items() if k not in ("updated_at", "first_hit_found_at")} == {
            k: v for k, v in new.items() if k not in ("updated_at", "first_hit_found_at")
        }
    assert {**before[1][0]._mapping, "updated_at": None} == {**after[1][0]._mapping, "updated_at": None}


def test_persons_disagree_in_sight(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    say(db, "A01", "1", DropClass.CRYSTALS, "ann", 1)
    say(db, "A01", "1", DropClass.OTHER, "bob", 2)
    (row,) = shown(db)
    assert (row["label"], row["label_person"], bool(row["label_disputed"])) == ("Other", "bob", True)


def test_a_hit_says_why_it_was_recorded(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion, utc(1), scores=lambda c: HIT if "A01" in c.path else (0.55, 0.45, 0.0, 0.0))
    second = register(db, version="2", crystal_threshold=0.4)
    promote(db, second, utc(2))
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(3)))
    record(db, source_id, sightings(3)[2:], utc(3))
    drain(db, second, utc(4), scores=lambda c: HIT if "A02" not in c.path else (0.55, 0.45, 0.0, 0.0))
    statement = sa.select(drop.c.well, hit.c.cause, hit.c.model_version_id).join(hit, hit.c.drop_id == drop.c.id)
    assert {tuple(row) for row in rows(db, statement)} == {
        ("A01", Cause.NEW, champion.id),
        ("A01", Cause.CONFIRMED, second.id),
        ("A02", Cause.MODEL, second.id),
        ("A03", Cause.NEW, second.id),
    }


def test_a_challenger_and_other_light_do_not_count(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1) + sightings(1, modality=Modality.UV))
    drain(db, champion)
    other = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, other.id, utc(3)))
    drain(db, other, utc(4), scores=lambda c: HIT)
    (row,) = shown(db)
    assert (row["model_version"], bool(row["hit"]), row["inspections"]) == ("1", False, 1)
    assert db.read(lambda c: c.execute(sa.text("select count(*) from lims_hit_v1")).scalar_one()) == 0
    promote(db, other, utc(5))
    (row,) = shown(db)
    assert (row["model_version"], bool(row["hit"])) == ("2", True)
    assert db.read(lambda c: c.execute(sa.text("select cause from lims_hit_v1")).scalar_one()) == "model"


def test_a_rewritten_image_removes_its_hit(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(1)
    record(db, source_id, files)
    drain(db, champion, scores=lambda c: HIT)
    record(db, source_id, [rewritten(files[0])], utc(5))
    finish(db, claimed(db, utc(6)), champion, utc(6), hashes=lambda c: "other")
    (row,) = shown(db)
    assert (bool(row["hit"]), row["trend"], row["first_hit_inspection_key"]) == (False, "none", None)
    assert db.read(lambda c: c.execute(sa.text("select count(*) from lims_hit_v1")).scalar_one()) == 0


def hits_shown(db: Database) -> list[tuple[Any, ...]]:
    """Well, model version and cause of the rows of lims_hit_v1."""
    statement = sa.text("select well, model_version, cause from lims_hit_v1 order by well, model_version")
    return [tuple(row) for row in rows(db, statement)]


def test_a_word_on_one_image_does_not_hide_crystals_in_another(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1, region=1) + sightings(1, region=2))
    drain(db, champion, scores=lambda c: HIT if "A01_2" in c.path else NONE)
    say(db, "A01", "1", DropClass.CLEAR, "ann", 1, path="P1/1/visible/A01_1.jpg")
    assert bool(shown(db)[0]["hit"])
    (summary,) = rows(db, sa.select(inspection_summary))
    assert summary.hits == 1
    say(db, "A01", "1", DropClass.CRYSTALS, "ann", 2, path="P1/1/visible/A01_2.jpg")
    say(db, "A01", "1", DropClass.OTHER, "ann", 3, path="P1/1/visible/A01_1.jpg")
    (row,) = shown(db)
    assert (row["label"], bool(row["hit"]), bool(row["label_disputed"])) == ("Crystals", True, True)


def test_one_word_on_an_image_does_not_outvote_those_on_the_drop(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    for person in ("ann", "bob", "eve"):
        say(db, "A01", "1", DropClass.CRYSTALS, person, 1)
    say(db, "A01", "1", DropClass.CLEAR, "tom", 2, path="P1/1/visible/A01.jpg")
    (row,) = shown(db)
    assert (row["label"], bool(row["label_disputed"])) == ("Crystals", True)


@pytest.mark.slow
def test_a_champion_that_saw_less_does_not_remove_a_hit(db: Database, source_id: int, champion: Version) -> None:
    for number in (1, 2, 3):
        record(db, source_id, sightings(1, inspection=str(number)))
        drain(db, champion, scores=lambda c: HIT)
    second = register(db, version="2")
    promote(db, second, utc(10))
    record(db, source_id, sightings(1, inspection="4"), utc(11))
    lease = claimed(db, utc(12))
    assert [c.path for c in lease.claims] == ["P1/4/visible/A01.jpg"], "new images come first"
    finish(db, lease, second, utc(12))
    (row,) = shown(db)
    assert (row["model_version"], row["first_hit_inspection_key"]) == ("1", "1")
    assert hits_shown(db) == [("A01", "1", "new")]
    assert drain(db, second, utc(13)) == 3, "what only the former champion saw was queued"
    (row,) = shown(db)
    assert (row["model_version"], row["inspections"], row["trend"]) == ("2", 4, "none")
    assert hits_shown(db) == []


def test_a_hit_of_the_champion_shows_at_once(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1) + sightings(1, inspection="2"))
    drain(db, champion)
    second = register(db, version="2")
    promote(db, second, utc(10))
    record(db, source_id, sightings(1, inspection="3"), utc(11))
    finish(db, claimed(db, utc(12)), second, utc(12), scores=lambda c: HIT)
    assert hits_shown(db) == [("A01", "2", "new")]


def test_an_image_read_again_takes_its_verdict_along(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(3)
    record(db, source_id, files[:1])
    drain(db, champion, scores=lambda c: HIT)
    db.write(lambda c: c.execute(sa.update(image).values(mtime_ns=-image.c.mtime_ns - 1)))
    record(db, source_id, [replace(files[0], image=files[2].image)], utc(5))
    assert [(row["well"], bool(row["hit"])) for row in shown(db)] == [("A03", True)]
    assert hits_shown(db) == [("A03", "1", "new")]
    db.write(lambda c: c.execute(sa.update(image).values(mtime_ns=-image.c.mtime_ns - 1)))
    record(db, source_id, [replace(files[0], image=replace(files[2].image, modality=Modality.UV))], utc(6))
    assert shown(db) == []
    assert hits_shown(db) == []


def test_a_word_at_an_inspection_in_other_light_counts(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    record(db, source_id, sightings(1, inspection="2", modality=Modality.UV))
    say(db, "A01", "2", DropClass.CRYSTALS, "ann", 1)
    (row,) = shown(db)
    assert (row["label"], bool(row["hit"]), row["first_hit_inspection_key"]) == ("Crystals", True, "2")


def test_a_hit_that_ended_and_is_there_again_is_news(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    say(db, "A01", "1", DropClass.CRYSTALS, "ann", 1)
    say(db, "A01", "1", None, "ann", 2)
    (row,) = shown(db)
    assert (row["first_hit_inspection_key"], row["first_hit_found_at"]) == (None, None)
    record(db, source_id, sightings(1, inspection="2"), utc(days=9))
    drain(db, champion, utc(days=9), scores=lambda c: HIT)
    assert rows(db, sa.select(hit.c.found_at))[0][0] == utc(days=9)


@pytest.mark.slow
def test_it_is_news_no_matter_which_version_scored_it_before(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion, utc(1), scores=lambda c: HIT)
    second = register(db, version="2")
    promote(db, second, utc(2))
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2)))
    drain(db, second, utc(3), scores=lambda c: HIT)
    say(db, "A01", "1", DropClass.CLEAR, "ann", 4)
    say(db, "A01", "1", None, "ann", 5)
    assert hits_shown(db) == [("A01", "2", "new")]
    assert len(rows(db, sa.select(event.c.id).where(event.c.kind == "hits"))) == 2


def test_hits_of_a_challenger_are_news_when_it_is_promoted(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion, utc(1), scores=lambda c: HIT if "A01" in c.path else NONE)
    second = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2)))
    drain(db, second, utc(3), scores=lambda c: HIT)
    promote(db, second, utc(days=3))
    assert hits_shown(db) == [("A01", "2", "confirmed"), ("A02", "2", "model")]
    of_second = sa.select(hit.c.found_at).where(hit.c.model_version_id == second.id)
    assert {row[0] for row in rows(db, of_second)} == {utc(days=3)}


def test_what_a_rolled_back_version_saw_alone_is_queued_again(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    second = register(db, version="2")
    promote(db, second, utc(10))
    record(db, source_id, sightings(1, plate="P2"), utc(11))
    drain(db, second, utc(12))
    db.write(lambda c: serving.rollback(c, champion, actor="test", now=utc(13)))
    assert drain(db, champion, utc(14)) == 1
    assert {row["model_version"] for row in shown(db)} == {"1"}


def test_what_bears_a_time_before_the_promotion_is_queued_too(db: Database, source_id: int, champion: Version) -> None:
    second = register(db, version="2")
    promote(db, second, utc(100))
    record(db, source_id, sightings(1), utc(95))
    drain(db, second, utc(101))
    db.write(lambda c: summaries.complete_quiet(c, utc(hours=1), 60.0))
    db.write(lambda c: serving.rollback(c, champion, actor="test", now=utc(hours=2)))
    assert drain(db, champion, utc(hours=2)) == 1


@pytest.mark.slow
def test_the_latest_inspection_is_the_last_in_time(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, [f for n in (1, 2, 10, 9) for f in sightings(1, inspection=str(n))])
    drain(db, champion)
    (plate,) = db.read(lambda c: reports.find_plates(c, "P1"))
    found = db.read(lambda c: reports.summaries(c, [plate.id]))
    assert [row.inspection_key for row in found] == ["10", "9", "2", "1"]


def test_a_word_on_one_drop_changes_no_other(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion)
    record(db, source_id, sightings(2, inspection="2", modality=Modality.UV))
    say(db, "A01", "2", DropClass.CRYSTALS, "ann", 1)
    ids = list(rows(db, sa.select(drop.c.id)))
    db.write(lambda c: drops.refresh(c, [row[0] for row in ids], champion, utc(2)))
    assert [(row["well"], row["inspections"], bool(row["hit"])) for row in shown(db)] == [
        ("A01", 2, True),
        ("A02", 1, False),
    ]

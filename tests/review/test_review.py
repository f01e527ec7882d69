"""What people are asked to look at: which drops, in whose hands, and closed by which words. Synthetic."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from factories import utc

from marcod.database.engine import Database
from marcod.database.schema import drop, inspection, review_item
from marcod.domain import DropClass, Modality
from marcod.errors import NotFoundError, StoreError
from marcod.labels import recorder
from marcod.labels.recorder import LabelTarget
from marcod.review import desk, sampling, strategies
from marcod.review import queue as store
from marcod.review.queue import ReviewItem, Stream
from marcod.settings import ReviewSettings
from marcod.store import queue, serving, versions
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

SETTINGS = ReviewSettings(audit_drops=12)
WORDS = {str(c).lower(): c for c in DropClass}


def scored(db: Database, source_id: int, version: Version, shares: dict[str, float], at: str = "1") -> None:
    """An inspection of plate P1 with a crystal probability for each of its first wells, the rest is clear."""
    when = utc(hours=int(at))
    factories.record(db, source_id, factories.sightings(len(shares), inspection=at), when)
    rescored(db, version, shares, when)


def rescored(db: Database, version: Version, shares: dict[str, float], when: datetime) -> None:
    def of(path: str) -> tuple[float, float, float, float]:
        p = shares[Path(path).stem]
        return 1 - p, p, 0.0, 0.0

    factories.drain(db, version, when, scores=lambda claim: of(claim.path))


def wells(*shares: float) -> dict[str, float]:
    """Probabilities of A01, A02, ..."""
    return {f"{'ABCDEFGH'[i // 12]}{i % 12 + 1:02d}": p for i, p in enumerate(shares)}


def subject(db: Database, well: str, at: str = "1") -> LabelTarget:
    of_plate = inspection.c.plate_id == drop.c.plate_id
    where = (
        sa.select(drop.c.id, inspection.c.id)
        .join(inspection, of_plate)
        .where(drop.c.well == well, inspection.c.key == at)
    )
    return LabelTarget(*factories.rows(db, where)[0])


def say(db: Database, well: str, word: str | None, person: str, when: datetime, at: str = "1") -> None:
    of = subject(db, well, at)
    given = NewLabel(of.drop_id, of.inspection_id, word and WORDS[word], person, when, "test")  # type: ignore[arg-type]
    db.write(lambda c: recorder.add(c, [given], when))


def propose(db: Database, stream: Stream, version: Version, limit: int = 100, when: datetime | None = None) -> None:
    find = strategies.near_threshold if stream is Stream.THRESHOLD else _disagreements
    db.write(lambda c: store.add(c, stream, version, find(c, version, limit), when or utc(hours=9)))


def _disagreements(connection: sa.Connection, version: Version, limit: int) -> list[store.ReviewCandidate]:
    other = versions.aliased(connection, versions.CHALLENGER)
    among = strategies.among_models(connection, version, other, limit)
    return among + strategies.with_people(connection, version, limit)


def waiting(db: Database, *streams: Stream) -> list[ReviewItem]:
    return db.read(lambda c: store.waiting(c, streams or list(Stream), 1000))


def claim(db: Database, person: str, when: datetime, *streams: Stream) -> ReviewItem | None:
    def work(connection: sa.Connection) -> list[ReviewItem]:
        return store.items(connection, store.claim(connection, person, streams or list(Stream), when))

    found = db.write(work)
    return found[0] if found else None


def draw(db: Database, version: Version, strata: list[sampling.Stratum], seed: int, when: datetime) -> int:
    def work(connection: sa.Connection) -> int:
        sampling.start_draw(connection)
        return sampling.draw(connection, version, strata, seed, when)

    return db.write(work)


def subjects(drawn: sampling.Round) -> set[tuple[int, int]]:
    return {subject for stratum in drawn.strata for subject in stratum.subjects}


def test_the_drops_nearest_to_the_threshold_from_both_sides(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.9, 0.6, 0.45, 0.1, 0.55, 0.52, 0.49))
    say(db, "A07", "clear", "ann", utc(hours=2))
    propose(db, Stream.THRESHOLD, champion, 4)
    assert [i.well for i in waiting(db)] == ["A06", "A03", "A05", "A04"]
    assert waiting(db)[0].reason == "Its crystal probability of 0.52 is near the threshold of 0.50."
    propose(db, Stream.THRESHOLD, champion, 4)
    assert [i.well for i in waiting(db)] == ["A06", "A03", "A05", "A02", "A04", "A01"]


@pytest.mark.slow
def test_disagreement_of_every_kind(db: Database, champion: Version, source_id: int) -> None:
    challenger = factories.register(db, version="2", crystal_threshold=0.3)
    scored(db, source_id, champion, wells(0.9, 0.1, 0.05, 0.1))
    scored(db, source_id, champion, wells(0.1, 0.1, 0.05, 0.1), "2")
    scored(db, source_id, champion, wells(0.8, 0.1, 0.05, 0.1), "3")
    for person, word in (("ann", "crystals"), ("bob", "clear")):
        say(db, "A02", word, person, utc(hours=5), "3")
    say(db, "A03", "crystals", "ann", utc(hours=5), "3")
    db.write(lambda c: serving.challenge(c, challenger, actor="test", now=utc(hours=6)))
    db.write(lambda c: queue.enqueue_rescore(c, challenger.id, utc(hours=6)))
    rescored(db, challenger, wells(0.9, 0.1, 0.05, 0.7), utc(hours=7))
    propose(db, Stream.DISAGREEMENT, champion)
    told = {i.well: (i.inspection_key, i.reason) for i in waiting(db)}
    assert told["A01"][0] == "2"
    assert "stands between 0.90 at inspection 1 and 0.80 at inspection 3" in told["A01"][1]
    assert told["A02"] == ("3", "Persons disagree: 1 for Clear and 1 for Crystals.")
    assert told["A03"] == ("3", "It is labelled Crystals, to which small:1 gives 0.05.")
    assert told["A04"] == ("3", "For crystals small:1 gives 0.10 and small:2 gives 0.70.")
    propose(db, Stream.DISAGREEMENT, champion)
    assert len(waiting(db)) == 4


def test_an_item_is_in_one_persons_hands(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.52, 0.45))
    propose(db, Stream.THRESHOLD, champion)
    first = claim(db, "ann", utc(hours=10))
    second = claim(db, "bob", utc(hours=10))
    assert first is not None
    assert second is not None
    assert (first.well, second.well) == ("A01", "A02")
    assert claim(db, "eve", utc(hours=10)) is None
    again = claim(db, "ann", utc(hours=10, minutes=5))
    assert again is not None
    assert again.item_id == first.item_id
    late = claim(db, "eve", utc(hours=10, minutes=31))
    assert late is not None
    assert late.item_id == second.item_id
    desk.release(db, [first], "ann")
    given_back = claim(db, "bob", utc(hours=10, minutes=32))
    assert given_back is not None
    assert given_back.item_id == first.item_id


@pytest.mark.slow
def test_many_people_at_once_share_the_items(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(*[0.4 + i / 200 for i in range(24)]))
    propose(db, Stream.THRESHOLD, champion)

    def work(person: str) -> list[int]:
        mine = []
        while (item := claim(db, person, utc(hours=10))) is not None:
            mine.append(item.item_id)
            desk.answer(db, item, DropClass.CLEAR, person, utc(hours=10))
        return mine

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(work, ["ann", "bob", "eve", "joe"]))
    every = [item_id for share in shares for item_id in share]
    assert len(every) == len(set(every)) == 24
    assert waiting(db) == []


@pytest.mark.slow
def test_nobody_is_asked_twice(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.52, 0.45))
    propose(db, Stream.THRESHOLD, champion)
    for well in ("A01", "A02"):
        of = subject(db, well)
        db.write(partial(store.ask, subject=of, version=champion, reason="Look.", now=utc(hours=9)))
    item = claim(db, "ann", utc(hours=10), Stream.THRESHOLD)
    assert item is not None
    desk.skip(db, item, "ann", utc(hours=10))
    # What ann skipped in one stream is left to bob in the other; what she has labelled is not asked at all.
    other = claim(db, "ann", utc(hours=10), Stream.MANUAL)
    assert other is not None
    assert other.well == "A02"
    desk.answer(db, other, DropClass.CLEAR, "ann", utc(hours=11))
    db.write(store.reconcile)
    assert claim(db, "ann", utc(hours=12)) is None
    bobs = claim(db, "bob", utc(hours=12))
    assert bobs is not None
    assert (bobs.well, bobs.stream) == ("A01", Stream.MANUAL)


def test_a_word_that_came_otherwise_closes_its_items(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.52, 0.45, 0.55))
    propose(db, Stream.THRESHOLD, champion)
    say(db, "A01", "crystals", "ann", utc(hours=10))
    say(db, "A02", "clear", "ann", utc(hours=10))
    say(db, "A02", None, "ann", utc(hours=11))
    assert db.write(store.reconcile) == 1
    assert [i.well for i in waiting(db)] == ["A02", "A03"]
    row = factories.rows(db, sa.select(review_item).where(review_item.c.answered_at.is_not(None)))[0]
    assert (row.answer, row.person, row.answered_at) == ("Crystals", "ann", utc(hours=10))
    assert db.write(store.reconcile) == 0


@pytest.mark.slow
def test_by_hand_and_once_more(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.2))
    of = subject(db, "A01")
    say(db, "A01", "clear", "ann", utc(hours=8))
    asked = [db.write(lambda c: store.ask(c, of, champion, "Ann asks.", utc(hours=9))) for _ in range(2)]
    assert asked == [True, False]
    item = claim(db, "bob", utc(hours=10))
    assert item is not None
    assert (item.reason, item.p_crystals) == ("Ann asks.", 0.2)
    desk.answer(db, item, DropClass.CRYSTALS, "bob", utc(hours=10))
    assert waiting(db) == []
    assert db.write(lambda c: store.ask(c, of, champion, "Once more.", utc(hours=12)))
    assert [i.reason for i in waiting(db)] == ["Once more."]
    assert db.write(store.reconcile) == 0
    with pytest.raises(NotFoundError, match="no image"):
        db.write(lambda c: store.ask(c, LabelTarget(of.drop_id, 10**6), champion, "Look.", utc()))


def test_a_draw_keeps_who_could_be_drawn(db: Database, champion: Version, source_id: int) -> None:
    shares = [0.9, 0.8, 0.7, *[i / 100 for i in range(30)]]
    scored(db, source_id, champion, wells(*shares))
    assert db.read(lambda c: sampling.sides(c, champion)) == (3, 30)
    say(db, "A01", "crystals", "ann", utc(hours=2))
    plan = [sampling.Stratum(True, 3, 3), sampling.Stratum(False, 10, 5), sampling.Stratum(False, 20, 4)]
    assert draw(db, champion, plan, 7, utc(hours=3)) == 12
    rows = factories.rows(db, sa.select(review_item))
    assert {(r.stratum, round(r.inclusion, 3)) for r in rows} == {(0, 1.0), (1, 0.5), (2, 0.2)}
    assert all(0.20 <= r.p_crystals < 0.5 for r in rows if r.stratum == 1)
    assert all(r.p_crystals < 0.20 for r in rows if r.stratum == 2)
    first = db.read(lambda c: sampling.rounds(c, champion))[0]
    assert [(s.low, s.high, s.population, s.sample) for s in first.strata] == [
        (0.7, 0.9, 3, 3), (0.2, 0.29, 10, 5), (0.0, 0.19, 20, 4),
    ]  # fmt: skip
    # What people had said before the draw is an answer, because the draw did not look at it.
    assert db.write(store.reconcile) == 1
    # It counts when its turn comes.
    tallies = db.read(lambda c: sampling.tallies(c, first))
    assert [t.answered + t.waiting for t in tallies] == [1, 0, 0]
    for well, word in (("A02", "crystals"), ("A03", "clear")):
        say(db, well, word, "ann", utc(hours=4))
    tallies = db.read(lambda c: sampling.tallies(c, first))
    assert [(t.answered, t.crystals, t.open, t.waiting) for t in tallies] == [(3, 2, 0, 0), (0, 0, 5, 0), (0, 0, 4, 0)]


def test_a_drop_that_is_drawn_again_is_not_asked_again(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.9, 0.1, 0.2, 0.3))
    plan = [sampling.Stratum(True, 1, 1), sampling.Stratum(False, 3, 3)]
    for seed in (1, 2):
        draw(db, champion, plan, seed, utc(hours=2 + seed))
    assert len(waiting(db)) == 4
    item = claim(db, "ann", utc(hours=6))
    assert item is not None
    desk.answer(db, item, DropClass.CLEAR, "ann", utc(hours=6))
    found = db.read(lambda c: sampling.rounds(c, champion))
    assert len(found) == 2
    assert subjects(found[0]) == subjects(found[1])
    for each in found:
        tallies = db.read(lambda c, each=each: sampling.tallies(c, each))
        counted = [(t.population, t.answered + t.waiting + t.open) for t in tallies]
        assert (counted, sum(t.open for t in tallies)) == ([(1, 1), (3, 3)], 3)


@pytest.mark.slow
def test_what_was_labelled_for_another_reason_counts_in_its_turn(
    db: Database, champion: Version, source_id: int
) -> None:
    scored(db, source_id, champion, wells(0.9, *[i / 100 for i in range(20)]))
    draw(db, champion, [sampling.Stratum(True, 1, 1), sampling.Stratum(False, 20, 8)], 3, utc(hours=2))
    [drawn] = db.read(lambda c: sampling.rounds(c, champion))
    in_turn = [i for i in waiting(db) if (i.drop_id, i.inspection_id) in drawn.strata[1].subjects]
    assert [(i.drop_id, i.inspection_id) for i in in_turn] == list(drawn.strata[1].subjects)
    assert len(in_turn) == 8
    for item in in_turn[3:]:
        say(db, item.well, "crystals", "ann", utc(hours=3))
    say(db, in_turn[0].well, "clear", "ann", utc(hours=3))
    below = db.read(lambda c: sampling.tallies(c, drawn))[1]
    assert (below.answered, below.crystals, below.open, below.waiting) == (1, 0, 2, 5)
    desk.skip(db, in_turn[1], "ann", utc(hours=4))
    desk.answer(db, in_turn[2], DropClass.CLEAR, "ann", utc(hours=4))
    below = db.read(lambda c: sampling.tallies(c, drawn))[1]
    assert (below.answered, below.crystals, below.skipped, below.open, below.waiting) == (7, 5, 1, 0, 0)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_the_recall_is_that_of_the_latest_answered_audit(db: Database, champion: Version, source_id: int) -> None:
    """Two draws of other sizes are not put together, and one that nobody answered does not disturb."""
    shares = [0.9 - i / 100 for i in range(10)] + [i / 100 for i in range(38)]
    scored(db, source_id, champion, wells(*shares))
    crystals = {f"A{n:02d}" for n in range(1, 9)} | {"A11", "A12"}
    plans = ((10, 30), (10, 10))
    for hour, (above, below) in enumerate(plans):
        plan = [sampling.Stratum(True, 10, above), sampling.Stratum(False, 38, below)]
        draw(db, champion, plan, hour, utc(hours=2 + hour))
    newest, oldest = db.read(lambda c: sampling.rounds(c, champion))
    for item in [i for i in waiting(db) if (i.drop_id, i.inspection_id) in subjects(oldest)]:
        word = DropClass.CRYSTALS if item.well in crystals else DropClass.CLEAR
        desk.answer(db, item, word, "ann", utc(hours=5))
    found = desk.report(db)
    assert found.recall is not None
    drawn_crystals = sum(t.crystals for t in found.strata if not t.flagged)
    assert found.recall == pytest.approx(8 / (8 + 38 * drawn_crystals / 30))
    assert (found.drawn_at, found.population, found.drawn, found.answered) == (oldest.drawn_at, 48, 40, 40)
    assert newest.drawn_at > oldest.drawn_at
    draw(db, champion, [sampling.Stratum(True, 10, 10), sampling.Stratum(False, 38, 38)], 9, utc(hours=6))
    assert desk.report(db).drawn_at == oldest.drawn_at
    for item in waiting(db, Stream.AUDIT):
        word = DropClass.CRYSTALS if item.well in crystals else DropClass.CLEAR
        desk.answer(db, item, word, "ann", utc(hours=7))
    whole = desk.report(db)
    assert (whole.drawn_at, whole.recall) == (utc(hours=6), pytest.approx(8 / 10))


@pytest.mark.slow
def test_items_of_the_present_audit_are_not_removed(db: Database, champion: Version, source_id: int) -> None:
    """Drawn for a former champion, in somebody's hands then, and drawn again."""
    scored(db, source_id, champion, wells(0.9, 0.1, 0.2, 0.3))
    plan = [sampling.Stratum(True, 1, 1), sampling.Stratum(False, 3, 3)]
    draw(db, champion, plan, 1, utc(hours=2))
    [former] = db.read(lambda c: sampling.rounds(c, champion))
    held = claim(db, "ann", utc(hours=3), Stream.AUDIT)
    assert held is not None
    other = factories.register(db, version="2")
    factories.promote(db, other, utc(hours=3))
    db.write(lambda c: queue.enqueue_rescore(c, other.id, utc(hours=3)))
    rescored(db, other, wells(0.9, 0.1, 0.2, 0.3), utc(hours=3))
    assert db.write(lambda c: store.retire(c, other)) == 3
    draw(db, other, plan, 2, utc(hours=4))
    desk.release(db, [held], "ann")
    assert db.write(lambda c: store.retire(c, other)) == 0
    [present] = db.read(lambda c: sampling.rounds(c, other))
    assert (held.drop_id, held.inspection_id) in subjects(present)
    assert {i.model for i in waiting(db)} == {"small:2"}
    assert not db.read(lambda c: sampling.lost(c, present))
    # Back again, the former champion's own draw is not whole any more, and another is due.
    db.write(lambda c: serving.rollback(c, champion, actor="test", now=utc(hours=5)))
    assert db.write(lambda c: store.retire(c, champion)) == 4
    assert db.read(lambda c: sampling.lost(c, former))
    assert [t.open for t in db.read(lambda c: sampling.tallies(c, former))] == [1, 3]
    assert desk.fill(db, SETTINGS, utc(hours=6)).new[Stream.AUDIT] == 4


@pytest.mark.slow
def test_one_person_gets_a_drop_once_from_several_streams(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.52, 0.45))
    propose(db, Stream.THRESHOLD, champion)
    draw(db, champion, [sampling.Stratum(True, 1, 1), sampling.Stratum(False, 1, 1)], 1, utc(hours=9))
    taken: list[ReviewItem] = []
    while found := desk.take(db, SETTINGS, "ann", utc(hours=10), hold=timedelta(days=7)):
        taken += found
    assert sorted(i.well for i in taken) == ["A01", "A02"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_by_hand_the_models_own_light_comes_first(db: Database, champion: Version, source_id: int) -> None:
    for light in (Modality.UV, Modality.VISIBLE):
        factories.record(db, source_id, factories.sightings(1, modality=light))
    assert db.write(lambda c: store.ask(c, subject(db, "A01"), champion, "Look.", utc(hours=9)))
    assert "visible" in waiting(db)[0].path


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_models_doubt_of_an_audited_drop_is_not_a_reason_to_ask(
    db: Database, champion: Version, source_id: int
) -> None:
    scored(db, source_id, champion, wells(0.9, 0.1))
    draw(db, champion, [sampling.Stratum(True, 1, 1), sampling.Stratum(False, 1, 0)], 1, utc(hours=2))
    for well, word in (("A01", "clear"), ("A02", "crystals")):
        say(db, well, word, "ann", utc(hours=3))
    found = db.read(lambda c: strategies.with_people(c, champion, 10))
    assert found == []
    say(db, "A01", None, "ann", utc(hours=4))
    assert [p.drop_id for p in db.read(lambda c: strategies.with_people(c, champion, 10))] == [
        subject(db, "A02").drop_id
    ]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_was_asked_keeps_its_version(db: Database, champion: Version, source_id: int) -> None:
    factories.record(db, source_id, factories.sightings(1))
    db.write(lambda c: store.ask(c, subject(db, "A01"), champion, "Look.", utc()))
    factories.promote(db, factories.register(db, version="2"), utc(hours=1))
    with pytest.raises(StoreError, match="small:1 has items in the review; --force removes its bundle"):
        db.write(lambda c: serving.remove(c, champion, force=False, actor="test", now=utc(hours=2)))
    assert db.write(lambda c: serving.remove(c, champion, force=True, actor="test", now=utc(hours=2)))
    assert db.read(versions.listed)[0].removed_at == utc(hours=2)
    assert [i.model for i in waiting(db)] == ["small:1"]


@pytest.mark.slow
def test_the_queue_is_filled_when_it_has_nothing(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(0.52, 0.45, 0.3))
    db.write(lambda c: store.ask(c, subject(db, "A03"), champion, "Look.", utc()))
    by_hand = desk.next_item(db, SETTINGS, "ann", utc(hours=9))
    assert by_hand is not None
    assert [i.stream for i in waiting(db)] == [Stream.MANUAL]
    desk.answer(db, by_hand, DropClass.CLEAR, "ann", utc(hours=9))
    assert desk.next_item(db, SETTINGS, "ann", utc(hours=9)) is not None
    assert {i.stream for i in waiting(db)} >= {Stream.THRESHOLD, Stream.AUDIT}


@pytest.mark.slow
def test_filling_twice_is_filling_once(db: Database, champion: Version, source_id: int) -> None:
    scored(db, source_id, champion, wells(*[i / 50 for i in range(50)]))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: desk.fill(db, SETTINGS, utc(hours=9)).new, range(2)))
    assert sum(new[Stream.THRESHOLD] for new in both) == 50
    assert sorted(new[Stream.AUDIT] for new in both) == [0, 12]
    again = desk.fill(db, SETTINGS, utc(hours=9, minutes=1))
    assert (sum(again.new.values()), again.closed, again.retired) == (0, 0, 0)
    streams = []
    for minute in range(10):
        when = utc(hours=10, minutes=minute)
        item = desk.next_item(db, SETTINGS, "ann", when)
        assert item is not None
        streams.append(item.stream)
        assert (item.p_crystals is None) == (item.stream is Stream.AUDIT)
        desk.answer(db, item, DropClass.CLEAR, "ann", when)
    assert 1 <= streams.count(Stream.AUDIT) <= 5
    # Another champion's items say nothing of the present one; what was answered stays.
    other = factories.register(db, version="2")
    factories.promote(db, other, utc(hours=11))
    after = desk.fill(db, SETTINGS, utc(hours=12))
    assert after.retired > 0
    assert {row.answer for row in factories.rows(db, sa.select(review_item))} == {"Clear"}
    assert desk.report(db).sentence.startswith("No audit of small:2 has been drawn yet")

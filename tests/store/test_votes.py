"""Labels: nothing is lost, nothing counts twice, and what counts now follows from who said what last."""

from datetime import datetime
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from factories import CRYSTALS, drain, record, register, rows, sightings, utc

from marcod.database.engine import Database
from marcod.database.schema import image, label, source
from marcod.domain import CLASSES, DropClass, Modality
from marcod.labels import recorder
from marcod.store import votes as store_votes
from marcod.store.versions import Version
from marcod.store.votes import MajorityLabel, NewLabel

CLEAR, CRYSTAL, OTHER, PRECIPITATE = CLASSES


@pytest.fixture
def photographs(db: Database, champion: Version, source_id: int) -> list[Any]:
    """Two drops with two regions each, and the same in UV light: id, drop, inspection, path."""
    for region in (1, 2):
        record(db, source_id, sightings(2, region=region))
    record(db, source_id, sightings(2, modality=Modality.UV))
    columns = (image.c.id, image.c.drop_id, image.c.inspection_id, image.c.path)
    return rows(db, sa.select(*columns).where(image.c.modality == "visible").order_by(image.c.drop_id, image.c.id))


def said(
    photograph: Any, word: DropClass | None, person: str = "ada", at: datetime | None = None, *, image: bool = False
) -> NewLabel:
    where = (photograph.drop_id, photograph.inspection_id)
    return NewLabel(*where, word, person, at or utc(), "test", image_id=photograph.id if image else None)


def add(db: Database, *givens: NewLabel) -> int:
    return db.write(lambda c: store_votes.add(c, givens, utc(hours=1)))


def current(db: Database) -> list[MajorityLabel]:
    return db.read(store_votes.current)


def carried(db: Database, version: Version | None = None) -> dict[int, DropClass]:
    """Image id to label."""
    found = db.read(lambda c: store_votes.labelled_images(c, None if version is None else version.id))
    return {i.image_id: i.label for i in found}


def test_an_import_repeated_changes_nothing(db: Database, photographs: list[Any]) -> None:
    words = [said(photographs[0], CRYSTAL), said(photographs[2], CLEAR), said(photographs[0], CRYSTAL)]
    assert add(db, *words) == 2
    before = current(db)
    assert add(db, *words, said(photographs[2], CLEAR, "bob")) == 1
    assert add(db, *words) == 0
    assert current(db)[:1] == before[:1]
    assert rows(db, sa.select(sa.func.count()).select_from(label))[0][0] == 3


@pytest.mark.slow
def test_many_at_once(db: Database, photographs: list[Any]) -> None:
    words = [said(photographs[0], CRYSTAL, f"person {n}") for n in range(2 * store_votes.CHUNK + 1)]
    assert add(db, *words) == len(words)
    assert current(db)[0].votes == {CRYSTAL: len(words)}


def test_the_words_as_written_are_kept(db: Database, photographs: list[Any]) -> None:
    drop = photographs[0]
    add(db, NewLabel(drop.drop_id, drop.inspection_id, CRYSTAL, "ada", utc(), "csv a.csv", "needles", "lab words"))
    kept = rows(db, sa.select(label.c.original, label.c.vocabulary, label.c.origin, label.c.recorded_at))
    assert [tuple(row) for row in kept] == [("needles", "lab words", "csv a.csv", utc(hours=1))]


def test_a_persons_latest_word_counts_whenever_it_arrives(db: Database, photographs: list[Any]) -> None:
    add(db, said(photographs[0], CRYSTAL, at=utc(5)))
    add(db, said(photographs[0], CLEAR, at=utc(1)))
    [verdict] = current(db)
    assert (verdict.label, verdict.votes, verdict.disputed) == (CRYSTAL, {CRYSTAL: 1}, False)
    add(db, said(photographs[0], OTHER, at=utc(5)))
    assert current(db)[0].label is OTHER


def test_the_majority_decides_and_the_latest_breaks_a_tie(db: Database, photographs: list[Any]) -> None:
    add(db, said(photographs[0], CRYSTAL, "ada", utc(1)), said(photographs[0], CLEAR, "bob", utc(2)))
    [verdict] = current(db)
    assert (verdict.label, verdict.person, verdict.labelled_at) == (CLEAR, "bob", utc(2))
    assert verdict.votes == {CRYSTAL: 1, CLEAR: 1}
    assert verdict.disputed
    add(db, said(photographs[0], CRYSTAL, "cyd", utc(0)))
    [verdict] = current(db)
    assert (verdict.label, verdict.votes[CRYSTAL], verdict.person) == (CRYSTAL, 2, "ada")


def test_what_is_withdrawn_counts_no_more_and_is_still_there(db: Database, photographs: list[Any]) -> None:
    add(db, said(photographs[0], CRYSTAL, "ada", utc(1)), said(photographs[0], CLEAR, "bob", utc(2)))
    where = recorder.LabelTarget(photographs[0].drop_id, photographs[0].inspection_id)

    def withdraw(person: str) -> int:
        return db.write(lambda c: recorder.withdraw(c, where, person=person, origin="test", now=utc(3)))

    assert withdraw("bob") == 1
    assert withdraw("bob") == 0
    assert [(v.label, v.disputed) for v in current(db)] == [(CRYSTAL, False)]
    assert withdraw("ada") == 1
    assert current(db) == []
    assert carried(db) == {}
    assert rows(db, sa.select(sa.func.count()).select_from(label))[0][0] == 4


def test_a_drops_label_is_carried_by_its_images_and_an_images_own_wins(db: Database, photographs: list[Any]) -> None:
    first, second, third, _ = photographs
    add(db, said(first, CLEAR), said(second, CRYSTAL, image=True), said(third, OTHER, image=True))
    assert carried(db) == {first.id: CLEAR, second.id: CRYSTAL, third.id: OTHER}
    add(db, said(second, None, at=utc(1), image=True))
    assert carried(db) == {first.id: CLEAR, second.id: CLEAR, third.id: OTHER}


def test_scores_come_along_while_they_are_of_the_present_content(
    db: Database, champion: Version, photographs: list[Any]
) -> None:
    drain(db, champion, scores=lambda claim: CRYSTALS)
    add(db, said(photographs[0], CRYSTAL))
    other = register(db, version="2")

    def scores(version: Version) -> list[Any]:
        return [i.probabilities for i in db.read(lambda c: store_votes.labelled_images(c, version.id))]

    assert scores(champion) == [CRYSTALS, CRYSTALS]
    assert scores(other) == [None, None]
    rescored = sa.update(image).where(image.c.id == photographs[0].id).values(content_hash="of other bytes")
    db.write(lambda c: c.execute(rescored))
    assert sorted(scores(champion), key=str) == [CRYSTALS, None]


def test_a_image_says_where_it_is(db: Database, photographs: list[Any]) -> None:
    add(db, said(photographs[0], CRYSTAL, "ada"), said(photographs[0], OTHER, "bob"))
    found = db.read(lambda c: store_votes.labelled_images(c, None, ["imager"]))[0]
    assert (found.source, found.layout, found.root, found.path) == (
        "imager",
        "rigaku",
        "/plates/imager",
        photographs[0].path,
    )
    assert (found.plate_key, found.well, found.drop_number, found.own) == ("P1", "A01", 1, False)
    assert found.votes == {CRYSTAL: 1, OTHER: 1}
    assert db.read(lambda c: store_votes.labelled_images(c, None, ["elsewhere"])) == []
    assert len(db.read(lambda c: store_votes.labelled_images(c, None, modality=Modality.UV))) == 1


def test_current_can_be_asked_for_some(db: Database, photographs: list[Any]) -> None:
    add(db, said(photographs[0], CRYSTAL), said(photographs[2], CLEAR))
    assert rows(db, sa.select(source.c.name)) == [("imager",)]
    assert [v.label for v in db.read(lambda c: store_votes.current(c, drop_ids=[photographs[2].drop_id]))] == [CLEAR]
    assert len(db.read(lambda c: store_votes.current(c, sources=["imager"]))) == 2
    assert db.read(lambda c: store_votes.current(c, sources=["elsewhere"])) == []


def test_any_sequence_of_words_has_the_verdict_of_the_rule(db: Database, photographs: list[Any]) -> None:
    rng = Random(1)
    for photograph in photographs:
        words = [(rng.choice("abc"), rng.choice([*CLASSES, None]), rng.randrange(4)) for _ in range(rng.randrange(12))]
        words = list(dict.fromkeys(words))
        add(db, *(said(photograph, word, person, utc(second), image=True) for person, word, second in words))
        found = [v.label for v in current(db) if v.image_id == photograph.id]
        assert found == _by_the_rule(words)


def _by_the_rule(words: list[tuple[str, DropClass | None, int]]) -> list[DropClass]:
    latest: dict[str, tuple[int, int, DropClass]] = {}
    for place, (person, word, second) in sorted(enumerate(words), key=lambda w: (w[1][2], w[0])):
        latest.pop(person, None)
        if word is not None:
            latest[person] = (second, place, word)
    votes = [word for _, _, word in latest.values()]
    return [max(latest.values(), key=lambda w: (votes.count(w[2]), w[:2]))[2]] if votes else []

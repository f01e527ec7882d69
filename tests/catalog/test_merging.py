"""Merging two sources: nothing is lost, nothing is there twice, and what follows is as if it had been one all along."""

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import factories
import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, claim, drain, promote, record, register, register_source, rows, sightings, utc

from marcod.catalog import merging, registration, source_changes
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import (
    audit,
    campaign,
    campaign_range,
    drop,
    drop_mark,
    drop_summary,
    event,
    follow,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    label,
    label_inbox,
    plate,
    review_item,
    score,
    source,
)
from marcod.domain import DropClass, LayoutWarning, Modality, Split, WarningKind, split_of
from marcod.errors import ConfigError
from marcod.labels import recorder
from marcod.store import campaigns, derived, queue, results, summaries
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

BY_ORDER = ("updated_at", "first_image_at", "expected", "complete", "complete_rule")
"""Columns that follow from the order of events too."""

COUNTED = tuple(c for c in inspection_summary.c if c.name not in BY_ORDER)
OVER_TIME = tuple(c for c in drop_summary.c if c.name != "updated_at")


def content(path: str, size: int) -> str:
    return f"{path} of {size}"


class Story:
    """Two sources that saw parts of the same folder at different times, scored and labelled in any order."""

    def __init__(self, db: Database, seed: int) -> None:
        self.db, self.random = db, random.Random(seed)
        self.versions = [register(db, version=str(number), crystal_threshold=0.5) for number in (1, 2)]
        promote(db, self.versions[0])
        self.ids = {name: register_source(db, name) for name in ("hand", "minstrel")}
        self.files = [
            file
            for key in ("P1", "P2")
            for number in ("1", "2")
            for file in (*sightings(4, key, number), *sightings(1, key, number, modality=Modality.UV))
        ]
        self.sizes: dict[str, int] = {}
        self.at = 0.0

    @property
    def now(self) -> datetime:
        self.at += 10.0
        return utc(self.at)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            step = self.random.choice((self.deliver, self.deliver, self.score, self.score, self.label, self.promote))
            step()

    def deliver(self) -> None:
        """Some files, of which a few were rewritten."""
        name = self.random.choice(tuple(self.ids))
        some = self.random.sample(self.files, self.random.randint(1, len(self.files)))
        record(self.db, self.ids[name], [self._as_now(file) for file in some], self.now)

    def _as_now(self, file: Sighting) -> Sighting:
        if self.random.random() < 0.1:
            self.sizes[file.path] = self.sizes.get(file.path, 0) + 1
        return factories.rewritten(file, self.sizes.get(file.path, 0))

    def score(self) -> None:
        """A part of the queue; one image in ten cannot be read."""
        lease = claim(self.db, self.now, limit=self.random.choice((3, 100)))
        if lease is None or self.random.random() < 0.1:
            return
        version = next(v for v in self.versions if v.id == lease.model_version_id)
        bad = [queue.Failure(c, "torn", retryable=False) for c in lease.claims if self.random.random() < 0.1]
        factories.finish(self.db, lease, version, self.now, hashes=self._content, scores=_scores, failures=bad)

    def _content(self, claim: queue.Claim) -> str:
        """The bytes of the present file; a size that was recorded is that of the file, whoever looked."""
        return content(claim.path, self.sizes.get(claim.path, 0))

    def label(self) -> None:
        found = rows(self.db, sa.select(image.c.id, image.c.drop_id, image.c.inspection_id))
        if not found:
            return
        image_id, drop_id, inspection_id = self.random.choice(found)
        word = self.random.choice((*DropClass, None))
        at = utc(self.random.randint(0, 3))
        given = NewLabel(drop_id, inspection_id, word, self.random.choice(("ann", "bob")), at, "test")
        given = replace(given, image_id=image_id) if self.random.random() < 0.3 else given
        given = replace(given, original="xtals") if self.random.random() < 0.3 else given
        self.db.write(lambda c: recorder.add(c, [given], self.now))

    def promote(self) -> None:
        if self.random.random() < 0.2:
            version = self.random.choice(self.versions)
            self.db.write(lambda c: queue.enqueue_rescore(c, version.id, self.now))
            promote(self.db, version, self.now)

    def merge(self) -> source_changes.MergePlan:
        now = self.now
        one, other = self.ids["hand"], self.ids["minstrel"]
        return self.db.write(lambda c: merging.merge(c, one, other, actor="ann", now=now))


def _scores(claim: queue.Claim) -> tuple[float, float, float, float]:
    return CRYSTALS if "A01" in claim.path or "A03" in claim.path else CLEAR


def natural(db: Database) -> dict[str, Counter[Any]]:
    """Scores, labels, hits and images by what names them outside the database; a source's name is no part of it."""
    of_image = sa.select(image.c.path, score.c.model_version_id, score.c.content_hash).join(score)
    words = (
        sa.select(
            plate.c.key, drop.c.well, inspection.c.key, image.c.path, label.c.label, label.c.original, label.c.person,
            label.c.labelled_at,
        )
        .select_from(label)
        .join(drop, drop.c.id == label.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .join(inspection, inspection.c.id == label.c.inspection_id)
        .outerjoin(image, image.c.id == label.c.image_id)
    )  # fmt: skip
    hits = sa.select(plate.c.key, drop.c.well, hit.c.model_version_id).select_from(hit).join(drop).join(plate)
    asked = {"images": sa.select(image.c.path), "scores": of_image, "labels": words, "hits": hits}
    return {name: Counter(tuple(row) for row in rows(db, statement)) for name, statement in asked.items()}


def derived_rows(db: Database) -> list[Any]:
    """Every summary of an inspection and of a drop."""
    return [
        sorted(map(tuple, rows(db, sa.select(*COUNTED))), key=repr),
        sorted(map(tuple, rows(db, sa.select(*OVER_TIME))), key=repr),
    ]


def worked_out_again(db: Database) -> None:
    def work(connection: sa.Connection) -> None:
        drop_ids = connection.execute(sa.select(drop.c.id)).scalars().all()
        ids = connection.execute(sa.select(inspection.c.id)).scalars().all()
        derived.refresh(connection, drop_ids, ids, utc(days=1))

    db.write(work)


def told(db: Database, kind: str) -> int:
    return len(rows(db, sa.select(event.c.id).where(event.c.kind == kind)))


def unscored(db: Database) -> list[str]:
    """Images in the champion's light without a current score of its, and without a job that says why."""
    statement = sa.text(
        "select i.path from image i join model_alias a on a.alias = 'champion' where i.modality = 'visible'"
        " and not exists (select 1 from job j where j.image_id = i.id and j.model_version_id = a.model_version_id)"
        " and not exists (select 1 from score s where s.image_id = i.id and s.content_hash = i.content_hash"
        " and s.model_version_id = a.model_version_id)"
    )
    return [row[0] for row in rows(db, statement)]


def check(story: Story, *, drained: bool) -> None:
    """Merge, and compare with what the two sources had."""
    db = story.db
    worked_out_again(db)
    assert unscored(db) == []
    before, hits_told, completed = natural(db), told(db, "hits"), told(db, "complete")
    waiting = len(rows(db, sa.select(job.c.id)))
    plan = story.merge()
    after = natural(db)
    # What people said of one drop under two names may be a hit only together.
    together = set(after["hits"]) - set(before["hits"])
    assert {row[:2] for row in together} <= {row[:2] for row in before["labels"]}
    for name, found in after.items():
        assert set(found) - together == set(before[name]), name
        assert set(found.values()) <= {1}, f"{name} are there twice"
    assert plan.same_images == sum(before["images"].values()) - sum(after["images"].values())
    assert plan.same_scores == sum(before["scores"].values()) - sum(after["scores"].values())
    assert [row.name for row in rows(db, sa.select(source))] == ["minstrel"]
    if db.is_sqlite:
        assert rows(db, sa.text("pragma foreign_key_check")) == []
    assert hits_told <= told(db, "hits") <= hits_told + len(together)
    assert unscored(db) == []
    assert len(rows(db, sa.select(job.c.id))) <= waiting
    if drained:
        assert told(db, "complete") == completed
    shown = derived_rows(db)
    worked_out_again(db)
    assert derived_rows(db) == shown


@pytest.mark.parametrize("seed", [1, 110, 120])
@pytest.mark.slow
def test_any_two_sources_are_one_afterwards(db: Database, seed: int) -> None:
    story = Story(db, seed)
    story.run(25)
    check(story, drained=False)


@pytest.mark.slow
def test_what_is_scored_and_reported_is_neither_scored_nor_reported_again(db: Database) -> None:
    story = Story(db, 1)
    story.run(25)
    while (lease := claim(db, story.now)) is not None:
        version = next(v for v in story.versions if v.id == lease.model_version_id)
        factories.finish(db, lease, version, story.now, hashes=story._content, scores=_scores)
    db.write(lambda c: summaries.complete_quiet(c, utc(days=2), 60.0))
    assert told(db, "hits")
    assert told(db, "complete")
    check(story, drained=True)
    assert rows(db, sa.select(job.c.id).where(job.c.failed_at.is_(None))) == []


HAND, MINSTREL = "images-3fa2b1", "minstrel"


@pytest.fixture
def twice(db: Database, champion: Version) -> dict[str, int]:
    """One folder under two names: plate P1 in both, P2 and P3 in one each; all scored, A01 crystals."""
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    record(db, ids[HAND], sightings(3) + sightings(2, "P2"), utc(1))
    record(db, ids[MINSTREL], sightings(3) + sightings(2, "P3"), utc(2))
    drain(db, champion, utc(3), scores=lambda c: CRYSTALS if "A01" in c.path else CLEAR)
    return ids


def merge(db: Database, ids: dict[str, int], one: str = HAND, other: str = MINSTREL) -> source_changes.MergePlan:
    return db.write(lambda c: merging.merge(c, ids[one], ids[other], actor="ann", now=utc(9)))


def test_plates_are_there_once_and_the_audit_tells_what_happened(db: Database, twice: dict[str, int]) -> None:
    expected = source_changes.MergePlan(source_changes.Contents(2, 5, 5, 0), 1, 3, 3)
    assert db.read(lambda c: source_changes.plan(c, twice[HAND], twice[MINSTREL])) == expected
    assert merge(db, twice) == expected
    shown = rows(db, sa.text("select source, plate_key, seen, scored, hits from lims_plate_summary_v1 order by 2"))
    assert shown == [(MINSTREL, "P1", 3, 3, 1), (MINSTREL, "P2", 2, 2, 1), (MINSTREL, "P3", 2, 2, 1)]
    (note,) = rows(
        db, sa.select(audit.c.actor, audit.c.subject, audit.c.detail).where(audit.c.action == "source merge")
    )
    assert (note.actor, note.subject, note.detail["into"]) == ("ann", HAND, MINSTREL)
    assert note.detail["same_images"] == 3


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_the_bytes_warn_of_comes_with_them(db: Database, champion: Version) -> None:
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    lost = (LayoutWarning(WarningKind.LIGHT_LOST, ""),)
    files = [replace(f, image=replace(f.image, warnings=lost)) for f in sightings(1)]
    record(db, ids[HAND], files, utc(1))
    lease = factories.claimed(db, utc(2))
    blank = [results.Scored(c, "1", CLEAR, warnings=(WarningKind.BLANK,)) for c in lease.claims]
    finish = partial(results.finish, retry_s=1.0, max_attempts=2, now=utc(2))
    db.write(lambda c: finish(c, lease.token, champion, blank, []))
    record(db, ids[MINSTREL], files, utc(3))
    merge(db, ids)
    assert rows(db, sa.select(image.c.warnings)) == [("light_lost,blank",)]


def test_sources_of_two_layouts_stay_apart(db: Database, twice: dict[str, int]) -> None:
    other = db.write(lambda c: registration.register_source(c, "hwi", "/hwi", "hwi", None, utc()))
    with pytest.raises(ConfigError, match="'hwi' has hwi"):
        merge(db, twice | {"hwi": other}, other="hwi")
    assert len(rows(db, sa.select(source))) == 3


def test_a_label_given_again_after_the_merge_is_the_same_label(db: Database, twice: dict[str, int]) -> None:
    """With its original text and without, of a drop and of an image."""
    found = sa.select(image.c.id, image.c.drop_id, image.c.inspection_id).where(image.c.path.like("P1/%A01%"))
    words = (DropClass.OTHER, utc(4), "csv x"), (DropClass.CRYSTALS, utc(5), "cli")

    def say(source_id: int) -> int:
        (at,) = rows(db, found.where(image.c.source_id == source_id))
        givens = [NewLabel(at.drop_id, at.inspection_id, word, "ann", when, how) for word, when, how in words]
        givens += [replace(givens[0], original="junk"), replace(givens[1], image_id=at.id)]
        return db.write(lambda c: recorder.add(c, givens, utc(6)))

    assert (say(twice[HAND]), say(twice[MINSTREL])) == (4, 4)
    ids = sorted(row.id for row in rows(db, sa.select(label.c.id)))
    db.write(lambda c: c.execute(sa.insert(label_inbox).values(plate="P1", state="resolved", label_id=ids[0])))
    merge(db, twice)
    assert say(twice[MINSTREL]) == 0
    assert [row.id for row in rows(db, sa.select(label.c.id))] == ids[4:]
    assert [row.label_id for row in rows(db, sa.select(label_inbox.c.label_id))] == [ids[4]]


def test_an_answer_in_the_review_is_kept(db: Database, twice: dict[str, int], champion: Version) -> None:
    """Asked in both sources and answered in one; asked in the other alone."""

    def ask(connection: sa.Connection, source_id: int, well: str, answer: str | None) -> None:
        at = connection.execute(
            sa.select(image.c.id, image.c.drop_id, image.c.inspection_id)
            .join(drop, drop.c.id == image.c.drop_id)
            .where(image.c.source_id == source_id, drop.c.well == well, image.c.path.like("P1/%"))
        ).one()
        values = {"drop_id": at.drop_id, "inspection_id": at.inspection_id, "image_id": at.id, "stream": "audit"}
        values |= {"reason": "r", "model_version_id": champion.id, "rank": 0.5, "proposed_at": utc()}
        values |= {"answer": answer, "answered_at": None if answer is None else utc(5)}
        connection.execute(sa.insert(review_item).values(values))

    db.write(lambda c: ask(c, twice[MINSTREL], "A01", None))
    db.write(lambda c: ask(c, twice[HAND], "A01", "Crystals"))
    db.write(lambda c: ask(c, twice[HAND], "A02", None))
    merge(db, twice)
    found = sa.select(drop.c.well, review_item.c.answer).join(review_item).order_by(drop.c.well)
    assert rows(db, found) == [("A01", "Crystals"), ("A02", None)]


def test_marks_and_who_follows_are_kept(db: Database, twice: dict[str, int]) -> None:
    """Ann follows the drop in both sources, Bob in the one that goes."""

    def mark(connection: sa.Connection, source_id: int, *people: str) -> None:
        of_well = sa.select(image.c.drop_id, image.c.inspection_id).where(image.c.path.like("P1/%A01%"))
        at = connection.execute(of_well.where(image.c.source_id == source_id)).first()
        assert at is not None
        for person in people:
            values = {"inspection_id": at.inspection_id, "kind": "harvested", "text": "", "marked_at": utc(4)}
            connection.execute(sa.insert(drop_mark).values(drop_id=at.drop_id, person=person, **values))
            connection.execute(sa.insert(follow).values(drop_id=at.drop_id, person=person, since=utc(4)))

    db.write(lambda c: mark(c, twice[MINSTREL], "ann"))
    db.write(lambda c: mark(c, twice[HAND], "ann", "bob"))
    merge(db, twice)
    assert rows(db, sa.text("select person, source, well from lims_drop_mark_v1 order by mark_id")) == [
        ("ann", MINSTREL, "A01"),
        ("ann", MINSTREL, "A01"),
        ("bob", MINSTREL, "A01"),
    ]
    assert [row.person for row in rows(db, sa.select(follow.c.person).order_by(follow.c.person))] == ["ann", "bob"]


def test_a_plate_that_both_read_otherwise_keeps_its_labels(db: Database, champion: Version) -> None:
    """The same paths, read as plate P1 by hand and as plate Q by the configured pattern."""
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    files = sightings(3)
    record(db, ids[HAND], files, utc(1))
    record(db, ids[MINSTREL], [replace(f, image=replace(f.image, plate_key="Q", row=2)) for f in files], utc(2))
    drain(db, champion, utc(3))
    (at,) = rows(db, sa.select(image).where(image.c.source_id == ids[HAND], image.c.path.like("%A02%")))
    given = NewLabel(at.drop_id, at.inspection_id, DropClass.CRYSTALS, "ann", utc(4), "cli")
    db.write(lambda c: recorder.add(c, [given], utc(4)))
    merge(db, ids)
    shown = "select plate_key, well, label, label_person from lims_drop_v1 order by well"
    assert rows(db, sa.text(shown)) == [
        ("Q", "B01", "Clear", None),
        ("Q", "B02", "Crystals", "ann"),
        ("Q", "B03", "Clear", None),
    ]
    assert [row.key for row in rows(db, sa.select(plate.c.key))] == ["Q"]


def test_a_worker_that_holds_an_image_of_a_joined_plate_finishes_nothing(db: Database, champion: Version) -> None:
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    record(db, ids[HAND], sightings(4), utc(1))
    lease = factories.claimed(db, utc(1))
    record(db, ids[MINSTREL], sightings(2), utc(2))
    merge(db, ids)
    assert factories.finish(db, lease, champion, utc(10)).scored == 0
    assert drain(db, champion, utc(11)) == 4
    (seen,) = rows(db, sa.text("select seen, scored from lims_plate_summary_v1"))
    assert tuple(seen) == (4, 4)


@pytest.mark.parametrize("labelled", [(), (HAND,), (MINSTREL,), (HAND, MINSTREL)])
@pytest.mark.slow
def test_what_a_model_learned_from_is_not_a_test_afterwards(
    db: Database, champion: Version, labelled: tuple[str, ...]
) -> None:
    """Every plate that both have is on the side on which it was labelled; labelled on two, not on the test side."""
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    keys = [f"CI{number:06d}" for number in range(12)]
    for name, source_id in ids.items():
        record(db, source_id, [file for key in keys for file in sightings(1, key)], utc(1))
        if name in labelled:
            say = sa.select(image.c.drop_id, image.c.inspection_id).where(image.c.source_id == source_id)
            givens = [NewLabel(*row, DropClass.CLEAR, "ann", utc(2), "cli") for row in rows(db, say)]
            db.write(lambda c, g=givens: recorder.add(c, g, utc(2)))
    merge(db, ids)
    side_of = sa.select(plate.c.key, sa.func.coalesce(plate.c.split_source, MINSTREL))
    order = (Split.TEST, Split.VALIDATION, Split.TRAIN)
    for key, name in rows(db, side_of):
        before = [split_of(each, key) for each in (labelled or (MINSTREL,))]
        assert split_of(name, key) is max(before, key=order.index)


def test_a_forgotten_source_leaves_nothing_and_the_other_as_it_was(db: Database, twice: dict[str, int]) -> None:
    (at,) = rows(db, sa.select(image).where(image.c.source_id == twice[HAND], image.c.path.like("P1/%A01%")))
    given = NewLabel(at.drop_id, at.inspection_id, DropClass.CLEAR, "ann", utc(4), "lims", image_id=at.id)
    db.write(lambda c: recorder.add(c, [given], utc(4)))
    labels_of = sa.select(label.c.id).scalar_subquery()
    db.write(lambda c: c.execute(sa.insert(label_inbox).values(plate="P1", state="resolved", label_id=labels_of)))
    other = sa.text(f"select * from lims_drop_v1 where source = '{MINSTREL}' order by drop_id")
    before = rows(db, other)
    held = db.write(lambda c: source_changes.forget(c, twice[HAND], actor="ann", now=utc(9)))
    assert held == source_changes.Contents(plates=2, images=5, scores=5, labels=1)
    assert rows(db, other) == before
    assert len(rows(db, sa.select(image))) == 5
    assert {row.source_id for row in rows(db, sa.select(event.c.source_id))} == {twice[MINSTREL]}
    (answer,) = rows(db, sa.text("select state, reason from lims_label_inbox_v1"))
    assert answer.reason.startswith("its source was removed")
    assert db.write(lambda c: source_changes.forget(c, twice[MINSTREL], actor="ann", now=utc(9))).plates == 2
    for table in (source, plate, drop, inspection, image, score, label, hit, drop_summary, inspection_summary, event):
        assert rows(db, sa.select(sa.func.count()).select_from(table)) == [(0,)], table.name


def test_what_was_accepted_as_gone_stays_so(db: Database, champion: Version) -> None:
    ids = {name: register_source(db, name) for name in (HAND, MINSTREL)}
    for source_id in ids.values():
        record(db, source_id, sightings(1))
    lost = [int(row.id) for row in rows(db, sa.select(image.c.id))]
    db.write(lambda c: results.mark_gone(c, lost, utc(1)))
    db.write(lambda c: c.execute(sa.update(image).where(image.c.id == lost[0]).values(gone_accepted=True)))
    merge(db, ids)
    assert [row.gone_accepted for row in rows(db, sa.select(image.c.gone_accepted))] == [True]


def test_a_rescore_of_a_source_goes_to_the_other_and_is_forgotten_with_it(
    db: Database, twice: dict[str, int], champion: Version
) -> None:
    owed = [campaigns.Owed(1, 3)]
    number = db.write(campaigns.begin, champion.id, campaigns.Archive(None, twice[HAND]), owed, "ann", utc(4))
    merge(db, twice)
    assert rows(db, sa.select(campaign.c.id, campaign.c.source_id)) == [(number, twice[MINSTREL])]
    db.write(lambda c: source_changes.forget(c, twice[MINSTREL], actor="ann", now=utc(9)))
    assert rows(db, sa.select(campaign.c.id)) == rows(db, sa.select(campaign_range.c.id)) == []

"""Merging two sources: nothing is lost, nothing is there twice, and what follows is as if it had been one all along."""

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import Any

import factories
import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, claim, drain, promote, record, register, register_source, rows, sightings, utc

from marcod.domain import DropClass, Modality
from marcod.store import drops, labelling, merging, queue, source_changes, summaries
from marcod.store.catalog import Sighting
from marcod.store.engine import Database
from marcod.store.labels import Given
from marcod.store.schema import (
    drop,
    drop_summary,
    event,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    label,
    plate,
    score,
    source,
)

COUNTED = tuple(c for c in inspection_summary.c if c.name not in ("updated_at", "first_image_at"))
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
        given = Given(drop_id, inspection_id, word, self.random.choice(("ann", "bob")), at, "test")
        given = replace(given, image_id=image_id) if self.random.random() < 0.3 else given
        given = replace(given, original="xtals") if self.random.random() < 0.3 else given
        self.db.write(lambda c: labelling.add(c, [given], self.now))

    def promote(self) -> None:
        if self.random.random() < 0.2:
            version = self.random.choice(self.versions)
            self.db.write(lambda c: queue.enqueue_rescore(c, version.id, self.now))
            promote(self.db, version, self.now)

    def merge(self) -> source_changes.Plan:
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


def derived(db: Database) -> list[Any]:
    """Every summary of an inspection and of a drop."""
    return [
        sorted(map(tuple, rows(db, sa.select(*COUNTED))), key=repr),
        sorted(map(tuple, rows(db, sa.select(*OVER_TIME))), key=repr),
    ]


def worked_out_again(db: Database) -> None:
    def work(connection: sa.Connection) -> None:
        drops.refresh_all_versions(connection, connection.execute(sa.select(drop.c.id)).scalars().all(), utc(days=1))
        ids = connection.execute(sa.select(inspection.c.id)).scalars().all()
        summaries.refresh_all_versions(connection, ids, utc(days=1))

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
    shown = derived(db)
    worked_out_again(db)
    assert derived(db) == shown
    drain(db, story.versions[0], story.now, hashes=story._content, scores=_scores)


@pytest.mark.parametrize("seed", range(6))
def test_any_two_sources_are_one_afterwards(db: Database, seed: int) -> None:
    story = Story(db, seed)
    story.run(25)
    check(story, drained=False)

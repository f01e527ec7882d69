"""Data sets from a real database and real files: what is in them, what is named as left out, and how they grow."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from factories import drain, record, register_source, rewritten, rows, sightings, utc
from PIL import Image
from snapshots import check_growth, check_weights
from sqlalchemy import event

from marcod.database.engine import Database
from marcod.database.schema import dataset as dataset_table
from marcod.database.schema import image, review_item, source
from marcod.domain import CLASSES, DropClass, Modality, Split, split_of
from marcod.store import votes
from marcod.store.queue import Claim
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.training import snapshot as training_snapshot
from marcod.training import snapshot_rows
from marcod.training.snapshot import Snapshot

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES


def photograph(number: int) -> bytes:
    """A small PNG, another for every number."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(out, "PNG")
    return out.getvalue()


class Lab:
    """Files of several imagers, recorded and scored, and people who label them."""

    def __init__(self, db: Database, champion: Version, root: Path) -> None:
        self.db, self.champion, self.root = db, champion, root
        self.roots: dict[str, Path] = {}
        self.ids: dict[str, int] = {}
        self.seconds = 0

    def now(self) -> Any:
        self.seconds += 1
        return utc(self.seconds)

    def deliver(self, name: str, plate: str, wells: int, contents: Iterable[int], **more: Any) -> list[Any]:
        """Write and record a plate's images; returns their rows."""
        if name not in self.ids:
            self.ids[name], self.roots[name] = register_source(self.db, name), self.root / name
        files = sightings(wells, plate, **more)
        for file, number in zip(files, contents, strict=True):
            self.put(name, file.path, photograph(number))
        record(self.db, self.ids[name], files, self.now())
        statement = sa.select(image, source.c.name).join(source, source.c.id == image.c.source_id)
        found = {row.path: row for row in rows(self.db, statement.where(source.c.name == name))}
        return [found[file.path] for file in files]

    def put(self, name: str, path: str, data: bytes) -> None:
        file = self.roots[name] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def score(self) -> None:
        def hashes(claim: Claim) -> str:
            return hashlib.sha256((self.root / Path(claim.root).name / claim.path).read_bytes()).hexdigest()

        drain(self.db, self.champion, self.now(), hashes=hashes)

    def rewrite(self, row: Any, data: bytes) -> None:
        """Write other bytes and record the file as another one."""
        self.put(row.name, row.path, data)
        [plate, inspection, *_] = row.path.split("/")
        [seen] = [file for file in sightings(4, plate, inspection) if file.path == row.path]
        record(self.db, self.ids[row.name], [rewritten(seen, self.seconds)], self.now())

    def say(self, row: Any, word: DropClass | None, person: str = "ada", *, own: bool = False) -> None:
        now = self.now()
        said = NewLabel(row.drop_id, row.inspection_id, word, person, now, "test", image_id=row.id if own else None)
        self.db.write(lambda c: votes.add(c, [said], now))

    def take(self, **more: Any) -> Snapshot:
        return training_snapshot.take(self.db, modality=Modality.VISIBLE, roots=self.roots, now=self.now(), **more)


@pytest.fixture
def lab(db: Database, champion: Version, tmp_path: Path) -> Lab:
    return Lab(db, champion, tmp_path / "plates")


def test_a_set_says_what_is_labelled_by_whom_and_who_asked(lab: Lab, tmp_path: Path) -> None:
    first, second, third = lab.deliver("cellar", "P1", 3, (1, 2, 3))
    lab.deliver("cellar", "P1", 3, (4, 5, 6), modality=Modality.UV)
    [again, *_] = lab.deliver("cellar", "P1", 3, (7, 8, 9), inspection="2")
    lab.score()
    lab.say(first, CRYSTALS, "ada")
    lab.say(first, PRECIPITATE, "bob")
    lab.say(first, CRYSTALS, "cyd")
    lab.say(again, CRYSTALS)
    lab.say(second, CLEAR)
    lab.say(second, OTHER, own=True)
    lab.say(third, CLEAR)
    lab.say(third, None)
    asked = {
        "drop_id": second.drop_id, "inspection_id": second.inspection_id, "image_id": second.id, "reason": "",
        "model_version_id": lab.champion.id, "rank": 0.0, "proposed_at": utc(), "answered_at": utc(),
    }  # fmt: skip
    questions = [asked | {"stream": "threshold", "inclusion": None}, asked | {"stream": "audit", "inclusion": 0.25}]
    unanswered = asked | {"stream": "threshold", "drop_id": first.drop_id, "answered_at": None, "inclusion": None}
    lab.db.write(lambda c: c.execute(sa.insert(review_item), [*questions, unanswered]))
    read: list[tuple[int, int]] = []
    snapshot = lab.take(done=lambda count, total: read.append((count, total)))
    found = {item.image_id: item for item in snapshot.items}
    assert sorted(found) == sorted([first.id, second.id, again.id])
    assert found[first.id].shares == pytest.approx((0, 2 / 3, 0, 1 / 3))
    assert found[first.id].persons == {"ada": CRYSTALS, "bob": PRECIPITATE, "cyd": CRYSTALS}
    assert (found[first.id].weight, found[again.id].weight, found[second.id].weight) == (0.5, 0.5, 1.0)
    assert found[first.id].content_hash == hashlib.sha256(photograph(1)).hexdigest()
    assert (found[first.id].stream, found[second.id].stream, found[second.id].inclusion) == (None, "audit", 0.25)
    assert found[second.id].label is OTHER
    assert snapshot.last_label_id == 8
    assert read == [(1, 3), (2, 3), (3, 3)]
    side = split_of("cellar", "P1")
    assert snapshot.side(side) == snapshot.items
    assert snapshot.counts()[side] == {
        "images": 3, "drops": 2, "plates": 1, "crystals": 1,
        "classes": {"Clear": 0, "Crystals": 1, "Other": 1, "Precipitate": 0},
        "sources": {"cellar": {"images": 3, "drops": 2, "plates": 1, "crystals": 1}},
    }  # fmt: skip
    check_kept(lab.db, snapshot, tmp_path / "manifest.jsonl")


def check_kept(db: Database, snapshot: Snapshot, file: Path) -> None:
    """The manifest and the row tell of the same set, which is kept once."""
    training_snapshot.write(snapshot, file)
    again = training_snapshot.read(file, snapshot.digest)
    assert again == snapshot
    kept = training_snapshot.register(db, snapshot)
    assert training_snapshot.register(db, again) == kept
    [row] = rows(db, sa.select(dataset_table))
    assert (row.id, row.digest, row.gate_digest) == (kept, snapshot.digest, snapshot.gate_digest)
    assert (row.images, row.drops, row.crystals, row.missing, row.changed) == (3, 2, 1, 0, 0)
    assert row.counts == snapshot.counts()
    assert row.taken_at == snapshot.taken_at


def test_what_is_left_out_is_named(lab: Lab) -> None:
    whole, gone, damaged, scored_damaged = lab.deliver("cellar", "P1", 4, (1, 2, 3, 4))
    lab.rewrite(damaged, b"no image")
    lab.put("cellar", gone.path, photograph(2))
    away = lab.deliver("attic", "P1", 2, (5, 6))
    for row in (whole, gone, damaged, scored_damaged, *away):
        lab.say(row, CLEAR)
    (lab.roots["cellar"] / gone.path).unlink()
    lab.roots["attic"].rename(lab.root / "unmounted")
    snapshot = lab.take()
    assert [item.image_id for item in snapshot.items] == [whole.id, scored_damaged.id]
    assert len(snapshot.missing) == 3
    assert snapshot.missing[2] == "cellar: P1/1/visible/A02.jpg is gone; bring it back, or take its label back"
    [excluded] = snapshot.excluded
    assert excluded.startswith("cellar: P1/1/visible/A03.jpg cannot be read: not a JPEG")
    root = lab.roots["attic"]
    assert snapshot.away == (f"source attic: none of its 2 labelled images is under {root}; is the folder mounted?",)
    assert lab.take(sources=["cellar"]).away == ()


def test_what_was_rewritten_is_named_until_it_is_labelled_again(lab: Lab) -> None:
    [row] = lab.deliver("cellar", "P1", 1, (1,))
    lab.score()
    lab.say(row, CLEAR)
    lab.rewrite(row, photograph(2))
    [unseen] = lab.take().changed
    lab.score()
    [unnamed] = lab.take().changed
    assert "is not the file that was scored last" in unseen
    assert "was rewritten after it was labelled" in unnamed
    lab.say(row, CRYSTALS)
    snapshot = lab.take()
    assert (snapshot.changed, [item.label for item in snapshot.items]) == ((), [CRYSTALS])


def test_the_gates_hash_follows_the_test_side_alone(lab: Lab) -> None:
    keys = {side: next(k for k in map(str, range(200)) if split_of("cellar", k) is side) for side in Split}
    test, train = (lab.deliver("cellar", keys[side], 2, contents) for side, contents in (
        (Split.TEST, (1, 2)), (Split.TRAIN, (3, 4)),
    ))  # fmt: skip
    lab.say(test[0], CLEAR)
    before = lab.take()
    lab.say(train[0], CLEAR)
    grown = lab.take()
    assert grown.gate_digest == before.gate_digest
    assert grown.digest != before.digest
    lab.say(test[1], CLEAR)
    assert lab.take().gate_digest != before.gate_digest


def test_a_set_is_of_one_moment(lab: Lab) -> None:
    first, second = lab.deliver("cellar", "P1", 2, (1, 2))
    lab.say(first, CLEAR)
    meanwhile = iter([second])

    @event.listens_for(lab.db.engine, "after_cursor_execute")
    def somebody_labels(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "max(label.id)" in statement and (row := next(meanwhile, None)) is not None:
            lab.say(row, CRYSTALS)

    held = lab.db.read(lambda c: snapshot_rows.gather(c, Modality.VISIBLE))
    assert (held.last_label_id, [p.image_id for p in held.images], list(held.past)) == (1, [first.id], [first.id])
    assert lab.take().last_label_id == 2


@pytest.mark.slow
def test_nothing_changes_sides_while_a_lab_grows(lab: Lab) -> None:
    random = Random(7)
    known: list[Any] = []
    taken: list[Snapshot] = []
    for step in range(16):
        name = random.choice(["cellar", "attic"])
        known += lab.deliver(name, f"P{step}", 3, random.sample(range(1, 30), 3))
        for row in random.sample(known, 3):
            lab.say(row, random.choice([*CLASSES, None]), random.choice(["ada", "bob"]), own=random.random() < 0.5)
        lab.rewrite(random.choice(known), photograph(random.randrange(1, 30)))
        lab.score()
        for row in random.sample(known, 3):
            lab.say(row, random.choice(CLASSES))
        if step % 4 == 3:
            lost = random.choice(known)
            (lab.roots[lost.name] / lost.path).unlink(missing_ok=True)
            taken.append(lab.take())
    check_growth([snapshot.items for snapshot in taken])
    for snapshot in taken:
        check_weights(snapshot.items)
    left_out = [*taken[-1].missing, *taken[-1].changed, *taken[-1].excluded]
    carried = lab.db.read(lambda c: votes.labelled_images(c, None))
    assert len(taken[-1].items) + len(left_out) == len(carried)


@pytest.mark.slow
def test_a_sample_is_as_if_drawn_at_random_and_the_same_for_a_seed(lab: Lab) -> None:
    for name in ("cellar", "attic"):
        sides = {split_of(name, f"P{i}"): f"P{i}" for i in range(100)}
        lab.deliver(name, sides[Split.TRAIN], 96, range(96))
        lab.deliver(name, sides[Split.TEST], 20, range(20))
        lab.deliver(name, sides[Split.TRAIN], 5, range(5), modality=Modality.UV)

    def drawn(count: int, seed: int) -> list[Any]:
        return lab.db.read(lambda c: snapshot_rows.sample(c, Modality.VISIBLE, count, seed))

    first = drawn(48, seed=1)
    assert first == drawn(48, seed=1)
    assert drawn(12, seed=1) == first[:12]
    assert len(set(first)) == 48
    assert set(first) != set(drawn(48, seed=2))
    assert len(set(first) & set(drawn(48, seed=10**12 + 7))) < 40
    assert {(one.source, one.root) for one in first} == {("cellar", "/plates/cellar"), ("attic", "/plates/attic")}
    assert all("/visible/" in one.path for one in first)
    assert not any(split_of(one.source, one.path.split("/")[0]) is Split.TEST for one in drawn(1000, seed=1))
    in_rows = [sum(f"/{row}" in one.path for one in first) for row in "ABCDEFGH"]
    assert min(in_rows) >= 2
    assert len(drawn(1000, seed=3)) == 192

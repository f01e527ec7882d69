"""Looks at a test side are counted by what test sides share, whatever was labelled, renamed or limited. Synthetic."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from factories import promote, record, register, register_source, rows, sightings, utc
from hypothesis import given, settings
from hypothesis import strategies as st

from marcod.database.engine import Database
from marcod.database.schema import dataset, image, inspection, plate, source
from marcod.domain import DropClass, Split
from marcod.store import votes
from marcod.store.votes import NewLabel
from marcod.training import looks, run_rows
from marcod.training.looks import JudgedDrops, Look
from marcod.training.snapshot import Item

CLEAR, CRYSTALS = DropClass.CLEAR, DropClass.CRYSTALS


class Lab:
    """Drops that people label one after another, and runs whose candidates are judged on all labelled ones."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.labels: dict[int, tuple[Any, DropClass]] = {}
        self.numbers = count(1)
        register(db, name="uv", version="1", modality="uv")
        promote(db, register(db, name="lab", version="1"))

    def deliver(self, source_id: int, plate_key: str, wells: int) -> list[Any]:
        record(self.db, source_id, sightings(wells, plate_key))
        columns = (image.c.id, image.c.drop_id, image.c.inspection_id, source.c.name)
        found = sa.select(*columns).join(inspection, inspection.c.id == image.c.inspection_id)
        found = found.join(plate, plate.c.id == inspection.c.plate_id).join(source, source.c.id == plate.c.source_id)
        return rows(self.db, found.where(plate.c.key == plate_key).order_by(image.c.id))

    def say(self, drops: Sequence[Any], label: DropClass) -> None:
        now = utc(next(self.numbers))
        new = [NewLabel(d.drop_id, d.inspection_id, label, "ann", now, "cli") for d in drops]
        self.db.write(lambda c: votes.add(c, new, now))
        self.labels |= {d.drop_id: (d, label) for d in drops}

    def forget(self, drops: Sequence[Any]) -> None:
        """Their files are gone: they are on no test side any more."""
        for drop in drops:
            del self.labels[drop.drop_id]

    def tested(self) -> list[Item]:
        return [
            Item(
                image_id=d.id, drop_id=d.drop_id, inspection_id=d.inspection_id, source=d.name, imager="formulatrix",
                plate_key="P", well="A1", drop_number=1, path="x.jpg", root="/x", content_hash=str(d.id), label=label,
                shares=(1, 0, 0, 0), persons={}, side=Split.TEST, weight=1.0, stream=None, inclusion=None,
            )
            for d, label in self.labels.values()
        ]  # fmt: skip

    def run(
        self, state: str = "refused", *, parent: str = "lab:1", modality: str = "visible", sources: Any = None
    ) -> float:
        """The looks before a run, which then ends so."""
        token = str(next(self.numbers))

        def begin(connection: sa.Connection) -> tuple[run_rows.Run, float]:
            last = connection.execute(sa.text("select max(id) from label")).scalar_one()
            values = {
                "digest": token, "gate_digest": token, "last_label_id": last, "images": 1, "drops": 1, "crystals": 1,
                "missing": 0, "changed": 0, "counts": {}, "taken_at": utc(),
            }  # fmt: skip
            data_id = connection.execute(sa.insert(dataset).values(**values).returning(dataset.c.id)).scalar_one()
            made = run_rows.begin(
                connection, cause="by hand", actor="ann", recipe="adapt", options={"sources": sources}, parent=parent,
                folder="/runs", host="here", pid=1, token=token, now=utc(),
            )  # fmt: skip
            run_rows.note(connection, made.id, token, dataset_id=data_id, candidate="lab:2")
            return made, looks.count(connection, made.id, modality, self.tested())

        run, before = self.db.write(begin)
        self.db.write(lambda c: run_rows.end(c, run.id, token, state=state, now=utc(1)))
        return before


@pytest.fixture
def lab(db: Database) -> Lab:
    return Lab(db)


def test_a_side_that_grows_by_a_drop_a_night_stays_the_same_one(lab: Lab, source_id: int) -> None:
    drops = lab.deliver(source_id, "P1", 24)
    lab.say(drops[:6], CRYSTALS)
    lab.say(drops[6:20], CLEAR)
    counted = []
    for night in range(4):
        counted.append(lab.run())
        lab.say(drops[20 + night : 21 + night], CRYSTALS)
    # Of 20 to 23 drops, and of 6 to 9 crystals; whichever share is more counts.
    assert counted == pytest.approx([0, 20 / 21, 41 / 22, 63 / 23])


def test_a_side_that_is_wholly_new_was_never_looked_at(lab: Lab, source_id: int) -> None:
    old, new = lab.deliver(source_id, "P1", 8), lab.deliver(source_id, "P2", 8)
    lab.say(old, CRYSTALS)
    assert [lab.run() for _ in range(3)] == [0, 1, 2]
    lab.say(new[:4], CRYSTALS)
    assert lab.run() == pytest.approx(3 * 8 / 12)
    lab.forget(old)
    lab.say(new[4:], CLEAR)
    # The former run saw all of today's crystals.
    assert lab.run() == pytest.approx(1)
    lab.forget(new[:4])
    lab.say(new[4:6], CRYSTALS)
    assert lab.run() == pytest.approx(1)


def test_other_labels_for_the_same_drops_make_no_new_side(lab: Lab, source_id: int) -> None:
    drops = lab.deliver(source_id, "P1", 10)
    lab.say(drops[:5], CRYSTALS)
    lab.say(drops[5:], CLEAR)
    assert lab.run() == 0
    lab.say(drops[:5], CLEAR)
    lab.say(drops[5:], CRYSTALS)
    assert [lab.run(), lab.run()] == [1, 2]


def test_only_candidates_that_were_judged_for_the_same_light_count(lab: Lab, source_id: int) -> None:
    lab.say(lab.deliver(source_id, "P1", 4), CRYSTALS)
    for state in ("failed", "unchanged", "abandoned"):
        assert lab.run(state) == 0
    assert [lab.run(state) for state in ("promoted", "recommended", "refused", "shadow")] == [0, 1, 2, 3]
    assert lab.run(parent="uv:1", modality="uv") == 0
    assert lab.run(parent="uv:1", modality="uv") == 1
    assert lab.run(parent="gone:1") == 4
    # A model that is no longer known may have been for either.
    assert (lab.run(parent="uv:1", modality="uv"), lab.run()) == (3, 5)


def test_a_run_that_was_limited_to_sources_looked_at_theirs_alone(lab: Lab, db: Database, source_id: int) -> None:
    second = register_source(db, "second")
    lab.say(lab.deliver(source_id, "P1", 6), CRYSTALS)
    lab.say(lab.deliver(second, "P2", 2), CRYSTALS)
    assert lab.run(sources=["second"]) == 0
    assert lab.run() == pytest.approx(2 / 8)
    assert lab.run() == pytest.approx(2 / 8 + 1)
    # A name that is no longer known may be any source.
    db.write(lambda c: c.execute(sa.update(source).where(source.c.id == second).values(name="renamed")))
    assert lab.run() == pytest.approx(1 + 1 + 1)


def test_without_labelled_drops_there_is_nothing_to_count(lab: Lab) -> None:
    assert [lab.run(), lab.run()] == [0, 0]


DROPS = st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(DROPS, st.integers(0, 31), st.integers(0, 31))
def test_what_is_shared_is_a_share_that_grows_with_time(drops: list[tuple[int, bool]], early: int, late: int) -> None:
    side = JudgedDrops(["a"] * len(drops), np.array([d[0] for d in drops]), np.array([d[1] for d in drops], np.bool_))
    first, second = (side.shared(Look(last)) for last in sorted((early, late)))
    assert 0 <= first <= second <= 1
    assert side.shared(Look(0)) == 0
    assert side.shared(Look(30)) == 1
    assert side.shared(Look(30, frozenset())) == 0
    assert side.shared(Look(late)) >= np.mean(side.first_labels <= late)


@settings(max_examples=40, deadline=None)
@given(DROPS, DROPS, st.integers(0, 31))
def test_new_drops_never_make_an_old_look_count_more(
    drops: list[tuple[int, bool]], more: list[tuple[int, bool]], last: int
) -> None:
    def shared(these: list[tuple[int, bool]]) -> float:
        firsts, crystals = np.array([d[0] for d in these]), np.array([d[1] for d in these], np.bool_)
        return JudgedDrops(["a"] * len(these), firsts, crystals).shared(Look(last))

    later = [(last + number, crystal) for number, crystal in more if number]
    with_crystals = any(crystal for _, crystal in drops)
    if with_crystals or not any(crystal for _, crystal in later):
        assert shared([*drops, *later]) <= shared(drops) + 1e-9

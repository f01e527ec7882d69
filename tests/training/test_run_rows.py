"""Training runs: one at a time, a dead worker's run is taken over once, and every run says what became of it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from factories import promote, record, register, rows, sightings, utc
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.engine import Connection

from marcod.database.engine import Database
from marcod.database.schema import dataset, image, label, training_run
from marcod.domain import DropClass
from marcod.errors import NotFoundError, StoreError
from marcod.store import serving, versions, votes
from marcod.training import run_rows

HOST = "here"


def begin(
    db: Database, token: str = "t", *, pid: int = 11, host: str = HOST, now: float = 0, **more: Any
) -> run_rows.Run:
    """A run by hand."""
    values: dict[str, Any] = {
        "cause": "by hand", "actor": "ann", "recipe": "adapt", "options": {"epochs": 2}, "parent": "small:1",
        "folder": "/runs/1", "host": host, "pid": pid, "token": token, "now": utc(now),
    }  # fmt: skip
    return db.write(lambda c: run_rows.begin(c, **(values | more)))


def take_over(
    db: Database,
    token: str = "t2",
    *,
    pid: int = 12,
    host: str = HOST,
    now: float = 1,
    alive: Callable[[int], bool] = lambda pid: False,
) -> run_rows.Run | None:
    def work(connection: Connection) -> run_rows.Run | None:
        return run_rows.take_over(connection, host=host, pid=pid, token=token, now=utc(now), silence_s=300, alive=alive)

    return db.write(work)


def end(db: Database, run: run_rows.Run, state: str = "refused", now: float = 9, **more: Any) -> None:
    db.write(lambda c: run_rows.end(c, run.id, run.token, state=state, now=utc(now), **more))


def add_dataset(db: Database, digest: str = "d", gate_digest: str = "g", last_label_id: int | None = 5) -> int:
    values = {
        "digest": digest, "gate_digest": gate_digest, "last_label_id": last_label_id, "images": 40, "drops": 30,
        "crystals": 7, "missing": 1, "changed": 2, "counts": {"test": {"Crystals": 3}}, "taken_at": utc(),
    }  # fmt: skip
    return db.write(lambda c: int(c.execute(sa.insert(dataset).values(**values).returning(dataset.c.id)).scalar_one()))


def test_the_life_of_a_run(db: Database) -> None:
    run = begin(db)
    assert (run.state, run.reasons, run.numbers, run.ended_at) == ("running", None, None, None)
    assert db.read(run_rows.active) == run
    data_id = add_dataset(db)
    db.write(lambda c: run_rows.beat(c, run.id, "t", step="epoch 1 of 2", now=utc(5)))
    db.write(lambda c: run_rows.note(c, run.id, "t", dataset_id=data_id, tier="head"))
    db.write(lambda c: run_rows.note(c, run.id, "t", candidate="lab:1", candidate_digest="cd"))
    db.write(lambda c: run_rows.note(c, run.id, "t"))
    half = db.read(lambda c: run_rows.get(c, run.id))
    assert (half.step, half.beat_at, half.tier, half.candidate, half.dataset_id) == (
        "epoch 1 of 2", utc(5), "head", "lab:1", data_id,
    )  # fmt: skip
    end(db, run, "refused", reasons=("too few",), numbers={"checks": []})
    done = db.read(lambda c: run_rows.get(c, run.id))
    assert (done.state, done.reasons, done.numbers, done.ended_at, done.step) == (
        "refused", ["too few"], {"checks": []}, utc(9), None,
    )  # fmt: skip
    assert db.read(run_rows.active) is None
    assert db.read(lambda c: run_rows.data(c, data_id)).counts == {"test": {"Crystals": 3}}


def test_a_second_run_is_refused_by_naming_the_first(db: Database) -> None:
    first = begin(db)
    with pytest.raises(StoreError, match=f"training run {first.id} is active: by hand, since 2026-01-01 12:00 UTC"):
        begin(db, "u")
    end(db, first)
    second = begin(db, "u")
    assert [run.id for run in db.read(lambda c: run_rows.listed(c, 10))] == [second.id, first.id]
    assert [run.id for run in db.read(lambda c: run_rows.listed(c, 1))] == [second.id]


def test_of_two_that_begin_together_one_does(db: Database) -> None:
    gate = Barrier(2)

    def start(token: str) -> str:
        gate.wait(10)
        try:
            return begin(db, token).token
        except StoreError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(start, ("t", "u")))
    assert sum(text in ("t", "u") for text in found) == 1
    assert sum("is active" in text for text in found) == 1


def test_of_two_that_take_over_together_one_does(db: Database) -> None:
    begin(db)
    gate = Barrier(2)

    def take(token: str) -> str:
        gate.wait(10)
        try:
            run = take_over(db, token, pid=20 + len(token), alive=lambda pid: pid != 11)
        except StoreError as error:
            return str(error)
        assert run is not None
        return run.token

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(take, ("aa", "b")))
    held = db.read(run_rows.active)
    assert held is not None
    assert found.count(held.token) == 1
    assert any("is active" in text or "taken over" in text for text in found)


def test_a_dead_workers_run_goes_on_and_the_dead_can_write_no_more(db: Database) -> None:
    assert take_over(db) is None
    run = begin(db)
    with pytest.raises(StoreError, match="is active"):
        take_over(db, alive=lambda pid: pid == 11)
    taken = take_over(db, now=2)
    assert taken is not None
    assert (taken.id, taken.token, taken.pid, taken.beat_at, taken.started_at) == (run.id, "t2", 12, utc(2), utc())
    for work in (
        lambda c: run_rows.beat(c, run.id, "t", step=None, now=utc(3)),
        lambda c: run_rows.note(c, run.id, "t", tier="all"),
        lambda c: run_rows.end(c, run.id, "t", state="promoted", now=utc(3)),
    ):
        with pytest.raises(StoreError, match=f"training run {run.id} was taken over"):
            db.write(work)
    end(db, taken)
    with pytest.raises(StoreError, match="taken over by another process, or has ended"):
        end(db, taken)


@pytest.mark.parametrize(
    ("host", "pid", "now", "taken"),
    [("there", 12, 299, False), ("there", 12, 300, True), (HOST, 12, 299, False), (HOST, 11, 1, True)],
)
def test_whom_a_run_is_taken_from(db: Database, host: str, pid: int, now: float, taken: bool) -> None:
    begin(db)
    if taken:
        assert take_over(db, host=host, pid=pid, now=now, alive=lambda pid: True) is not None
        return
    with pytest.raises(StoreError, match="is active"):
        take_over(db, host=host, pid=pid, now=now, alive=lambda pid: True)


def test_a_run_in_shadow_is_settled_once_and_lets_others_begin(db: Database) -> None:
    run = begin(db)
    end(db, run, run_rows.SHADOW, reasons=["all well"], numbers={"a": 1})
    other = begin(db, "u")
    assert [r.id for r in db.read(run_rows.shadows)] == [run.id]

    def settle(connection: Connection) -> None:
        run_rows.settle(connection, run.id, state="promoted", reasons=["still well"], numbers={"a": 2}, now=utc(50))

    db.write(settle)
    done = db.read(lambda c: run_rows.get(c, run.id))
    assert (done.state, done.reasons, done.numbers, done.ended_at) == ("promoted", ["still well"], {"a": 2}, utc(50))
    assert db.read(run_rows.shadows) == []
    with pytest.raises(StoreError, match=f"training run {run.id} is not in shadow"):
        db.write(settle)
    assert db.read(run_rows.active) == other


def test_no_run_ends_in_a_state_that_is_none(db: Database) -> None:
    run = begin(db)
    with pytest.raises(ValueError, match="cannot end as 'running'"):
        end(db, run, "running")
    with pytest.raises(ValueError, match="cannot be settled as 'shadow'"):
        db.write(lambda c: run_rows.settle(c, run.id, state="shadow", reasons=[], numbers={}, now=utc()))
    with pytest.raises(NotFoundError, match="there is no training run 99"):
        db.read(lambda c: run_rows.get(c, 99))


def test_the_last_run_is_one_that_used_its_labels_up(db: Database) -> None:
    assert db.read(run_rows.last) is None
    data_id = add_dataset(db)
    runs = []
    for token, state, used in (
        ("a", "refused", True), ("b", "unchanged", True), ("c", "failed", True), ("d", "refused", False),
    ):  # fmt: skip
        run = begin(db, token)
        if used:
            db.write(lambda c, run=run: run_rows.note(c, run.id, run.token, dataset_id=data_id))
        end(db, run, state, error="no memory" if state == "failed" else None)
        runs.append(run)
    found = db.read(run_rows.last)
    assert found is not None
    assert found.id == runs[1].id


def test_a_run_knows_how_many_candidates_its_test_side_has_judged(db: Database) -> None:
    def uses(token: str, state: str, candidate: str | None, numbers: dict[str, Any] | None) -> int:
        run = begin(db, token)
        if candidate is not None:
            db.write(lambda c: run_rows.note(c, run.id, run.token, candidate=candidate))
        end(db, run, state, numbers=numbers)
        return run_rows.gate_uses(db.read(run_rows.get, run.id))

    def looked(looks: float) -> dict[str, Any]:
        return {"gate": {"rules": {"looks": looks}}}

    assert uses("1", "refused", "lab:2", looked(0)) == 1
    assert uses("2", "promoted", "lab:3", looked(9)) == 10
    assert uses("3", "shadow", "lab:4", looked(9.2)) == 11
    assert uses("4", "refused", "lab:4", {"checks": []}) == 1
    assert uses("5", "failed", "lab:4", None) == 0
    assert uses("6", "refused", None, {"gate": {"checks": []}}) == 0


def test_new_labels_are_counted_by_subject(db: Database, source_id: int, champion: versions.Version) -> None:
    record(db, source_id, sightings(3))
    images = rows(db, sa.select(image.c.id, image.c.drop_id, image.c.inspection_id).order_by(image.c.id))

    def say(which: int, person: str, of_image: bool = False) -> None:
        image_id, drop_id, inspection_id = images[which]
        word = votes.NewLabel(
            drop_id, inspection_id, DropClass.CRYSTALS, person, utc(), "cli", image_id=image_id if of_image else None
        )
        db.write(lambda c: votes.add(c, [word], utc()))

    assert db.read(lambda c: run_rows.new_labels(c, None)) == 0
    say(0, "ann")
    before = rows(db, sa.select(sa.func.max(label.c.id)))[0][0]
    say(0, "bob")
    say(0, "cy")
    say(1, "ann")
    say(1, "ann", of_image=True)
    assert db.read(lambda c: run_rows.new_labels(c, before)) == 3
    assert db.read(lambda c: run_rows.new_labels(c, None)) == 3


def test_what_was_rolled_back_is_known_by_name_and_by_digest(db: Database) -> None:
    old, bad = register(db), register(db, "lab", "1", digest="bundle digest")
    run = begin(db)
    db.write(lambda c: run_rows.note(c, run.id, run.token, candidate="lab:1", candidate_digest="weights"))
    end(db, run, "promoted")
    promote(db, old, utc(1))
    promote(db, bad, utc(2))
    names = ("lab:1", "weights", "bundle digest")
    assert [db.read(lambda c, n=name: run_rows.rolled_back(c, n)) for name in names] == [None] * 3
    db.write(lambda c: serving.rollback(c, old, actor="eve", now=utc(3)))
    again = begin(db, "u")
    db.write(lambda c: run_rows.note(c, again.id, again.token, candidate="lab:2", candidate_digest="weights"))
    for name in (*names, "lab:2"):
        found = db.read(lambda c, n=name: run_rows.rolled_back(c, n))
        assert found is not None
        assert (found.actor, found.at, found.detail) == ("eve", utc(3), {"from": "lab:1", "to": "small:1"})
    for name in ("small:1", "other", "lab:10"):
        assert db.read(lambda c, n=name: run_rows.rolled_back(c, n)) is None


def test_nothing_known_is_kept_as_nothing(db: Database) -> None:
    end(db, begin(db), "unchanged")
    empty = sa.select(sa.func.count()).where(training_run.c.reasons.is_(None), training_run.c.numbers.is_(None))
    assert rows(db, empty)[0][0] == 1


class Workers(RuleBasedStateMachine):
    """Workers begin, die, take over and end in any order: one run at most is active, and its owner alone writes."""

    db: Database

    def __init__(self) -> None:
        super().__init__()
        self.db.write(lambda c: c.execute(sa.delete(training_run)))
        self.made = 0
        self.owner: run_rows.Run | None = None
        self.lost: list[run_rows.Run] = []
        self.dead = False

    def _token(self) -> str:
        self.made += 1
        return f"t{self.made}"

    @rule()
    def starts(self) -> None:
        if self.owner is None:
            self.owner, self.dead = begin(self.db, self._token(), pid=self.made + 100), False
        else:
            with pytest.raises(StoreError):
                begin(self.db, self._token())

    @precondition(lambda self: self.owner is not None)
    @rule()
    def dies(self) -> None:
        self.dead = True

    @rule()
    def takes_over(self) -> None:
        alive = lambda pid: not self.dead  # noqa: E731
        token = self._token()
        if self.owner is not None and not self.dead:
            with pytest.raises(StoreError):
                take_over(self.db, token, pid=1, alive=alive)
            return
        taken = take_over(self.db, token, pid=self.made + 100, alive=alive)
        assert (taken is None) == (self.owner is None)
        if self.owner is not None:
            self.lost.append(self.owner)
        self.owner, self.dead = taken, False

    @precondition(lambda self: self.owner is not None)
    @rule()
    def ends(self) -> None:
        assert self.owner is not None
        end(self.db, self.owner)
        self.lost.append(self.owner)
        self.owner = None

    @precondition(lambda self: self.lost)
    @rule()
    def ghosts_write_nothing(self) -> None:
        ghost = self.lost[-1]
        with pytest.raises(StoreError):
            self.db.write(lambda c: run_rows.beat(c, ghost.id, ghost.token, step="ghost", now=utc(1)))

    @invariant()
    def one_at_most_is_active(self) -> None:
        held = self.db.read(run_rows.active)
        assert (held and held.token) == (self.owner and self.owner.token)


@pytest.mark.slow
def test_workers_in_any_order(db: Database) -> None:
    machine = type("Machine", (Workers,), {"db": db})
    quick = settings(
        max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(machine, settings=quick)  # type: ignore[no-untyped-call]

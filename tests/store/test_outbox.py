"""Events and their deliveries: written with their facts and once, dispatched once, sent under one name."""

import shutil
import threading
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import factories
import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, claimed, drain, finish, promote, record, register, sightings, utc
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from marcod.database.engine import Database
from marcod.database.schema import delivery, drop, event, inspection, job, plate
from marcod.domain import DropClass
from marcod.drift import days as drift_days
from marcod.labels import recorder
from marcod.notify import render
from marcod.settings import EVENT_KINDS
from marcod.store import outbox, queue, results, summaries
from marcod.store.outbox import DeliveryResult, NewEvent, Target
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

LEASE_S = 60.0
ALL = Target("all", EVENT_KINDS)
SENT, AGAIN, REFUSED = DeliveryResult(True), DeliveryResult(False, "503"), DeliveryResult(False, "410", final=True)


def events(db: Database) -> list[Any]:
    """What was written since the last call, which also dispatches it to nobody."""
    shown = sa.select(event.c.kind, event.c.project, event.c.detail).where(event.c.dispatched_at.is_(None))
    found = factories.rows(db, shown.order_by(event.c.id))
    db.write(lambda c: outbox.dispatch(c, (), utc()))
    return found


def kinds(db: Database) -> list[str]:
    return [row.kind for row in events(db)]


def put(
    db: Database, *subjects: str, kind: str = "hits", source_id: int = 1, project: str | None = None, seconds: float = 0
) -> None:
    news = [NewEvent(kind, subject, source_id, project, {"source": "imager"}) for subject in subjects]
    db.write(lambda c: outbox.put(c, news, utc(seconds)))


def dispatch(db: Database, *targets: Target, seconds: float = 0) -> int:
    return db.write(lambda c: outbox.dispatch(c, targets, utc(seconds)))


def claim(db: Database, seconds: float, target: Target = ALL) -> outbox.Message | None:
    return db.write(lambda c: outbox.claim(c, target, "w", now=utc(seconds), lease_s=LEASE_S))


def must_claim(db: Database, seconds: float, target: Target = ALL) -> outbox.Message:
    message = claim(db, seconds, target)
    assert message is not None
    return message


def done(db: Database, message: outbox.Message, outcome: DeliveryResult, seconds: float) -> bool:
    return db.write(lambda c: outbox.finish(c, message, outcome, utc(seconds)))


def subjects(message: outbox.Message | None) -> list[str]:
    return [] if message is None else [told.id for told in message.events]


@pytest.mark.slow
def test_each_fact_of_a_champion_is_written_once(db: Database, champion: Version) -> None:
    three = factories.register_source(db, expected_drops=3)
    record(db, three, sightings(3, barcode="BC"), utc(1))
    db.write(lambda c: c.execute(sa.update(plate).values(project="kinases")))
    assert kinds(db) == []
    lease = claimed(db, utc(2))
    broken = queue.Failure(lease.claims[2], "the image is truncated", retryable=False)
    finish(db, lease, champion, utc(2), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR, failures=[broken])
    told = {row.kind: row for row in events(db)}
    assert set(told) == {"hits", "complete", "quarantine"}
    place = {"source": "imager", "plate": "P1", "barcode": "BC", "project": "kinases", "inspection": "1"}
    for row in told.values():
        assert row.project == "kinases"
        assert row.detail | place | {"model": "small:1", "synthetic": True} == row.detail
    assert told["hits"].detail["wells"] == [{"well": "A02", "drop": 1, "p_crystals": 0.9}]
    assert (told["hits"].detail["new_hits"], told["complete"].detail["hits"]) == (1, 1)
    counts = {name: told["complete"].detail[name] for name in ("expected", "scored", "failed", "clear", "crystals")}
    assert counts == {"expected": 3, "scored": 2, "failed": 1, "clear": 1, "crystals": 1}
    assert (told["quarantine"].detail["path"], told["quarantine"].detail["reason"]) == (
        lease.claims[2].path, "the image is truncated",
    )  # fmt: skip

    key = db.read(lambda c: c.execute(sa.select(inspection.c.id)).scalar_one())
    db.write(lambda c: summaries.refresh(c, [key], champion, utc(3)))
    db.write(lambda c: results.retry_failed(c, utc(3)))
    drain(db, champion, utc(4))
    assert kinds(db) == [], "it was complete before, and has no new images"

    other = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, other.id, utc(5)))
    drain(db, other, utc(6))
    assert kinds(db) == [], "it is no champion"
    promote(db, other, utc(7))
    third = register(db, version="3")
    promote(db, third, utc(8))
    assert db.write(lambda c: outbox.forget(c, utc(days=40))) == 3
    db.write(lambda c: queue.enqueue_rescore(c, third.id, utc(8)))
    drain(db, third, utc(9), scores=lambda c: CRYSTALS)
    assert kinds(db) == [], "a new model that scores old images is no news, however long ago they were"
    record(db, three, sightings(3, inspection="2"), utc(10))
    drain(db, third, utc(11))
    assert kinds(db) == ["complete"]


def test_people_silence_and_dead_workers_make_events_too(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2), utc(1))
    drain(db, champion, utc(2), limit=1)
    db.write(lambda c: summaries.complete_quiet(c, utc(100), 60))
    db.write(lambda c: summaries.complete_quiet(c, utc(200), 60))
    assert kinds(db) == ["complete"]

    def name_crystals(connection: sa.Connection) -> int:
        key = connection.execute(sa.select(inspection.c.id)).scalar_one()
        well = connection.execute(sa.select(drop.c.id).where(drop.c.well == "A02")).scalar_one()
        return recorder.add(connection, [NewLabel(well, key, DropClass.CRYSTALS, "ann", utc(3), "test")], utc(3))

    db.write(name_crystals)
    assert kinds(db) == ["hits"]
    record(db, source_id, sightings(3)[2:], utc(300))
    claimed(db, utc(301))
    db.write(lambda c: c.execute(sa.update(job).values(attempts=9)))
    db.write(lambda c: results.give_up_exhausted(c, max_attempts=9, now=utc(1000)))
    [lost] = events(db)
    assert (lost.kind, lost.detail["well"], lost.detail["attempts"]) == ("quarantine", "A03", 9)
    assert "stopped before it had finished" in lost.detail["reason"]

    def alarm(connection: sa.Connection) -> int | None:
        told: dict[str, Any] = {"value": 0.2, "reference": 0.4, "p_value": 1e-9, "detail": "imager is darker"}
        return drift_days.raise_alarm(
            connection, champion, source_id, signal="brightness", day=utc().date(), now=utc(400), **told
        )

    assert db.write(alarm) is not None
    assert db.write(alarm) is None
    [row] = events(db)
    assert (row.kind, row.detail["signal"], row.detail["reason"]) == ("drift", "brightness", "imager is darker")
    said = render.sentence(outbox.Event("id", row.kind, utc(400), row.detail))
    assert said == "imager: drift since 2026-01-01: imager is darker."


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_is_undone_is_not_reported(db: Database, source_id: int) -> None:
    def work(connection: sa.Connection) -> None:
        outbox.put(connection, [NewEvent("hits", "s", source_id, None, {})], utc())
        raise LookupError

    with pytest.raises(LookupError):
        db.write(work)
    assert kinds(db) == []


def test_targets_get_what_they_want_from_then_on(db: Database) -> None:
    one, two = (factories.register_source(db, name) for name in ("one", "two"))
    put(db, "before", source_id=one)
    assert dispatch(db) == 1, "nobody was there to be told"
    put(db, "a", "a", source_id=one, project="x")
    put(db, "b", kind="drift", source_id=two)
    put(db, "c", kind="complete", source_id=two, project="y")
    wishes = {
        "everything": Target("everything", EVENT_KINDS),
        "two": Target("two", EVENT_KINDS, sources=["two"]),
        "y": Target("y", EVENT_KINDS, projects=["x", "y"], sources=["two"]),
        "hits": Target("hits", ["hits"]),
    }
    assert dispatch(db, *wishes.values()) == 3
    assert dispatch(db, *wishes.values()) == 0
    told = {name: sorted(subjects(claim(db, 0, target))) for name, target in wishes.items()}
    assert told == {"everything": ["a", "b", "c"], "two": ["b", "c"], "y": ["c"], "hits": ["a"]}
    assert db.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(delivery)).scalar_one()) == 7


def test_a_message_keeps_its_name_until_it_is_sent(db: Database, source_id: int) -> None:
    put(db, "a", "b", source_id=source_id)
    dispatch(db, ALL)
    first = must_claim(db, 0)
    assert (subjects(first), first.attempts) == (["a", "b"], 1)
    assert claim(db, LEASE_S - 1) is None, "somebody has it"
    put(db, "c", source_id=source_id)
    dispatch(db, ALL)
    lapsed = must_claim(db, LEASE_S)
    assert (lapsed.id, lapsed.attempts, subjects(lapsed)) == (first.id, 2, ["a", "b"])
    assert not done(db, first, SENT, LEASE_S), "it is somebody else's now"
    assert done(db, lapsed, AGAIN, 70)
    later = must_claim(db, 71)
    assert subjects(later) == ["c"], "what waits for another try holds up nobody"
    assert done(db, later, SENT, 71)
    assert claim(db, 70 + 2 * outbox.FIRST_PAUSE_S - 1) is None
    third = must_claim(db, 70 + 2 * outbox.FIRST_PAUSE_S)
    assert (third.id, third.attempts) == (first.id, 3)
    assert done(db, third, REFUSED, 140)
    assert claim(db, 1e6) is None
    [failed, sent] = db.read(lambda c: outbox.message_statuses(c, 9))[::-1]
    assert (failed.message, failed.error, failed.failed_at, sent.sent_at) == (first.id, "410", utc(140), utc(71))
    [standing] = db.read(outbox.target_statuses)
    assert (standing.failed, standing.sent, standing.waiting, standing.error) == (2, 1, 0, "410")
    assert db.write(lambda c: outbox.retry(c, utc(200), "nobody")) == 0
    assert db.write(lambda c: outbox.retry(c, utc(200))) == 2
    anew = must_claim(db, 200)
    assert (anew.id, anew.attempts, subjects(anew)) == (first.id, 1, ["a", "b"])
    assert done(db, anew, SENT, 201)
    assert db.read(lambda c: outbox.due(c, [ALL], utc(1e6))) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_pauses_grow_and_end(db: Database, source_id: int) -> None:
    put(db, "a", source_id=source_id)
    dispatch(db, ALL)
    now_s, tries = 0.0, 0
    while (message := claim(db, now_s)) is not None:
        tries += 1
        assert message.attempts == tries
        done(db, message, DeliveryResult(False, "503", wait_s=1e9 if tries == 1 else 0.0), now_s)
        waits = db.read(lambda c: outbox.message_statuses(c, 1))[0].next_at
        now_s = now_s if waits is None else (waits - utc()).total_seconds()
        assert tries != 1 or now_s == outbox.LONGEST_PAUSE_S, "a receiver may ask for an hour and not for more"
    assert tries == outbox.ATTEMPTS
    assert timedelta(days=3) <= timedelta(seconds=now_s) < timedelta(days=3.2)
    assert db.read(lambda c: outbox.message_statuses(c, 1))[0].failed_at is not None


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_flood_becomes_few_messages(db: Database, source_id: int) -> None:
    every = Target("all", EVENT_KINDS, every_s=30)
    many = [f"c{n}" for n in range(outbox.PART + 200)]
    put(db, *many, kind="complete", source_id=source_id)
    put(db, "found", source_id=source_id)
    assert dispatch(db, every) == outbox.PART
    assert claim(db, 29, every) is None, "more may come"
    assert dispatch(db, every, seconds=1) == 201
    message = must_claim(db, 30, every)
    assert subjects(message) == ["found", *many[: outbox.LISTED - 1]]
    assert message.more == (outbox.More("complete", "imager", outbox.PART + 1),)
    done(db, message, SENT, 31)
    put(db, "next", source_id=source_id)
    dispatch(db, every, seconds=32)
    assert claim(db, 31 + 3599, every) is None, "who was told much is left in peace for a while"
    assert subjects(claim(db, 31 + 3600, every)) == ["next"]
    assert [outbox.pause_s(30, n) for n in (1, 10, 20, 200)] == [30, 30, 60, 600]
    assert outbox.pause_s(7200, 1000) == 7200


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_receiver_that_is_offline_gets_few_messages_afterwards(db: Database, source_id: int) -> None:
    for number in range(10):
        put(db, f"e{number}", source_id=source_id)
        dispatch(db, ALL)
        if (message := claim(db, 0)) is not None:
            done(db, message, DeliveryResult(False, "503", wait_s=3600), 0)
    [standing] = db.read(outbox.target_statuses)
    assert (standing.retrying, standing.waiting) == (outbox.UNFINISHED_MESSAGES, 10 - outbox.UNFINISHED_MESSAGES)
    back = [must_claim(db, 4000 + n) for n in range(outbox.UNFINISHED_MESSAGES)]
    for message in back:
        assert done(db, message, SENT, 4010)
    assert len(subjects(claim(db, 4100))) == 10 - outbox.UNFINISHED_MESSAGES


def test_what_is_done_is_forgotten_and_what_waits_is_not(db: Database, source_id: int) -> None:
    put(db, "sent", source_id=source_id)
    dispatch(db, ALL)
    done(db, must_claim(db, 0), SENT, 0)
    put(db, "unwanted", kind="drift", source_id=source_id)
    dispatch(db, Target("all", ["hits"]))
    put(db, "waits", source_id=source_id)
    dispatch(db, ALL)
    put(db, "undispatched", source_id=source_id)
    forget = lambda days: db.write(lambda c: outbox.forget(c, utc(days=days)))  # noqa: E731
    assert (forget(-1), forget(1), forget(1)) == (0, 2, 0)
    left = factories.rows(db, sa.select(event.c.subject).order_by(event.c.id))
    assert [row.subject for row in left] == ["waits", "undispatched"]
    assert forget(5) == 2, "its target must be gone, and nobody tells the other"
    assert factories.rows(db, sa.select(delivery.c.id)) == []


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_much_is_forgotten_in_many_short_transactions(db: Database, source_id: int) -> None:
    put(db, *"abcdefg", source_id=source_id)
    dispatch(db)
    sweep = lambda rounds: outbox.sweep(db, utc(days=1), rounds, limit=2)  # noqa: E731
    assert (sweep(2), sweep(9), sweep(9)) == (4, 3, 0)


def test_what_was_long_before_a_target_is_not_reported(db: Database, source_id: int) -> None:
    days_3 = outbox.STALE_AFTER.total_seconds()
    put(db, "old", source_id=source_id)
    put(db, "young", source_id=source_id, seconds=1)
    assert dispatch(db, ALL, seconds=days_3 + 1) == 2
    assert subjects(claim(db, days_3 + 1)) == ["young"]


@pytest.mark.slow
def test_two_notifiers_share_the_work(db: Database, source_id: int) -> None:
    """Both dispatch and claim as fast as they can; nothing comes twice, no message is in two hands."""
    targets = [Target(name, EVENT_KINDS) for name in ("a", "b")]
    for part in range(4):
        put(db, *(f"{part}/{n}" for n in range(300)), source_id=source_id)
    sent: list[tuple[str, str, int]] = []
    start = threading.Barrier(2)

    def work() -> None:
        start.wait()
        dispatched = 1
        while dispatched:
            dispatched = dispatch(db, *targets)
            for target in targets:
                if (message := claim(db, 1e5, target)) is not None:
                    size = len(message.events) + sum(more.count for more in message.more)
                    sent.append((message.id, target.name, size))
                    assert done(db, message, SENT, -1e5)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work_left = [claim(db, 1e6, target) for target in targets]
    assert len({name for name, _, _ in sent}) == len(sent)
    for target, left in zip(targets, work_left, strict=True):
        rest = 0 if left is None else len(left.events) + sum(more.count for more in left.more)
        assert sum(size for _, name, size in sent if name == target.name) + rest == 1200


class OutboxMachine(RuleBasedStateMachine):
    """Events come, a notifier dispatches, claims, sends, crashes; the receiver keeps what it was handed (SQLite)."""

    template: ClassVar[Path]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        path = shutil.copy(self.template, self.folder / "machine.sqlite")
        self.db = Database(f"sqlite:///{path}")
        self.source_id = factories.register_source(self.db)
        self.targets = [Target("a", EVENT_KINDS), Target("b", ["hits"])]
        self.now_s, self.count = 0.0, 0
        self.wanted: dict[str, set[str]] = {"a": set(), "b": set()}
        self.waiting: list[tuple[str, str]] = []
        self.received: dict[str, tuple[str, list[str]]] = {}
        self.acknowledged: set[str] = set()
        self.held: list[outbox.Message] = []

    def teardown(self) -> None:
        self.db.close()

    @rule(kind=st.sampled_from(["hits", "drift"]), again=st.booleans())
    def something_happens(self, kind: str, again: bool) -> None:
        self.count += 0 if again and self.count else 1
        subject = f"event {self.count}"
        known = {name for name, _ in self.waiting} | self.wanted["a"]
        put(self.db, subject, kind=kind, source_id=self.source_id)
        if subject not in known:
            self.waiting.append((subject, kind))

    @rule(seconds=st.sampled_from([1.0, 30.0, LEASE_S, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def events_are_dispatched(self) -> None:
        assert dispatch(self.db, *self.targets, seconds=self.now_s) == len(self.waiting)
        for subject, kind in self.waiting:
            for target in self.targets:
                if kind in target.kinds:
                    self.wanted[target.name].add(subject)
        self.waiting = []

    @rule(number=st.integers(0, 1), arrives=st.booleans())
    def a_message_is_claimed(self, number: int, arrives: bool) -> None:
        message = claim(self.db, self.now_s, self.targets[number])
        if message is None:
            return
        assert message.id not in self.acknowledged, "an acknowledged message never comes again"
        self.held.append(message)
        if arrives:
            same = self.received.setdefault(message.id, (message.target, subjects(message)))
            assert same == (message.target, subjects(message)), "the same name has the same content"

    @rule(data=st.data(), outcome=st.sampled_from([SENT, AGAIN, REFUSED]))
    def a_try_ends(self, data: st.DataObject, outcome: DeliveryResult) -> None:
        if not self.held:
            return
        message = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if outcome.sent:
            self.received.setdefault(message.id, (message.target, subjects(message)))
        if done(self.db, message, outcome, self.now_s) and outcome.sent:
            self.acknowledged.add(message.id)

    @rule()
    def a_person_tries_again(self) -> None:
        self.db.write(lambda c: outbox.retry(c, utc(self.now_s)))

    @invariant()
    def no_event_is_in_two_messages_or_lost(self) -> None:
        for target, wanted in self.wanted.items():
            rows = factories.rows(
                self.db,
                sa.select(event.c.subject, delivery.c.message)
                .join(delivery, delivery.c.event_id == event.c.id)
                .where(delivery.c.target == target),
            )
            assert sorted(row.subject for row in rows) == sorted(wanted)
            told = self._told(target)
            assert len(told) == len(set(told)), "no event comes under two names"

    def _told(self, target: str) -> list[str]:
        return [subject for name, its in self.received.values() if name == target for subject in its]


@pytest.mark.slow
def test_the_outbox_keeps_its_promises_in_any_order(sqlite_template: Path, tmp_path: Path) -> None:
    OutboxMachine.template, OutboxMachine.folder = sqlite_template, tmp_path
    checks: Iterable[HealthCheck] = [HealthCheck.too_slow, HealthCheck.data_too_large]
    chosen = settings(
        max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(checks),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )  # fmt: skip
    run_state_machine_as_test(OutboxMachine, settings=chosen)

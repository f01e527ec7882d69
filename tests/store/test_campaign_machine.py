"""Campaigns under any order of events: every image that one was to score is scored once or has a job (SQLite)."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    claim,
    finish,
    promote,
    record,
    register,
    register_source,
    rows,
    sightings,
    utc,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import campaign, campaign_range, image, job, score
from marcod.store import campaigns, queue, ranges, results
from marcod.store.campaigns import Archive, State
from marcod.store.ranges import RangeLease
from marcod.store.versions import Version

FILES = [file for plate in "AB" for number in "12" for file in sightings(3, plate=plate, inspection=number)]


@dataclass
class Held:
    """A range in a worker's hands, and the bytes that it read."""

    lease: RangeLease
    read: dict[str, str]


class CampaignMachine(RuleBasedStateMachine):
    """Files change; people begin, pause, resume and cancel; workers claim, finish, fail and die."""

    template: ClassVar[Path]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        path = shutil.copy(self.template, self.folder / "machine.sqlite")
        self.db = Database(f"sqlite:///{path}")
        self.now_s = 0.0
        champion, *others = (register(self.db, version=n) for n in "123")
        self.champion, self.others = champion, {v.id: v for v in others}
        promote(self.db, champion)
        self.source_id = register_source(self.db)
        self.files = {file.path: file for file in FILES}
        self.bytes = {file.path: "first" for file in FILES}
        record(self.db, self.source_id, self.files.values(), self.now)
        self._score_jobs(self.now)
        self.held: list[Held] = []
        self.states: dict[int, State] = {}
        self.owed: dict[int, tuple[int, set[str]]] = {}
        self._begin(min(self.others))

    @property
    def now(self) -> datetime:
        return utc(self.now_s)

    def _version(self, version_id: int) -> Version:
        return self.others.get(version_id, self.champion)

    def _score_jobs(self, now: datetime) -> None:
        while (lease := claim(self.db, now)) is not None:
            read = dict(self.bytes)
            finish(self.db, lease, self._version(lease.model_version_id), now, hashes=lambda c, r=read: r[c.path])

    @rule(seconds=st.sampled_from([1.0, RETRY_S, LEASE_S / 2, 2 * LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(number=st.integers(0, len(FILES) - 1))
    def a_file_is_rewritten(self, number: int) -> None:
        path = FILES[number].path
        before: Sighting = self.files[path]
        self.files[path] = replace(before, size=before.size + 1, mtime_ns=before.mtime_ns + 1)
        self.bytes[path] = f"bytes {self.files[path].size}"
        record(self.db, self.source_id, [self.files[path]], self.now)

    @rule()
    def jobs_are_scored(self) -> None:
        self._score_jobs(self.now)

    @rule(data=st.data())
    def somebody_begins(self, data: st.DataObject) -> None:
        self._begin(data.draw(st.sampled_from(sorted(self.others)), label="version"))

    def _begin(self, version: int) -> None:
        surveyed = self.db.read(campaigns.survey, version, Archive(), 0)
        assert surveyed is not None
        owed = set(self.files) - self._scored_now(version) - self._queued(version)
        assert sum(one.images for one in surveyed.owed) == len(owed)
        # A second one would find what the first one lost.
        alive = {n for n, state in self.states.items() if state in (State.RUNNING, State.PAUSED)}
        if not owed or version in {self.owed[number][0] for number in alive}:
            return
        number = self.db.write(campaigns.begin, version, Archive(), surveyed.owed, "ann", self.now)
        self.states[number] = State.RUNNING
        self.owed[number] = version, owed

    def _scored_now(self, version_id: int) -> set[str]:
        """Images whose present bytes, as they were read last, a version has scored."""
        found = sa.select(image.c.path).join(score, score.c.image_id == image.c.id)
        its = (score.c.model_version_id == version_id, score.c.content_hash == image.c.content_hash)
        return {path for (path,) in rows(self.db, found.where(*its, sa.not_(image.c.unread)))}

    def _scored_ever(self, version_id: int) -> set[str]:
        found = sa.select(image.c.path).join(score, score.c.image_id == image.c.id)
        return {path for (path,) in rows(self.db, found.where(score.c.model_version_id == version_id))}

    def _queued(self, version_id: int) -> set[str]:
        found = sa.select(image.c.path).join(job, job.c.image_id == image.c.id)
        return {path for (path,) in rows(self.db, found.where(job.c.model_version_id == version_id))}

    @precondition(lambda self: self.states)
    @rule(data=st.data(), act=st.sampled_from(["pause", "resume", "resume", "cancel"]))
    def somebody_decides(self, data: st.DataObject, act: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)), label="campaign")
        over = self.states[number] in (State.FINISHED, State.CANCELLED)
        if over:
            with pytest.raises(Exception, match="already"):
                self.db.write(getattr(campaigns, act), number, "ann", self.now)
            return
        self.db.write(getattr(campaigns, act), number, "ann", self.now)
        self.states[number] = {"pause": State.PAUSED, "resume": State.RUNNING, "cancel": State.CANCELLED}[act]

    @rule(limit=st.integers(1, 6))
    def a_worker_claims(self, limit: int) -> None:
        lease = self.db.write(ranges.claim, "w", limit=limit, lease_s=LEASE_S, now=self.now)
        self._see_ends()
        if lease is None or not lease.claims:
            return
        assert len(lease.claims) <= limit
        order = [(c.inspection_id, c.image_id) for c in lease.claims]
        assert order == sorted(order)
        self.held.append(Held(lease, {c.path: self.bytes[c.path] for c in lease.claims}))

    @rule(data=st.data(), limit=st.integers(2, 6), times=st.integers(1, 4))
    def a_worker_works(self, data: st.DataObject, limit: int, times: int) -> None:
        for _ in range(times):
            before = len(self.held)
            self.a_worker_claims(limit)
            if len(self.held) > before:
                if data.draw(st.sampled_from([False, False, True]), label="meanwhile a file is rewritten"):
                    path = self.held[-1].lease.claims[0].path
                    self.a_file_is_rewritten([file.path for file in FILES].index(path))
                self._finish(data, self.held.pop(), keeps=False)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keeps=st.booleans())
    def a_worker_finishes(self, data: st.DataObject, keeps: bool) -> None:
        self._finish(data, self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which")), keeps)

    def _finish(self, data: st.DataObject, held: Held, keeps: bool) -> None:
        count = data.draw(st.integers(1, len(held.lease.claims)), label="how many")
        part = replace(
            held.lease, claims=held.lease.claims[:count], ends=held.lease.ends and count == len(held.lease.claims)
        )
        scored, failures = [], []
        for c in part.claims:
            outcome = data.draw(st.sampled_from(["scored", "scored", "torn", "offline"]), label=c.path)
            if outcome == "scored":
                scored.append(results.Scored(c, held.read[c.path], CLEAR))
            else:
                failures.append(queue.Failure(c, outcome, True, counts=outcome != "offline"))
        rest = keeps and count < len(held.lease.claims) and all(f.counts for f in failures)
        rules = {"now": self.now, "retry_s": RETRY_S, "max_attempts": MAX_ATTEMPTS, "keeps": rest}
        version = self._version(part.model_version_id)
        self.db.write(lambda c: results.finish_range(c, part, version, scored, failures, **rules))
        if rest:
            self.held.append(Held(replace(held.lease, claims=held.lease.claims[count:]), held.read))
        self._see_ends()

    @precondition(lambda self: self.held)
    @rule()
    def every_worker_dies(self) -> None:
        self.held.clear()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_worker_gives_back(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which"))
        self.db.write(ranges.release, held.lease, "no memory")

    def _see_ends(self) -> None:
        """A campaign ends with its last range, and only a running one or one whose rest was in hand."""
        for row in rows(self.db, sa.select(campaign.c.id, campaign.c.state)):
            if row.state == State.FINISHED and self.states[row.id] in (State.RUNNING, State.PAUSED):
                self.states[row.id] = State.FINISHED
                version, owed = self.owed[row.id]
                assert owed <= self._scored_ever(version) | self._queued(version), "nothing is lost on the way"

    @invariant()
    def states_are_as_people_said(self) -> None:
        found = {row.id: State(row.state) for row in rows(self.db, sa.select(campaign.c.id, campaign.c.state))}
        assert found == self.states
        alive = {row.campaign_id for row in rows(self.db, sa.select(campaign_range.c.campaign_id))}
        assert alive == {n for n, state in self.states.items() if state in (State.RUNNING, State.PAUSED)}
        for one in self.db.read(campaigns.listed, self.now, every=True):
            assert (one.left > 0) == (one.id in alive)
            assert one.scored <= one.images + len(FILES)

    @invariant()
    def every_score_is_there_once(self) -> None:
        columns = (score.c.image_id, score.c.model_version_id, score.c.content_hash)
        assert set(Counter(tuple(r) for r in rows(self.db, sa.select(*columns))).values()) <= {1}

    @invariant()
    def nobody_counts_old_bytes_as_the_present_ones(self) -> None:
        read = rows(self.db, sa.select(image.c.path, image.c.content_hash).where(sa.not_(image.c.unread)))
        assert dict(map(tuple, read)) == {path: self.bytes[path] for path, _ in read}

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.db.close()

    def _end(self) -> None:
        """Whoever was left alone is picked up, and then nothing is missing."""
        self.held.clear()
        for number, state in self.states.items():
            if state is State.PAUSED:
                self.db.write(campaigns.resume, number, "ann", self.now)
        for _ in range(400):
            self.now_s += 10 * LEASE_S
            self._score_jobs(self.now)
            lease = self.db.write(ranges.claim, "w", limit=5, lease_s=LEASE_S, now=self.now)
            if lease is None:
                break
            good = [results.Scored(c, self.bytes[c.path], CLEAR) for c in lease.claims]
            rules = {"now": self.now, "retry_s": RETRY_S, "max_attempts": MAX_ATTEMPTS}
            version = self._version(lease.model_version_id)
            if good:
                self.db.write(lambda c: results.finish_range(c, lease, version, good, [], **rules))  # noqa: B023
        self._score_jobs(self.now)
        self._see_ends()
        assert State.RUNNING not in {State(row.state) for row in rows(self.db, sa.select(campaign.c.state))}
        assert self._scored_now(self.champion.id) == set(self.files)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_campaigns_do_what_their_model_says(
    backend: str, sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "RANGE_IMAGES", 4)
    CampaignMachine.template, CampaignMachine.folder = sqlite_template, tmp_path
    run_state_machine_as_test(
        CampaignMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=50,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )

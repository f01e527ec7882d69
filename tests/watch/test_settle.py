"""The settle rule: by examples, and as a state machine over real files whose times the test passes in."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from watched_site import put, set_time

from marcod.watch.settle import LONGEST_WAIT_S, FileStat, Settled, SettleTracker
from marcod.watch.tree import Root

SETTLE_S = 10.0


@pytest.fixture
def tracker(tmp_path: Path) -> SettleTracker:
    return SettleTracker(SETTLE_S, Root(tmp_path).stat)


def paths(settled: list[Settled]) -> list[str]:
    return sorted(file.path for file in settled)


def test_a_file_that_stands_still_is_reported_once(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg")
    tracker.offer("a.jpg", 0.0)
    assert tracker.due(9.9) == []
    found = file.stat()
    assert tracker.due(10.0) == [Settled("a.jpg", FileStat(found.st_size, found.st_mtime_ns))]
    assert tracker.due(100.0) == []
    assert len(tracker) == 0


def test_a_growing_file_waits_until_it_stops(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg")
    tracker.offer("a.jpg", 0.0)
    for second in range(5, 60, 5):
        file.write_bytes(b"x" * second * 100)
        assert tracker.due(float(second)) == []
    assert tracker.due(60.0) == []
    assert tracker.due(69.9) == []
    assert paths(tracker.due(70.0)) == ["a.jpg"]


def test_a_rewrite_of_the_same_size_restarts_the_clock(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg")
    tracker.offer("a.jpg", 0.0)
    set_time(file, file.stat().st_mtime_ns + 1)
    assert tracker.due(10.0) == []
    assert paths(tracker.due(20.0)) == ["a.jpg"]


def test_an_event_restarts_the_clock_although_nothing_seems_changed(tracker: SettleTracker, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    tracker.offer("a.jpg", 0.0)
    tracker.offer("a.jpg", 9.0)
    assert tracker.due(10.0) == []
    assert tracker.due(18.9) == []
    assert paths(tracker.due(19.0)) == ["a.jpg"]


def test_walks_that_pass_by_do_not_hold_a_file_up(tracker: SettleTracker, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    for second in range(10):
        tracker.offer("a.jpg", float(second), touched=False)
    assert paths(tracker.due(10.0)) == ["a.jpg"]


def test_times_of_files_are_not_compared_with_any_clock(tracker: SettleTracker, tmp_path: Path) -> None:
    set_time(put(tmp_path, "future.jpg"), 4_000_000_000 * 10**9)
    set_time(put(tmp_path, "past.jpg"), 1)
    tracker.offer("future.jpg", 0.0)
    tracker.offer("past.jpg", 0.0)
    assert paths(tracker.due(10.0)) == ["future.jpg", "past.jpg"]


def test_an_empty_file_waits_for_its_content(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg", b"")
    tracker.offer("a.jpg", 0.0)
    now = 0.0
    for _ in range(100):
        now += LONGEST_WAIT_S
        assert tracker.due(now) == []
    assert "a.jpg" in tracker
    file.write_bytes(b"content")
    assert tracker.due(now + LONGEST_WAIT_S) == []
    assert paths(tracker.due(now + LONGEST_WAIT_S + SETTLE_S)) == ["a.jpg"]


def test_an_event_ends_the_long_pause_of_an_empty_file(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg", b"")
    tracker.offer("a.jpg", 0.0)
    now = 0.0
    for _ in range(10):
        now += LONGEST_WAIT_S
        tracker.due(now)
    file.write_bytes(b"content")
    tracker.offer("a.jpg", now)
    assert paths(tracker.due(now + SETTLE_S)) == ["a.jpg"]


def test_empty_files_are_looked_at_ever_more_rarely(tmp_path: Path) -> None:
    looks = []
    root = Root(tmp_path)

    def counted(path: str) -> FileStat | None:
        looks.append(path)
        return root.stat(path)

    put(tmp_path, "a.jpg", b"")
    tracker = SettleTracker(SETTLE_S, counted)
    tracker.offer("a.jpg", 0.0)
    for second in range(6000):
        tracker.due(float(second))
    assert 10 < len(looks) < 25


def test_a_vanished_file_leaves_quietly(tracker: SettleTracker, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg").unlink()
    tracker.offer("a.jpg", 0.0)
    assert len(tracker) == 0
    file = put(tmp_path, "b.jpg")
    tracker.offer("b.jpg", 0.0)
    file.unlink()
    assert tracker.due(10.0) == []
    assert len(tracker) == 0
    assert tracker.vanished == 1


def test_what_could_not_be_recorded_comes_again(tracker: SettleTracker, tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg")
    tracker.offer("a.jpg", 0.0)
    settled = tracker.due(10.0)
    tracker.put_back(settled, 10.0, wait_s=5.0)
    assert tracker.due(14.0) == []
    assert tracker.due(15.0) == settled
    tracker.put_back(settled, 15.0)
    file.write_bytes(b"changed meanwhile")
    assert tracker.due(15.0) == []
    assert tracker.due(25.0)[0].stat.size == 17


def test_only_files_inside_the_root_settle(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = put(tmp_path, "outside.jpg")
    inside = put(root, "real.jpg")
    (root / "in.jpg").symlink_to(inside)
    (root / "out.jpg").symlink_to(outside)
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    tracker = SettleTracker(SETTLE_S, Root(root).stat)
    for entry in root.iterdir():
        tracker.offer(entry.name, 0.0)
    assert paths(tracker.due(10.0)) == ["in.jpg", "real.jpg"]
    assert len(tracker) == 0


def test_a_file_that_cannot_be_looked_at_stays_on_the_list(tmp_path: Path) -> None:
    name = "x" * 300
    tracker = SettleTracker(SETTLE_S, Root(tmp_path).stat)
    tracker.offer(name, 0.0)
    assert tracker.due(10.0) == []
    assert name in tracker


def test_a_round_looks_at_a_bounded_number_of_files(tracker: SettleTracker, tmp_path: Path) -> None:
    for number in range(30):
        put(tmp_path, f"{number:02}.jpg")
        tracker.offer(f"{number:02}.jpg", 0.0)
    reported = []
    while tracker.ripe(10.0):
        portion = tracker.due(10.0, limit=7)
        assert len(portion) <= 7
        reported += paths(portion)
    assert reported == [f"{number:02}.jpg" for number in range(30)]


def test_without_a_settle_time_files_are_reported_at_once(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    put(tmp_path, "empty.jpg", b"")
    tracker = SettleTracker(0.0, Root(tmp_path).stat)
    tracker.offer("a.jpg", 5.0)
    tracker.offer("empty.jpg", 5.0)
    assert paths(tracker.due(5.0)) == ["a.jpg"]
    assert not tracker.ripe(5.0)
    assert "empty.jpg" in tracker


NAMES = st.sampled_from(["a.jpg", "b.jpg", "c.jpg"])


class Settling(RuleBasedStateMachine):
    """Files change, vanish and come back; the database fails now and then; walks and events nominate."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="marcod-settle-"))
        self.tracker = SettleTracker(SETTLE_S, Root(self.folder).stat)
        self.now = 0.0
        self.stamp = 10**18
        self.current: dict[str, FileStat] = {}
        self.changed_at: dict[str, float] = {}
        self.reported: list[tuple[str, FileStat]] = []

    def _write(self, name: str, size: int) -> None:
        self.stamp += 1
        set_time(put(self.folder, name, b"x" * size), self.stamp)
        self.current[name] = FileStat(size, self.stamp)
        self.changed_at[name] = self.now

    @rule(name=NAMES, size=st.integers(0, 3), touched=st.booleans())
    def change(self, name: str, size: int, touched: bool) -> None:
        self._write(name, size)
        self.tracker.offer(name, self.now, touched=touched)

    @rule(name=NAMES, size=st.integers(0, 3))
    def change_unnoticed(self, name: str, size: int) -> None:
        if name in self.tracker and name in self.current:
            self._write(name, size)

    @rule(name=NAMES)
    def vanish(self, name: str) -> None:
        if self.current.pop(name, None):
            (self.folder / name).unlink()

    @rule(name=NAMES, touched=st.booleans())
    def nominate_again(self, name: str, touched: bool) -> None:
        if name in self.tracker:
            self.tracker.offer(name, self.now, touched=touched)

    @rule(seconds=st.floats(0.0, 40.0), limit=st.none() | st.integers(1, 2))
    def record(self, seconds: float, limit: int | None) -> None:
        self.now += seconds
        for file in self._due(limit):
            self.reported.append((file.path, file.stat))

    @rule(seconds=st.floats(0.0, 40.0), wait_s=st.sampled_from([0.0, 3.0]))
    def fail_to_record(self, seconds: float, wait_s: float) -> None:
        self.now += seconds
        self.tracker.put_back(self._due(None), self.now, wait_s=wait_s)

    @precondition(lambda self: self.current)
    @rule()
    def come_to_rest(self) -> None:
        for _ in range(4):
            self.record(2 * LONGEST_WAIT_S, None)
        empty = {name for name, stat in self.current.items() if stat.size == 0}
        full = {(name, stat) for name, stat in self.current.items() if stat.size}
        assert full <= set(self.reported), "a file that stands still was not reported"
        assert all(name in self.tracker for name in empty)
        assert len(self.tracker) == len(empty)

    def _due(self, limit: int | None) -> list[Settled]:
        settled = self.tracker.due(self.now, limit)
        for file in settled:
            assert file.stat == self.current[file.path]
            assert file.stat.size > 0
            assert self.now - self.changed_at[file.path] >= SETTLE_S
        return settled

    @invariant()
    def nothing_is_reported_twice(self) -> None:
        assert len(self.reported) == len(set(self.reported))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestSettling = Settling.TestCase
TestSettling.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

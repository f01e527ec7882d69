"""Real observers: what they nominate, and that dead ones are replaced."""

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_until
from watched_site import put

from marcod.watch.observe import LIMIT_RETRY_S, EventBuffer, ObserverKind, ObserverSupervisor
from marcod.watch.tree import Root

pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")


class Post:
    """An observer on a folder, checked by hand."""

    def __init__(self, folder: Path, kind: ObserverKind) -> None:
        self.root = Root(folder)
        self.events = EventBuffer()
        self.observer = ObserverSupervisor("imager", self.root, kind, 0.05, self.events)

    def check(self, now: float = 0.0) -> None:
        self.observer.check(self.root.identity(), now)

    def watch(self, now: float = 0.0) -> None:
        self.check(now)
        wait_until(lambda: self.observer.watching, "watching")

    def receives(self, path: str) -> None:
        wait_until(lambda: path in self.events.take_files(1000), f"the event of {path}")


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Callable[..., Post]]:
    posts: list[Post] = []

    def make(kind: ObserverKind = "inotify", folder: Path = tmp_path) -> Post:
        posts.append(Post(folder, kind))
        return posts[-1]

    yield make
    for one in posts:
        one.observer.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_files_below_the_root_are_nominated(post: Callable[..., Post], tmp_path: Path, kind: str) -> None:
    one = post(kind)
    put(tmp_path, "old/before.jpg")
    one.watch()
    put(tmp_path, "old/new.jpg")
    one.receives("old/new.jpg")
    put(tmp_path, "old/before.jpg", b"rewritten")
    one.receives("old/before.jpg")
    (tmp_path / "old/new.jpg").rename(tmp_path / "old/renamed\udce9.jpg")
    one.receives("old/renamed\udce9.jpg")
    (tmp_path / "folder").mkdir()
    wait_until(lambda: "folder" in one.events.take_folders(), "the new folder")


def test_reading_nominates_nothing(post: Callable[..., Post], tmp_path: Path) -> None:
    one = post()
    file = put(tmp_path, "a.jpg")
    one.watch()
    file.read_bytes()
    put(tmp_path, "b.jpg")
    one.receives("b.jpg")
    assert len(one.events) == 0


def test_a_root_behind_a_link_is_watched(post: Callable[..., Post], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    one = post("inotify", tmp_path / "link")
    one.watch()
    put(tmp_path, "real/a.jpg")
    one.receives("a.jpg")


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_each_dead_thread_is_noticed_and_replaced(post: Callable[..., Post], tmp_path: Path, kind: str) -> None:
    one = post(kind)
    one.watch()
    for number in range(len(one.observer.threads)):
        thread = one.observer.threads[number]
        thread.stop()  # type: ignore[attr-defined]
        wait_until(lambda: not one.observer.watching, f"noticing that {thread.name} is dead")
        one.watch(now=number + 1.0)
        put(tmp_path, f"{number}.jpg")
        one.receives(f"{number}.jpg")


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_root_that_goes_and_comes_back_is_watched_again(
    post: Callable[..., Post], tmp_path: Path, kind: ObserverKind
) -> None:
    root = tmp_path / "plates"
    root.mkdir()
    one = post(kind, root)
    one.watch()
    root.rename(tmp_path / "unplugged")
    one.check(5.0)
    assert not one.observer.watching
    assert one.observer.trouble is None
    root.mkdir()
    one.watch(10.0)
    put(root, "another.jpg")
    one.receives("another.jpg")


def test_a_missing_root_is_not_a_trouble_of_the_observer(post: Callable[..., Post], tmp_path: Path) -> None:
    one = post("inotify", tmp_path / "none")
    one.check()
    assert not one.observer.watching
    assert one.observer.trouble is None


@contextmanager
def no_file_descriptor_left() -> Iterator[None]:
    """inotify reports this as its own limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as free:
        lowest = free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_inotify_limit_gives_one_sentence_and_is_tried_again_later(
    post: Callable[..., Post],
) -> None:
    one = post()
    identity = one.root.identity()
    with no_file_descriptor_left():
        one.observer.check(identity, 0.0)
        wait_until(lambda: one.observer.trouble, "trouble")
    assert one.observer.trouble is not None
    assert "the inotify limit is reached; raise fs.inotify.max_user_instances" in one.observer.trouble
    one.check(LIMIT_RETRY_S - 1)
    assert not one.observer.watching
    one.watch(LIMIT_RETRY_S)
    assert one.observer.trouble is None


def test_the_inbox_keeps_each_path_once_and_in_order() -> None:
    events = EventBuffer()
    for path in ("b", "a", "b", "c"):
        events.put(path, is_folder=False)
    events.put("f", is_folder=True)
    assert len(events) == 4
    assert events.take_files(2) == ["b", "a"]
    assert events.take_files(2) == ["c"]
    assert events.take_folders() == ["f"]
    assert len(events) == 0

"""Walking real folders: what is found, what is not entered, and what a second walk saves."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_site import put, set_time

from marcod.watch.settle import FileStat
from marcod.watch.tree import COMPANION_LIMIT, MTIME_GRACE_S, FolderMemory, MissingRootError, Root, Walk, outermost


def everything(begun: Walk, now: float = 0.0, limit: int = 1000) -> list[str]:
    """What a walk still finds, in portions."""
    found = []
    while not begun.done:
        portion = begun.more(now, limit)
        assert len(portion) <= limit
        found += [file.path for file in portion]
    return found


def found(root: Path, memory: FolderMemory | None = None, *, now: float = 0.0, full: bool = True) -> list[str]:
    return sorted(everything(Walk(Root(root), memory, full=full), now))


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """Three plates of two batches of four files."""
    root = tmp_path / "plates"
    for plate in range(3):
        for batch in range(2):
            for well in range(4):
                put(root, f"plate{plate}/batch{batch}/{well}.jpg")
    return root


def remembered(root: Path) -> FolderMemory:
    """A memory that two walks, far enough apart, have made sure of."""
    memory = FolderMemory()
    found(root, memory, now=0.0)
    found(root, memory, now=MTIME_GRACE_S, full=False)
    return memory


def test_a_walk_finds_every_file_in_any_portions(plates: Path) -> None:
    expected = sorted(os.path.relpath(path, plates) for path in plates.rglob("*.jpg"))
    assert len(expected) == 24
    for limit in (1, 3, 5, 1000):
        assert sorted(everything(Walk(Root(plates)), limit=limit)) == expected


def test_a_file_is_seen_as_it_stands(plates: Path) -> None:
    file = put(plates, "new/a.jpg", b"12345")
    set_time(file, 1_700_000_000_123_456_789)
    begun = Walk(Root(plates), folders=["new"])
    (seen,) = begun.more(0.0, 10)
    assert seen.path == "new/a.jpg"
    assert seen.stat(Root(plates)) == FileStat(5, 1_700_000_000_123_456_789)


def test_an_unchanged_rescan_lists_no_folder(plates: Path) -> None:
    memory = remembered(plates)
    rescan = Walk(Root(plates), memory, full=False)
    assert everything(rescan) == []
    assert (rescan.counts.folders, rescan.counts.listed) == (10, 0)


def test_a_rescan_lists_only_the_folders_that_changed(plates: Path) -> None:
    memory = remembered(plates)
    put(plates, "plate1/batch0/new.jpg")
    rescan = Walk(Root(plates), memory, full=False)
    assert "plate1/batch0/new.jpg" in everything(rescan, now=100.0)
    assert rescan.counts.listed == 1


def test_a_folder_whose_time_is_fresh_is_listed_again(plates: Path) -> None:
    memory = FolderMemory()
    found(plates, memory, now=0.0)
    # As if this file had come within the tick of the folder's time, right after the listing.
    folder = plates / "plate0/batch0"
    before = folder.stat().st_mtime_ns
    put(plates, "plate0/batch0/late.jpg")
    set_time(folder, before)
    assert "plate0/batch0/late.jpg" in found(plates, memory, now=1.0, full=False)
    assert "plate0/batch0/late.jpg" in found(plates, memory, now=MTIME_GRACE_S, full=False)
    assert found(plates, memory, now=MTIME_GRACE_S + 1, full=False) == []


def test_a_new_tree_of_folders_is_found_by_a_rescan(plates: Path) -> None:
    memory = remembered(plates)
    put(plates, "plate9/deep/deeper/a.jpg")
    assert found(plates, memory, now=100.0, full=False) == ["plate9/deep/deeper/a.jpg"]


def test_a_full_walk_believes_nothing(plates: Path) -> None:
    assert len(found(plates, remembered(plates), now=100.0)) == 24


def test_links_to_folders_are_not_entered(plates: Path, tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/outside.jpg")
    (plates / "out").symlink_to(tmp_path / "elsewhere")
    (plates / "plate0/up").symlink_to(plates)
    (plates / "self").symlink_to("self")
    names = found(plates)
    assert len(names) == 27
    assert {"out", "plate0/up", "self"} < set(names)
    root = Root(plates)
    stats = {file.path: file.stat(root) for file in Walk(root).more(0.0, 1000)}
    assert [name for name in ("out", "plate0/up", "self") if stats.get(name)] == []


def test_hidden_and_snapshot_folders_are_not_entered(plates: Path) -> None:
    for folder in (".snapshot/plate0", "@eaDir", "plate0/.rsync-tmp", "~snapshot"):
        put(plates, f"{folder}/a.jpg")
    assert len(found(plates)) == 24
    assert everything(Walk(Root(plates), folders=[".snapshot/plate0", "plate0/.rsync-tmp"])) == []


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b"back\\slash.jpg", "größe.jpg".encode(), b"\xff\xfe/\x80.jpg"]
    for name in names:
        put(tmp_path, os.fsdecode(name))
    seen = Walk(Root(tmp_path)).more(0.0, 100)
    walked = found(tmp_path)
    assert sorted(os.fsencode(name) for name in walked) == sorted(names)
    assert all(Root(tmp_path).stat(name) for name in walked)
    assert all(file.stat(Root(tmp_path)) for file in seen)


def test_an_unreadable_folder_is_counted_and_the_rest_found(plates: Path) -> None:
    # A path beyond PATH_MAX cannot be listed by anybody, not even by root, who reads folders of any mode.
    top = os.open(plates, os.O_RDONLY)
    folder = os.dup(top)
    try:
        for _ in range(25):
            os.mkdir("d" * 200, dir_fd=folder)
            deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        begun = Walk(Root(plates))
        assert len(everything(begun)) == 24
        assert begun.counts.unreadable == 1
        assert len(begun.counts.unreadable_examples[0]) > 3000
    finally:
        os.close(folder)
        os.close(top)
        shutil.rmtree(plates)


def test_a_missing_root_says_so_and_loses_nothing(plates: Path) -> None:
    root = Root(plates)
    memory = remembered(plates)
    assert root.identity() is not None
    begun = Walk(root, memory, full=False)
    plates.rename(plates.with_name("unplugged"))
    assert root.identity() is None
    with pytest.raises(MissingRootError, match="plates cannot be read: No such file"):
        begun.more(0.0, 10)
    assert not begun.done
    plates.with_name("unplugged").rename(plates)
    put(plates, "plate2/batch1/new.jpg")
    assert "plate2/batch1/new.jpg" in everything(begun)


def test_a_root_that_is_a_file_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "plates")
    assert Root(tmp_path / "plates").identity() is None
    with pytest.raises(MissingRootError, match="Not a directory"):
        Walk(Root(tmp_path / "plates")).more(0.0, 10)


def test_a_root_behind_a_link_is_followed(plates: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(plates)
    root = Root(tmp_path / "current")
    assert len(everything(Walk(root))) == 24
    (plates / "plate0/link.jpg").symlink_to(plates / "plate1/batch0/0.jpg")
    assert root.stat("plate0/link.jpg") is not None


def test_a_listing_that_is_empty_and_then_full_again(plates: Path, tmp_path: Path) -> None:
    memory = remembered(plates)
    plates.rename(tmp_path / "unmounted")
    plates.mkdir()
    assert found(plates, memory, now=100.0, full=False) == []
    plates.rmdir()
    (tmp_path / "unmounted").rename(plates)
    assert len(found(plates, memory, now=200.0, full=False)) == 24


def test_companions_are_small_regular_files_inside_the_root(plates: Path, tmp_path: Path) -> None:
    put(tmp_path, "secret.csv", b"secret")
    put(plates, "plate0/report.csv", b"rows")
    (plates / "plate0/link.csv").symlink_to("report.csv")
    (plates / "plate0/out.csv").symlink_to(tmp_path / "secret.csv")
    os.mkfifo(plates / "pipe.csv")
    with (plates / "large.csv").open("wb") as file:
        file.truncate(COMPANION_LIMIT + 1000)
    read = Root(plates).companions()
    assert read("plate0/report.csv") == read("plate0/link.csv") == b"rows"
    refused = ("plate0/out.csv", "../secret.csv", "pipe.csv", "plate0", "none.csv", f"{tmp_path}/secret.csv", "a\0b")
    assert [path for path in refused if read(path) is not None] == []
    assert len(read("large.csv") or b"") == COMPANION_LIMIT + 1
    put(plates, "plate0/report.csv", b"changed")
    assert read("plate0/report.csv") == b"rows"
    assert Root(plates).companions()("plate0/report.csv") == b"changed"


def test_outermost_folders() -> None:
    assert outermost(["a/b", "a", "a-b", "a/b/c", "c/d", "c/d"]) == ["a", "a-b", "c/d"]
    assert outermost(["a", "", "b"]) == [""]
    assert outermost([]) == []


FOLDERS = st.sampled_from(["", "a", "a/b", "a/b/c", "d"])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["file", "folder", "remove", "walk"]), FOLDERS, st.integers(0, 3)), max_size=25
)


@given(CHANGES)
@settings(max_examples=60, deadline=None)
def test_every_file_is_found_by_the_walk_after_it(changes: list[tuple[str, str, int]]) -> None:
    """Whatever comes and goes between, a rescan finds at least all files that are new since the walk before."""
    with tempfile.TemporaryDirectory(prefix="marcod-tree-") as name:
        root, memory, now = Path(name), FolderMemory(), 0.0
        fresh: set[str] = set()
        for kind, folder, number in [*changes, ("walk", "", 0)]:
            path = f"{folder}/{number}" if folder else str(number)
            if kind == "file" and not (root / path).exists():
                put(root, path)
                fresh.add(path)
            elif kind == "folder":
                (root / folder).mkdir(parents=True, exist_ok=True)
            elif kind == "remove" and folder and (root / folder).is_dir():
                shutil.rmtree(root / folder)
                fresh = {path for path in fresh if (root / path).exists()}
            elif kind == "walk":
                seen = everything(Walk(Root(root), memory, full=False), now)
                assert fresh <= set(seen)
                assert all((root / path).is_file() for path in seen)
                fresh.clear()
                now += number

"""Small images on disk: whole or not there, and never more than the limit."""

import os
from pathlib import Path

from marcod.web.image_cache import ABANDONED_S, BEGIN, END, ImageCache


def jpeg(size: int) -> bytes:
    return BEGIN + bytes(size - len(BEGIN) - len(END)) + END


def test_what_is_put_is_found(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "new" / "folder", 10_000)
    assert cache.get("abcd-thumb.jpg") is None
    cache.put("abcd-thumb.jpg", jpeg(100))
    assert cache.get("abcd-thumb.jpg") == jpeg(100)
    assert ImageCache(tmp_path / "new" / "folder", 10_000).get("abcd-thumb.jpg") == jpeg(100)


def test_the_files_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 1_000)
    for number in range(12):
        cache.put(f"{number:02}-thumb.jpg", jpeg(100))
        os.utime(tmp_path / f"{number:02}" / f"{number:02}-thumb.jpg", (number, number))
    kept = sorted(path.name[:2] for path in tmp_path.glob("??/*"))
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 1_000
    assert kept == [f"{number:02}" for number in range(12 - len(kept), 12)]
    assert len(kept) >= 9


def test_a_torn_file_counts_as_missing_and_an_abandoned_one_goes(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 10_000)
    cache.put("ab.jpg", jpeg(100))
    (tmp_path / "ab" / "ab.jpg").write_bytes(jpeg(100)[:50])
    assert cache.get("ab.jpg") is None
    unfinished = tmp_path / "ab" / ".left"
    unfinished.write_bytes(b"x")
    long_ago = unfinished.stat().st_mtime - 2 * ABANDONED_S
    os.utime(unfinished, (long_ago, long_ago))
    ImageCache(tmp_path, 10_000).put("ac.jpg", jpeg(100))
    assert not unfinished.exists()


def test_a_folder_that_cannot_be_made_costs_nothing_but_speed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ImageCache(tmp_path / "file", 10_000)
    cache.put("ab.jpg", jpeg(100))
    assert cache.get("ab.jpg") is None

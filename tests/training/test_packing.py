"""Packed images: the same pixels as from the files, whatever was packed before, and no damage goes unseen."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_snapshots import item, snapshot, written
from PIL import Image
from tiny import jpeg

from marcod.domain import Split
from marcod.errors import MarcodError
from marcod.fitting import packs
from marcod.fitting.packs import BusyPackError, Pack
from marcod.model.preprocess import Preprocessing
from marcod.training import data, packing, rehearsal
from marcod.training.data import LoadedSet
from marcod.training.packing import PackReport, StoppedPackError
from marcod.training.snapshot import Item, Snapshot

HOW = Preprocessing(60, "area")
SIDES = (Split.TRAIN, Split.VALIDATION, Split.TEST)


def lab(folder: Path, count: int = 9) -> Snapshot:
    """Images of all sides, known by their files' checksums; every third one is a JPEG."""
    return snapshot([on_disk(folder, number) for number in range(count)])


def on_disk(folder: Path, number: int) -> Item:
    one = written(item(number, folder, side=SIDES[number // 3 % 3]))
    file = Path(one.root) / one.path
    if number % 3 == 0:
        file.write_bytes(jpeg(number))
    return replace(one, content_hash=hashlib.sha256(file.read_bytes()).hexdigest())


def pack(taken: Snapshot, place: Path, most: int = packs.SHARD_BYTES, stop_after: int | None = None) -> PackReport:
    seen: list[int] = []
    return packing.pack(
        taken, HOW, place, {}, threads=2, done=lambda done, total: seen.append(done),
        stopped=lambda: stop_after is not None and len(seen) >= stop_after, shard_bytes=most,
    )  # fmt: skip


def loaded(taken: Snapshot, folder: Path, side: Split, place: Path | None) -> LoadedSet:
    folder.mkdir()
    wanted = data.training_set(taken, rehearsal.NOTHING, side, {})
    return data.load(
        wanted, HOW, folder / f"{side}.npy",
        threads=2, progress=lambda *_: None, stopped=lambda: False, what="reading", pack=place,
    )  # fmt: skip


def test_training_reads_the_same_pixels_from_a_pack_without_the_files(tmp_path: Path) -> None:
    taken, place = lab(tmp_path / "images"), tmp_path / "packs"
    found = pack(taken, place)
    assert (found.before, found.added, found.left_out) == (0, 6, ())
    expected = loaded(taken, tmp_path / "plain", Split.TRAIN, None)
    for one in taken.side(Split.TRAIN):
        (Path(one.root) / one.path).unlink()
    again = loaded(taken, tmp_path / "packed", Split.TRAIN, place)
    assert np.array_equal(again.pixels, expected.pixels)
    assert len(again.rows) == 3
    assert again.unreadable == ()


def test_what_is_not_packed_is_read_from_its_file(tmp_path: Path) -> None:
    taken, place = lab(tmp_path / "images"), tmp_path / "packs"
    pack(replace(taken, items=taken.items[1:]), place)
    expected = loaded(taken, tmp_path / "plain", Split.TRAIN, None)
    assert np.array_equal(loaded(taken, tmp_path / "packed", Split.TRAIN, place).pixels, expected.pixels)


def test_the_test_side_is_not_packed(tmp_path: Path) -> None:
    taken = lab(tmp_path / "images")
    found = Pack(pack(taken, tmp_path / "packs").folder)
    assert [one.content_hash in found for one in taken.items] == [one.side is not Split.TEST for one in taken.items]


def test_packing_goes_on_where_it_was_stopped_and_adds_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "AT_ONCE", 2)
    taken, place = lab(tmp_path / "images"), tmp_path / "packs"
    with pytest.raises(StoppedPackError):
        pack(taken, place, stop_after=2)
    [first] = packs.folder_of(place, HOW).glob("*.tar")
    before = first.read_bytes()
    assert (pack(taken, place).before, pack(taken, place).added) == (2, 0)
    more = replace(taken, items=(*taken.items, on_disk(tmp_path / "images", 18)))
    assert pack(more, place).added == 1
    assert first.read_bytes() == before
    assert len(Pack(packs.folder_of(place, HOW))) == 7


def test_two_do_not_add_to_a_pack_at_once(tmp_path: Path) -> None:
    """The second one is refused while the first one is at work, and then finds nothing to do."""
    taken, place = lab(tmp_path / "images"), tmp_path / "packs"
    refused: list[str] = []

    def second(*_: int) -> None:
        with pytest.raises(BusyPackError) as busy:
            pack(taken, place)
        refused.append(str(busy.value))

    packing.pack(taken, HOW, place, {}, threads=2, done=second, stopped=lambda: False)
    assert refused[0].startswith(f"another `marcod dataset pack` writes to {place}/")
    assert pack(taken, place).added == 0


def test_a_file_that_changed_or_went_is_left_out_by_name(tmp_path: Path) -> None:
    taken = lab(tmp_path / "images")
    (tmp_path / "images" / "0.png").write_bytes(jpeg(77))
    (tmp_path / "images" / "1.png").unlink()
    found = pack(taken, tmp_path / "packs")
    assert found.added == 4
    assert sorted(sentence.rpartition(": ")[2] for sentence in found.left_out) == [
        "No such file or directory", "is another file than a moment ago",
    ]  # fmt: skip


def test_a_damaged_pack_is_named_and_not_trained_on(tmp_path: Path) -> None:
    taken, place = lab(tmp_path / "images"), tmp_path / "packs"
    [tar] = pack(taken, place).folder.glob("*.tar")
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    reader = Pack(packs.folder_of(place, HOW))
    [damaged] = [one for one in taken.items if one.content_hash in reader and reader.place(one.content_hash)[1] == 512]
    with pytest.raises(MarcodError, match=r"shard-00000\.tar is damaged: .* another checksum; remove .*and pack"):
        reader.read(damaged.content_hash)
    tar.with_suffix(".json").write_text("{")
    with pytest.raises(MarcodError, match=r"shard-00000\.json is damaged; remove it and pack"):
        Pack(packs.folder_of(place, HOW))


def test_any_tar_reader_finds_the_images(tmp_path: Path) -> None:
    """A small limit gives a file to each image."""
    taken = lab(tmp_path / "images")
    found = pack(taken, tmp_path / "packs", most=1)
    shards = sorted(found.folder.glob("*.tar"))
    assert len(shards) == 6
    reader = Pack(found.folder)
    for shard in shards:
        with tarfile.open(shard) as tar:
            [member] = tar.getmembers()
            stream = tar.extractfile(member)
            assert stream is not None
            pixels = np.asarray(Image.open(io.BytesIO(stream.read())))
        content = member.name.removesuffix(".webp")
        assert list(json.loads(shard.with_suffix(".json").read_text())["images"]) == [content]
        assert np.array_equal(pixels, reader.read(content))


@settings(max_examples=40, deadline=None)
@given(side=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 256))
def test_no_bit_of_any_pixel_is_lost(side: int, seed: int, levels: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, levels, (side, side, 3)).astype(np.uint8)
    assert np.array_equal(packs.decoded(packs.encoded(pixels)), pixels)

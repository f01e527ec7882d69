"""A file of weights of PyTorch's first format gives its arrays; any other pickle gives a sentence and runs nothing."""

import pickle
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model.convert import torch_file

MAGIC = 0x1950A86A20F9469CFC6C
HEAD = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}))


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """The instruction that pushes a number."""
    return b"J" + struct.pack("<i", value)


def numbers(values: Sequence[int]) -> bytes:
    """The instructions that push a tuple of numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key: str, array: NDArray[np.float32], start: int = 0, strides: Sequence[int] | None = None) -> bytes:
    """The instructions that push a tensor, as PyTorch writes them."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(array.size) + b"NtQ"
    steps = [s // array.itemsize for s in array.strides] if strides is None else strides
    rest = number(start) + numbers(array.shape) + numbers(steps) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def file_of(arrays: Mapping[str, NDArray[np.float32]], **more: bytes) -> bytes:
    """A whole file; ``more`` replaces the instructions of a tensor."""
    keys = {name: f"key {name}" for name in arrays}
    items = b"".join(text(n) + more.get(n, tensor(keys[n], array)) for n, array in arrays.items())
    table = b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."
    data = b"".join(struct.pack("<q", a.size) + np.ascontiguousarray(a).tobytes() for a in arrays.values())
    return HEAD + table + pickle.dumps(list(keys.values()), 2) + data


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The place of a file."""
    return tmp_path / "weights.pth"


@settings(max_examples=30, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=4), elements=st.floats(-9, 9, width=32)
        ),
        max_size=4,
    )
)
def test_every_array_comes_back(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, NDArray[np.float32]]
) -> None:
    place = tmp_path_factory.mktemp("torch") / "weights.pth"
    place.write_bytes(file_of(arrays))
    found = torch_file.read(place)
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[n], a) and found[n].dtype == a.dtype for n, a in arrays.items())


def test_a_transposed_array_comes_back_in_its_shape(written: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    turned = array.transpose(2, 0, 1)
    written.write_bytes(file_of({"a": array}, a=tensor("key a", turned)))
    assert np.array_equal(torch_file.read(written)["a"], turned)


def bad(instructions: bytes) -> bytes:
    """A file with other instructions where its table should be."""
    return HEAD + b"\x80\x02" + instructions


HERE = np.zeros((2, 2), np.float32)

DEEP = b")" + b"q\x01h\x01\x86" * 64
"""The instructions that push a tuple of two of the tuple before, 64 times over."""

HOSTILE = {
    "a call of the shell": (bad(b"cos\nsystem\n(" + text("touch ran") + b"tR."), "asks for .*os system"),
    "a call of the shell by an old instruction": (bad(b"(" + text("touch ran") + b"ios\nsystem\n."), "INST"),
    "a class of builtins": (bad(b"cbuiltins\neval\n" + text("1") + b"\x85R."), "asks for .*builtins eval"),
    "an object made without its class": (bad(b"ccollections\nOrderedDict\n)\x81."), "instruction NEWOBJ"),
    "a key that takes for ever to hash": (bad(b"}(" + DEEP + b"Nu."), "a key is not a text"),
    "a call that takes for ever to print": (bad(DEEP + b")R."), "asks for tuple"),
    "a storage's key that takes for ever to print": (
        bad(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + DEEP + b"tQ."),
        "a key is not a text",
    ),
    "more arrays than numbers": (
        file_of({"a": HERE}).replace(
            text("a") + tensor("key a", HERE), text("a") + tensor("key a", HERE) + text("b") + tensor("key a", HERE)
        ),
        "tensors share numbers",
    ),
    "a table called with something": (bad(b"ccollections\nOrderedDict\n(" + text("x") + b"tR."), "asks for"),
    "a registered extension": (bad(b"\x82\x01."), "EXT1|extension"),
    "a stack that is empty": (bad(b"R."), "not a PyTorch file"),
    "a mark that never was": (bad(b"t."), "not a PyTorch file"),
    "a value that was not kept": (bad(b"h\x07."), "not a PyTorch file"),
    "no instruction at all": (bad(b"\xff"), "not a PyTorch file"),
    "a list instead of a table": (bad(b"]."), "not a PyTorch file"),
    "another number in front": (pickle.dumps(5, 2) + HEAD, "does not begin as one"),
    "an array before its storage": (file_of({"a": HERE}, a=tensor("key a", HERE, start=-1)), "outside its storage"),
    "an array beyond its storage": (file_of({"a": HERE}, a=tensor("key a", HERE, start=1)), "outside its storage"),
    "steps of nothing": (file_of({"a": HERE}, a=tensor("key a", HERE, strides=(0, 0))), "strides are not those"),
    "steps out of the storage": (
        file_of({"a": HERE}, a=tensor("key a", HERE, strides=(1, 9))),
        "strides are not those",
    ),
    "a storage of nobody": (file_of({"a": HERE}, a=tensor("key b", HERE)), "not a PyTorch file"),
    "too few numbers": (file_of({"a": HERE})[:-1], "ends before its numbers do"),
    "fewer than no numbers": (file_of({"a": HERE})[:-24] + struct.pack("<q", -1), "ends before its numbers do"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_runs(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data, reason = HOSTILE[name]
    written.write_bytes(data)
    with pytest.raises(BundleError, match=reason):
        torch_file.read(written)
    assert list(tmp_path.iterdir()) == [written]


def test_a_file_cut_anywhere_is_refused(written: Path) -> None:
    whole = file_of({"a": HERE, "b": HERE})
    for length in range(len(whole)):
        written.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"weights\.pth is not a PyTorch file of weights"):
            torch_file.read(written)


@settings(max_examples=300, deadline=None)
@given(where=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_gives_arrays_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, where: int, value: int
) -> None:
    data = bytearray(file_of({"a": HERE, "b": HERE}))
    data[where % len(data)] = value
    place = tmp_path_factory.mktemp("torch") / "weights.pth"
    place.write_bytes(bytes(data))
    with suppress(BundleError):
        assert all(array.dtype.kind in "fi" for array in torch_file.read(place).values())

"""Reader of a PyTorch file of weights in its first format (before 1.6), without PyTorch and without unpickling.

Such a file is five pickles, and after them the numbers of every storage. A pickle is a program, so this one is not
run: its instructions are read, those that a file of weights has are followed by a stack of plain values, and any other
ends the reading. Nothing that the file names is imported or called.

Guarantees:

* Only names and arrays of float32 or int64 come out.
* All arrays together are not larger than the file.
"""

import io
import math
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marcod.errors import BundleError, os_reason

MOST_BYTES: Final = 1 << 28
"""Larger files are not read. The published network has 19 MB."""

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_DTYPES: Final[Mapping[str, Any]] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
_TABLE: Final = "collections OrderedDict"
_DAMAGE: Final = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error, DeprecationWarning,
)  # fmt: skip


class _Name(NamedTuple):
    """Name of a class or function in the file."""

    name: str


class _Storage(NamedTuple):
    """Numbers that tensors share: their kind and their key."""

    dtype: Any
    key: str


class _Tensor(NamedTuple):
    """Part of a storage: start, shape and strides in numbers."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file of weights by name, float32 or int64 in their own shapes.

    Raises BundleError when the file cannot be read, is damaged, or holds anything but weights.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        # In memory, where a length that the file claims takes no more room than the file has.
        with warnings.catch_warnings():
            # Odd escapes in a text are a warning of the standard library, and no file of weights has them.
            warnings.simplefilter("error", DeprecationWarning)
            return _read(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {os_reason(error)}") from error
    except _DAMAGE as error:
        raise BundleError(f"{path.name} is not a PyTorch file of weights of the first format: {error}") from error


def _read(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    magic, _, _ = _follow(file), _follow(file), _follow(file)
    if magic != _MAGIC:
        raise ValueError("it does not begin as one")
    tensors, keys = _follow(file), _follow(file)
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    numbers = {key: _read_numbers(file, dtypes[key]) for key in map(_text, keys)}
    if sum(math.prod(tensor.shape) for tensor in tensors.values()) > sum(map(len, numbers.values())):
        raise ValueError("tensors share numbers")
    return {name: _cut(tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_numbers(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    data = file.read(count * dtype.itemsize) if count >= 0 else b""
    if len(data) != count * dtype.itemsize:
        raise ValueError("it ends before its numbers do")
    return np.frombuffer(data, dtype)


def _cut(tensor: _Tensor, numbers: NDArray[Any]) -> NDArray[Any]:
    """Cut a tensor out of its storage. Raises ValueError when it is not wholly inside or shares numbers with itself."""
    size, step = math.prod(tensor.shape), 1
    for stride, side in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if side > 1 and stride != step:
            raise ValueError("a tensor's strides are not those of its shape")
        step *= side
    if min((tensor.start, *tensor.shape)) < 0 or tensor.start + size > len(numbers):
        raise ValueError("a tensor lies outside its storage")
    part = numbers[tensor.start : tensor.start + size]
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(part, tensor.shape, strides).copy()


def _text(value: Any) -> str:
    """Check that a key is a text. A tuple of tuples may take for ever to hash or to print."""
    if not isinstance(value, str):
        raise ValueError("a key is not a text")
    return value


class _Machine:
    """Stack of plain values on which one pickle's instructions are followed."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        """Push a value."""
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        """Begin a group."""
        self._marks.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """End the group and return its values."""
        values, self.stack = self.stack, self._marks.pop()
        return values

    def remember(self, index: Any) -> None:
        """Keep the value on top."""
        self._memo[index] = self.stack[-1]

    def recall(self, index: Any) -> None:
        """Push a value that was kept."""
        self.push(self._memo[index])

    def join(self, count: int) -> None:
        """Make a tuple of the values on top."""
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, _: Any) -> None:
        """End the group and add its values to the list on top."""
        values = self.group()
        self.stack[-1].extend(values)

    def put(self, pairs: list[Any]) -> None:
        """Put keys and values in turn into the table on top."""
        self.stack[-1].update(zip(map(_text, pairs[::2]), pairs[1::2], strict=True))

    def reduce(self, _: Any) -> None:
        """Make what a call of an allowed name would: a table or a tensor."""
        given, called = self.stack.pop(), self.stack.pop()
        if called == _Name(_TABLE) and given == ():
            return self.push({})
        if called != _Name(_TENSOR):
            named = called.name if isinstance(called, _Name) else type(called).__name__
            raise ValueError(f"it asks for {named:.60}, which no file of weights needs")
        storage, start, shape, strides, *_ = given
        return self.push(_Tensor(storage, int(start), tuple(map(int, shape)), tuple(map(int, strides))))

    def look_up(self, _: Any) -> None:
        """Push the storage that a persistent name stands for."""
        _, kind, key, *_ = self.stack.pop()
        self.push(_Storage(_DTYPES[kind.name], _text(key)))


_INSTRUCTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": lambda machine, _: None,
    "MARK": _Machine.mark,
    "GLOBAL": lambda machine, name: machine.push(_Name(name)),
    "REDUCE": _Machine.reduce,
    "BINPERSID": _Machine.look_up,
    # The only state in such a file is a table's list of versions, which nothing here needs.
    "BUILD": lambda machine, _: machine.stack.pop() and None,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.group())),
    "APPEND": lambda machine, _: machine.stack[-2].append(machine.stack.pop()),
    "APPENDS": _Machine.extend,
    "SETITEM": lambda machine, _: machine.put([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.put(machine.group()),
}


def _follow(file: IO[bytes]) -> Any:
    """Follow the instructions of one pickle. Returns the value that it leaves; raises ValueError for any other."""
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name == "STOP":
            break
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"it has the instruction {instruction.name}, which no file of weights needs")
        _INSTRUCTIONS[instruction.name](machine, argument)
    return machine.stack.pop()

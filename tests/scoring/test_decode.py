"""Decoding ahead: what hangs on one share holds up no other, and is tried again when the share answers."""

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from doubles import OneNetwork
from factories import utc
from numpy.typing import NDArray
from test_score import photograph
from waiting import wait_until

from marcod.scoring import decode
from marcod.scoring.decode import NO_MEMORY, Decoders, Prepared
from marcod.store.queue import Claim, Failure

HANGING = b"share that does not answer"


class Waiting(OneNetwork):
    """A model that waits for an image's bytes as a read from a hanging share does."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.waiting = 0

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        if data == HANGING:
            self.waiting += 1
            self.answers.wait()
            self.waiting -= 1
        return np.zeros((8, 8, 3), np.float32)


@pytest.fixture
def model() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.answers.set()


def claims(source: str, count: int) -> list[Claim]:
    return [Claim(n, n, 1, source, "/nowhere", f"{n}.jpg", 1, utc()) for n in range(count)]


def test_a_share_that_hangs_holds_up_no_other(tmp_path: Path, model: Waiting) -> None:
    roots = {name: tmp_path / name for name in ("away", "there")}
    for name, data in (("away", HANGING), ("there", photograph(1))):
        roots[name].mkdir()
        for n in range(6):
            (roots[name] / f"{n}.jpg").write_bytes(data)
    decoders = Decoders(2, roots)
    both = [*claims("away", 4), *claims("there", 2)]
    begun = decoders.begin(model, both)  # type: ignore[arg-type]
    wait_until(lambda: model.waiting == 2, "both threads to hang")
    ahead = decoders.begin(model, claims("there", 1))  # type: ignore[arg-type]
    first = decoders.collect(both, begun, 0.1)
    assert all(isinstance(one, Failure) and one.retryable and not one.counts for one in first)
    # What was begun behind them is tried again, too.
    (late,) = decoders.collect(claims("there", 1), ahead, 0.1)
    assert isinstance(late, Failure)
    assert not late.counts
    again = decoders.collect(both, decoders.begin(model, both), 30)  # type: ignore[arg-type]
    assert [isinstance(one, Prepared) for one in again] == [False] * 4 + [True] * 2
    assert isinstance(again[0], Failure)
    assert again[0].error == "source away does not answer"
    # However long it lasts, no further thread is lost to it.
    assert model.waiting == 2
    model.answers.set()
    wait_until(lambda: model.waiting == 0, "the share to answer")

    def answered() -> bool:
        found = decoders.collect(claims("away", 1), decoders.begin(model, claims("away", 1)), 30)  # type: ignore[arg-type]
        return isinstance(found[0], Prepared)

    wait_until(answered, "its images to be read")
    decoders.close()


class Slow(OneNetwork):
    """A model that takes each image when it is told, and says so."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        self.turn.acquire()
        return np.zeros((8, 8, 3), np.float32)


def test_a_slow_disk_loses_no_image(tmp_path: Path) -> None:
    """The limit is of one image without another, not of the batch."""
    for n in range(5):
        (tmp_path / f"{n}.jpg").write_bytes(photograph(1))
    model, came = Slow(), []
    decoders = Decoders(1, {"slow": tmp_path})
    batch = claims("slow", 5)
    begun = decoders.begin(model, batch)  # type: ignore[arg-type]

    def progress() -> None:
        came.append(time.monotonic())
        threading.Timer(0.15, model.turn.release).start()

    model.turn.release()
    found = decoders.collect(batch, begun, 0.6, progress)
    assert all(isinstance(one, Prepared) for one in found)
    assert came[-1] - came[0] > 0.5
    decoders.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), NO_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), NO_MEMORY),
        (OSError("out of memory when reading image file"), NO_MEMORY),
        (OSError(errno.EMFILE, "Too many open files"), "cannot be read: Too many open files"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be read: No space left on device"),
    ],
)
def test_the_trouble_of_this_host_is_not_the_image_s(tmp_path: Path, error: Exception, text: str) -> None:
    class Poor(OneNetwork):
        def prepare(self, data: bytes) -> NDArray[np.float32]:
            raise error

    (tmp_path / "0.jpg").write_bytes(photograph(1))
    found = decode.prepare(Poor(), claims("s", 1)[0], tmp_path)  # type: ignore[arg-type]
    assert isinstance(found, Failure)
    assert (found.error, found.counts, found.retryable) == (text, False, True)


def test_a_decoder_that_fails_in_an_unforeseen_way_costs_its_own_image_alone(tmp_path: Path) -> None:
    class Odd(OneNetwork):
        def prepare(self, data: bytes) -> NDArray[np.float32]:
            raise KeyError("frame")

    (tmp_path / "0.jpg").write_bytes(photograph(1))
    found = decode.prepare(Odd(), claims("s", 1)[0], tmp_path)  # type: ignore[arg-type]
    assert isinstance(found, Failure)
    assert (found.counts, found.retryable) == (True, True)
    assert found.error == "the decoder failed: KeyError: 'frame'"

"""Bounded waiting for what may never answer: a share whose file server is gone, a host that swallows packets."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Final, TypeVar

T = TypeVar("T")

ANSWER_S: Final = 5.0
"""Longest time to the first answer of a folder or a share, in seconds."""

SERVER: Final = "check the file server, the network and the mount"


class SilentError(Exception):
    """It did not answer in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"does not answer within {limit_s:g} s")


def within(limit_s: float, look: Callable[[], T]) -> T:
    """Return or raise what ``look`` does. Raises SilentError when it is not done after ``limit_s`` seconds.

    Nothing interrupts a call that waits for a file server, so its thread is left behind; it ends with the process.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(look())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            answer.set_exception(error)

    thread = Thread(target=ask, name="within", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not answer.done():
        raise SilentError(limit_s)
    return answer.result()

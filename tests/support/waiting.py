"""Waiting for something that other threads or processes bring about."""

import time
from collections.abc import Callable
from threading import Event

import pytest

DEADLINE_S = 150.0


def wait_until(condition: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds; fail with ``what`` when it never does."""
    deadline, pause = time.monotonic() + deadline_s, Event()
    pause_s = 0.01
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {deadline_s:.0f} s in vain for {what}")
        pause.wait(pause_s)
        # What another process does is asked of the database, which is not to be kept busy by it.
        pause_s = min(1.2 * pause_s, 0.1)

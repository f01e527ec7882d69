"""A source that hangs holds up its own images alone."""

import asyncio
import threading
import time

import pytest

from marcod.deadline import SilentError
from marcod.web.lanes import THREADS, Lane


def test_one_that_hangs_is_given_up_and_the_others_go_on() -> None:
    hangs, started = threading.Event(), threading.Semaphore(0)

    def hang() -> str:
        started.release()
        hangs.wait()
        return "late"

    async def story() -> None:
        dead, well = Lane("dead", limit_s=0.2, stuck_s=0.05), Lane("well", limit_s=5.0, stuck_s=5.0)
        asked = [asyncio.create_task(dead.run(hang)) for _ in range(2 * THREADS)]
        for _ in range(THREADS):
            await asyncio.to_thread(started.acquire)
        assert await well.run(lambda: "image") == "image"
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, SilentError) for error in done)
        before = time.monotonic()
        with pytest.raises(SilentError):
            await dead.run(lambda: "image")
        assert time.monotonic() - before < 0.1, "refused at once"
        hangs.set()
        while True:
            try:
                assert await dead.run(lambda: "image") == "image"
                break
            except SilentError:
                await asyncio.sleep(0.01)

    asyncio.run(story())
    assert sum(thread.name == "images dead" for thread in threading.enumerate()) == THREADS


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise FileNotFoundError("x")

    async def story() -> None:
        lane = Lane("one")
        with pytest.raises(FileNotFoundError):
            await lane.run(fail)
        assert await asyncio.gather(*(lane.run(lambda n=n: n) for n in range(50))) == list(range(50))

    asyncio.run(story())

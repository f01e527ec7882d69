"""Sizes of batches: set or measured, never above the most, smaller while memory is short."""

import threading
from collections.abc import Callable

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_score import Lab, lab, photograph  # noqa: F401 - the fixture

from marcod.scoring.batch_size import BY_PARTS, CALM_BATCHES, FIRST, TIMED, BatchSize
from marcod.settings import MOST_IMAGES, ScoreSettings

STEPS = st.tuples(st.integers(1, 80), st.none() | st.floats(0, 10), st.booleans())


def settle(size: BatchSize, seconds: Callable[[int], float]) -> list[int]:
    """Let batches of the size that is asked for follow each other; return the sizes there were."""
    sizes = []
    for _ in range(20 * TIMED):
        sizes.append(size.images)
        size.note(size.images, seconds(size.images), short=False)
    return list(dict.fromkeys(sizes))


@pytest.mark.parametrize(
    ("seconds", "sizes", "found"),
    [
        (lambda images: images / 25, [FIRST, 2 * FIRST, 4 * FIRST], FIRST),  # a processor: no faster with more
        (lambda images: 0.2, [4, 8, 16, 32, 64], 64),  # a device that always takes the same time
        (lambda images: 0.1 + max(0, images - 16) / 50, [4, 8, 16, 32, 64], 16),  # one with a limit
        (lambda images: images / (20 if images < 16 else 26), [4, 8, 16, 32, 64], 16),  # one that needs many at once
    ],
)
def test_batches_double_for_as_long_as_that_is_faster(
    seconds: Callable[[int], float], sizes: list[int], found: int
) -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    assert settle(size, seconds) == sizes
    assert size.images == found


def test_only_full_batches_that_follow_each_other_are_timed() -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    for _ in range(10 * TIMED):
        size.note(FIRST, None, short=False)
        size.note(FIRST - 1, 1.0, short=False)
    assert size.images == FIRST


def test_a_slow_first_batch_does_not_decide() -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    compiles = {4: True, 8: True, 16: True, 32: True, 64: True}

    def seconds(images: int) -> float:
        first, compiles[images] = compiles[images], False
        return 30.0 if first else 0.2

    settle(size, seconds)
    assert size.images == MOST_IMAGES


def test_no_more_are_tried_than_the_limit() -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    size.limit(BY_PARTS)
    assert settle(size, lambda images: 0.2) == [4, 8, 16]
    assert size.images == BY_PARTS


def test_a_limit_holds_whenever_it_comes_and_may_be_lifted() -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    settle(size, lambda images: 0.2)
    assert size.images == MOST_IMAGES
    size.limit(BY_PARTS)
    assert size.images == BY_PARTS
    size.limit(None)
    for _ in range(2 * CALM_BATCHES):
        size.note(size.images, 0.2, short=False)
    assert size.images == MOST_IMAGES


def test_a_size_that_is_set_has_no_other_limit() -> None:
    size = BatchSize(48)
    size.limit(BY_PARTS)
    assert size.images == 48


def test_a_shortage_ends_the_search_and_halves() -> None:
    size = BatchSize(MOST_IMAGES, measured=True)
    settle(size, lambda images: 0.2)
    size.note(64, 0.2, short=True)
    assert size.images == 32
    for _ in range(CALM_BATCHES):
        size.note(32, 0.2, short=False)
    assert size.images == 64


@given(st.integers(1, 64), st.booleans(), st.lists(STEPS, max_size=200))
def test_a_batch_has_at_least_one_image_and_at_most_what_is_allowed(
    most: int, measured: bool, steps: list[tuple[int, float | None, bool]]
) -> None:
    size = BatchSize(most, measured=measured)
    for images, seconds, short in steps:
        size.note(images, seconds, short=short)
        assert 1 <= size.images <= most


def test_a_scorer_finds_its_batches_and_scores_everything_once(lab: Lab) -> None:  # noqa: F811
    for number in range(40):
        lab.deliver(f"{number}.jpg", photograph(number))
    settings = ScoreSettings(lease_s=60, idle_s=0.01)
    assert settings.batch_size == settings.decode_threads == "auto"
    lab.scorer(settings=settings).drain(threading.Event())
    assert len(lab.scores()) == 40
    assert lab.reports[0].scored == FIRST
    assert max(report.scored for report in lab.reports) <= BY_PARTS
    assert factories.claim(lab.db, lab.db.now()) is None

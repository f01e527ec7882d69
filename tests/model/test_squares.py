"""Squares of whole images: where they lie, and the one score that theirs make."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod.model import squares
from marcod.model.preprocess import centre_square
from marcod.model.probabilities import softmax

SIDES = st.integers(1, 700)
FOUR = np.arange(4) == 1


def seen(height: int, width: int) -> np.ndarray:
    """How many squares look at each pixel."""
    found = np.zeros((height, width), int)
    for top, left, side in squares.places(height, width, squares.needed(height, width)):
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
        assert side == min(height, width)
        found[top : top + side, left : left + side] += 1
    return found


@given(SIDES, SIDES)
def test_squares_cover_every_pixel_and_overlap(height: int, width: int) -> None:
    count = seen(height, width)
    shorter, longer = sorted((height, width))
    if longer <= squares.MOST * shorter:
        assert count.min() > 0
    places = squares.places(height, width, squares.needed(height, width))
    if longer > shorter and longer <= 3.4 * shorter:
        for one, other in pairwise(places):
            apart = max(other.top - one.top, other.left - one.left)
            assert 0 < apart <= 0.8 * shorter + 1


@given(SIDES, SIDES)
def test_they_are_evenly_spaced_from_end_to_end_and_turn_with_the_image(height: int, width: int) -> None:
    places = squares.places(height, width, squares.needed(height, width))
    turned = squares.places(width, height, squares.needed(width, height))
    assert [(p.left, p.top, p.side) for p in turned] == [tuple(p) for p in places]
    gaps = [max(b.top - a.top, b.left - a.left) for a, b in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert (places[0].top, places[0].left) == (0, 0)
    assert (places[-1].top + places[-1].side, places[-1].left + places[-1].side) == (height, width)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(100, 100, 1), (1, 1, 1), (100, 101, 2), (1920, 2560, 2), (1024, 1224, 2), (100, 180, 2), (100, 181, 3),
     (260, 100, 3), (261, 100, 4), (100, 340, 4), (10, 5000, 4), (1, 2, 2), (3, 1, 3)],
)  # fmt: skip
def test_as_many_as_the_image_needs(height: int, width: int, count: int) -> None:
    assert squares.needed(height, width) == squares.needed(width, height) == count


def test_a_single_one_is_the_central_one() -> None:
    rgb = np.arange(7 * 10 * 3, dtype=np.uint8).reshape(7, 10, 3)
    (place,) = squares.places(7, 10, 1)
    assert np.array_equal(place.of(rgb), rgb[:, 1:8])
    assert np.array_equal(centre_square(rgb), rgb[:, 1:8])


LOGITS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=n, max_size=n)
)


@given(LOGITS)
def test_crystals_keep_their_highest_probability_and_the_others_their_mean(rows: list[list[float]]) -> None:
    given_ = np.array(rows, np.float32)
    own = softmax(given_).astype(np.float64)
    found = softmax(squares.combined(given_, FOUR)[np.newaxis])[0]
    assert found.sum() == pytest.approx(1, abs=1e-6)
    assert found[1] == pytest.approx(own[:, 1].max(), abs=1e-5)
    mean = own[:, ~FOUR].mean(axis=0)
    if mean.sum() > 1e-3 and 1 - found[1] > 1e-3:
        assert found[~FOUR] == pytest.approx(mean / mean.sum() * (1 - found[1]), abs=1e-4)
    assert given_[squares.best(given_, FOUR), 1] - np.logaddexp.reduce(
        given_[squares.best(given_, FOUR), ~FOUR].astype(np.float64)
    ) == pytest.approx(max(row[1] - np.logaddexp.reduce(np.array(row)[~FOUR]) for row in rows), abs=1e-4)


def test_a_single_square_keeps_every_bit() -> None:
    given_ = np.array([[0.1, -3.3, 7.7, 1e-7]], np.float32)
    assert np.array_equal(squares.combined(given_, FOUR), given_[0])


def test_classes_that_count_as_crystals_come_from_one_square() -> None:
    """Each of its own has there what it has, so their sum is the highest sum and not a sum of the highest."""
    crystals = np.array([True, True, False])
    probabilities = np.array([[0.5, 0.1, 0.4], [0.1, 0.45, 0.45]])
    found = np.exp(squares.combined(np.log(probabilities).astype(np.float32), crystals))
    assert found == pytest.approx([0.5, 0.1, 0.4], abs=1e-6)


def test_no_number_for_one_square_is_none_for_the_image() -> None:
    given_ = np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]], np.float32)
    assert np.isnan(squares.combined(given_, FOUR)).any()

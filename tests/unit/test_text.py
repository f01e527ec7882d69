"""Texts that people write: numbers and their ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod import text

MOST = 1000
PARTS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 20)), min_size=1, max_size=8)


@given(parts=PARTS, spaces=st.booleans())
def test_ranges_are_read_as_they_are_written(parts: list[tuple[int, int]], spaces: bool) -> None:
    """Ends included and in order; twice the same number is refused."""
    numbers = [first + i for first, more in parts for i in range(more + 1)]
    written = (", " if spaces else ",").join(
        f"{first}..{first + more}" if more else f"{first}" for first, more in parts
    )
    if len(set(numbers)) == len(numbers):
        assert text.numbers_of(written, MOST) == tuple(numbers)
    else:
        with pytest.raises(ValueError, match="twice"):
            text.numbers_of(written, MOST)


@given(st.text(alphabet="0123456789.,- ٣²a", max_size=12))
def test_whatever_is_written_gives_numbers_or_a_sentence(written: str) -> None:
    try:
        found = text.numbers_of(written, MOST)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
        assert found
        assert min(found) >= 0
        assert text.numbers_of(",".join(map(str, found)), MOST) == found
    assert "invalid literal" not in refused


@pytest.mark.parametrize(
    ("written", "reason"),
    [("8..1", "begins after its end"), ("1..2..3", "neither"), ("", "neither"), ("-1", "neither"), ("1..", "neither"),
     ("1..1001", "more than 1000"), ("1..3,2", "twice")],
)  # fmt: skip
def test_other_texts_are_refused_with_a_reason(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        text.numbers_of(written, MOST)

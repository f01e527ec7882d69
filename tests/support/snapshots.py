"""What must hold of data sets that are taken one after another while labels grow."""

from collections import defaultdict
from collections.abc import Sequence

from marcod.domain import Split, split_of
from marcod.training.snapshot import Item

Items = Sequence[Item]


def check_growth(taken: Sequence[Items]) -> None:
    """No plate, drop or content ever stands on two sides, within one set or between any two of them."""
    sides: dict[tuple[str, ...], set[Split]] = defaultdict(set)
    for items in taken:
        for item in items:
            assert item.side is split_of(item.source, item.plate_key)
            sides["plate", item.source, item.plate_key].add(item.side)
            sides["drop", str(item.drop_id)].add(item.side)
            sides["content", item.content_hash].add(item.side)
    assert {what: on for what, on in sides.items() if len(on) > 1} == {}


def check_weights(items: Items) -> None:
    """No drop counts more than 1 for a label, and no content more than 1 in all."""
    of_drop: dict[tuple[int, str], float] = defaultdict(float)
    of_content: dict[str, float] = defaultdict(float)
    for item in items:
        assert 0 < item.weight <= 1
        assert abs(sum(item.shares) - 1) < 1e-9
        of_drop[item.drop_id, item.label] += item.weight
        of_content[item.content_hash] += item.weight
    assert max([0.0, *of_drop.values(), *of_content.values()]) < 1 + 1e-9

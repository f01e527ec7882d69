"""Programs of labs read these keys: one that went away or has another name breaks them. See ``json_keys``."""

from collections.abc import Mapping

import json_keys
import json_labs
import pytest
from json_keys import Keys

pytestmark = pytest.mark.slow

AGAIN = "where this is meant, `make keys` writes json_keys.txt again"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Keys]:
    """What can be asked without TensorFlow."""
    return json_keys.answers(tmp_path_factory.mktemp("quick"), json_labs.QUICK)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Keys]:
    """What only a lab says that trains."""
    return json_keys.answers(tmp_path_factory.mktemp("slow"), json_labs.SLOW)


def differences(found: Mapping[str, Keys]) -> list[str]:
    """Every key that is promised and not there, or there and not written down."""
    promised = json_keys.golden()
    return [
        f"{title}: {path} is {'missing' if path in promised.get(title, ()) else 'new'}"
        for title, keys in sorted(found.items())
        for path in sorted(keys.paths() ^ promised.get(title, set()))
    ]


def unseen(found: Mapping[str, Keys]) -> dict[str, set[str]]:
    return {title: left for title, keys in found.items() if (left := keys.unseen())}


def declared(found: Mapping[str, Keys]) -> dict[str, set[str]]:
    return {title: set(paths) for title, paths in json_keys.UNSEEN.items() if title in found}


@pytest.mark.slow
def test_every_command_with_json_is_pinned(quick: dict[str, Keys]) -> None:
    pinned = {title for title in json_keys.golden() if title.startswith("marcod ")}
    assert pinned == json_keys.with_json()
    assert pinned - quick.keys() == json_labs.ASKED_SLOWLY, "the others need no TensorFlow"


@pytest.mark.slow
def test_the_keys_are_those_that_programs_know(quick: dict[str, Keys]) -> None:
    assert (found := differences(quick)) == [], "\n".join([AGAIN, *found])


@pytest.mark.slow
def test_no_list_was_empty(quick: dict[str, Keys]) -> None:
    """Keys within an empty list or a missing object would not be seen."""
    assert unseen(quick) == declared(quick)


@pytest.mark.story
@pytest.mark.timeout(900)
def test_the_keys_of_what_is_trained_are_those_that_programs_know(
    quick: dict[str, Keys], slow: dict[str, Keys]
) -> None:
    assert (found := differences(slow)) == [], "\n".join([AGAIN, *found])
    assert quick.keys() | slow.keys() == json_keys.golden().keys()
    assert unseen(slow) == declared(slow)


def test_a_renamed_key_and_one_in_an_empty_list_are_noticed() -> None:
    keys = Keys(names=("sources",), elsewhere=("numbers",))
    keys.add({"sources": {"minstrel": {"root": 1}}, "hits": [{"well": None}, {"well": "A1"}], "numbers": {"a": 1}})
    keys.add({"sources": {}, "hits": [], "plates": [], "label": None})
    assert keys.seen == {"sources.*.root", "hits[].well", "numbers"}
    assert keys.unseen() == {"plates", "label"}

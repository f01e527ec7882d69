"""No plate and no image stands on two sides, at any growth of the labels; and a manifest comes back as it was."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from factories import utc
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import Items, check_growth, check_weights

from marcod.domain import CLASSES, DropClass, Split, split_of
from marcod.errors import MarcodError
from marcod.store.votes import LabelledImage
from marcod.training.snapshot import Assigned, Item, Snapshot, assign, read, write
from marcod.training.snapshot_rows import Gathered, Past

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES
SOURCES = ("cellar", "attic")
PLATES = tuple(f"P{number}" for number in range(5))
PERSONS = ("ada", "bob", "cyd")


def plate_on(side: Split, nth: int = 0, source: str = "cellar") -> str:
    """The nth plate of a source that stands on a side."""
    return [key for key in (f"Q{i}" for i in range(200)) if split_of(source, key) is side][nth]


@dataclass
class Image:
    """A file in one place through time: its bytes now, and those that were scored there with the first time."""

    id: int
    source: str
    plate_key: str
    drop_id: int
    bytes_now: str
    scored: dict[str, datetime] = field(default_factory=dict)
    stored: str | None = None
    words: list[tuple[str, DropClass | None, datetime, datetime]] = field(default_factory=list)

    def says(self) -> tuple[dict[str, DropClass], datetime] | None:
        """What every person says now, and when the verdict was last given."""
        last = {person: (word, at) for person, word, at, _ in sorted(self.words, key=lambda w: w[2])}
        persons = {person: word for person, (word, _) in last.items() if word is not None}
        if not persons:
            return None
        verdict = Counter(persons.values()).most_common(1)[0][0]
        return persons, max(at for word, at in last.values() if word is verdict)


class Lab:
    """Images and words that only grow, as the database keeps them."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.drops: dict[tuple[str, str, int], int] = {}
        self.clock = 0

    def now(self) -> datetime:
        self.clock += 1
        return utc(self.clock)

    def add(self, source: str, plate_key: str, drop: int, content: str, *, scored: bool = True) -> Image:
        drop_id = self.drops.setdefault((source, plate_key, drop), len(self.drops) + 1)
        image = Image(len(self.images) + 1, source, plate_key, drop_id, content)
        self.images.append(image)
        if scored:
            self.score(image)
        return image

    def score(self, image: Image) -> None:
        image.scored.setdefault(image.bytes_now, self.now())
        image.stored = image.bytes_now

    def say(self, image: Image, word: DropClass | None, person: str = "ada", age_s: int = 0) -> None:
        recorded = self.now()
        image.words.append((person, word, utc(max(self.clock - age_s, 0)), recorded))

    def assigned(self, order: int = 1, sources: tuple[str, ...] = SOURCES) -> Assigned:
        """The present data set, the images in either order."""
        past = {
            p.id: Past(p.source, p.plate_key, dict(p.scored), tuple((at, rec) for _, word, at, rec in p.words if word))
            for p in self.images
            if any(word for _, word, _, _ in p.words)
        }
        images = [self._labelled(p, *said) for p in self.images[::order] if (said := p.says()) is not None]
        chosen = [p for p in images if p.source in sources]
        read = {p.image_id for p in images}
        contents = {p.id: p.bytes_now for p in self.images if p.id in read and (p.source in sources or not p.scored)}
        found = assign(chosen, contents, Gathered(None, tuple(images), past, {}))
        assert len(chosen) == len(found.items) + len(found.changed) + len(found.elsewhere)
        return found

    def _labelled(self, image: Image, persons: dict[str, DropClass], at: datetime) -> LabelledImage:
        votes = dict(Counter(persons.values()))
        return LabelledImage(
            image_id=image.id,
            source=image.source,
            layout="rigaku",
            root=f"/plates/{image.source}",
            path=f"{image.plate_key}/{image.id}.jpg",
            plate_key=image.plate_key,
            inspection_id=image.id,
            inspection_ordinal=None,
            drop_id=image.drop_id,
            well="A01",
            drop_number=1,
            content_hash=image.stored,
            label=Counter(persons.values()).most_common(1)[0][0],
            votes=votes,
            persons=persons,
            labelled_at=at,
            own=True,
            probabilities=None,
            vector=None,
        )


_events = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from(SOURCES),
        st.sampled_from(PLATES),
        st.integers(1, 2),
        st.sampled_from("UVWXYZ"),
        st.booleans(),
    ),
    st.tuples(st.just("score"), st.integers(0, 30)),
    st.tuples(st.just("rewrite"), st.integers(0, 30), st.sampled_from("UVWXYZ")),
    st.tuples(
        st.just("say"),
        st.integers(0, 30),
        st.sampled_from([*CLASSES, None]),
        st.sampled_from(PERSONS),
        st.sampled_from([0, 0, 3, 1000]),
    ),
    st.tuples(st.just("take"), st.sampled_from([1, -1]), st.sampled_from([SOURCES, SOURCES[:1], SOURCES[1:]])),
)


def happens(lab: Lab, event: tuple[object, ...]) -> Items | None:
    """Let one thing happen; the data set where one is taken.

    What was never scored is neither rewritten nor taken back: it leaves no trace of what it was, as the docs say.
    """
    kind, *what = event
    if kind == "take":
        return lab.assigned(*what).items  # type: ignore[arg-type]
    if kind == "add":
        *place, scored = what
        lab.add(*place, scored=bool(scored))  # type: ignore[arg-type]
    elif lab.images:
        index, *more = what
        image = lab.images[int(index) % len(lab.images)]  # type: ignore[call-overload]
        if kind == "score":
            lab.score(image)
        elif kind == "say" and (image.scored or more[0]):
            lab.say(image, *more)  # type: ignore[arg-type]
        elif kind == "rewrite" and image.scored:
            image.bytes_now = str(more[0])
    return None


@settings(max_examples=150, deadline=None)
@given(st.lists(_events, min_size=10, max_size=60))
@pytest.mark.slow
def test_no_plate_and_no_content_ever_changes_its_side(events: list[tuple[object, ...]]) -> None:
    lab = Lab()
    taken = [items for event in events if (items := happens(lab, event)) is not None]
    taken.append(lab.assigned().items)
    check_growth(taken)
    for items in taken:
        check_weights(items)
    assert lab.assigned(-1).items == taken[-1]


def test_one_file_on_two_sides_stays_where_it_was_labelled_first() -> None:
    lab = Lab()
    for first, second in ((Split.TRAIN, Split.TEST), (Split.TEST, Split.TRAIN)):
        content = f"labelled on {first} first"
        home = lab.add("cellar", plate_on(first), 1, content)
        copy = lab.add("cellar", plate_on(second), 1, content)
        lab.say(home, CLEAR)
        lab.say(copy, CLEAR)
        found = lab.assigned()
        assert {i.side for i in found.items if i.content_hash == content} == {first}
        assert (copy.id, f"is the same file as one on a {first} plate, and stays on that side") in [
            (p.image_id, text) for p, text in found.elsewhere
        ]
        lab.say(home, None)
        assert content not in {i.content_hash for i in lab.assigned().items}


def test_a_word_on_what_was_there_before_claims_nothing_for_what_came_after() -> None:
    lab = Lab()
    copy = lab.add("cellar", plate_on(Split.TEST), 1, "before")
    lab.say(copy, CLEAR)
    copy.bytes_now = "X"
    lab.score(copy)
    home = lab.add("cellar", plate_on(Split.TRAIN), 1, "X")
    lab.say(home, CLEAR)
    earlier = lab.assigned().items
    lab.say(copy, CLEAR)
    later = lab.assigned().items
    check_growth([earlier, later])
    assert [item.image_id for item in later] == [home.id]


def test_of_copies_labelled_at_once_the_test_sides_stays() -> None:
    lab = Lab()
    images = [lab.add("cellar", plate_on(side), 1, "X") for side in (Split.TRAIN, Split.TEST, Split.VALIDATION)]
    at = lab.now()
    for image in images:
        image.words.append(("ada", CLEAR, at, at))
    assert [item.side for item in lab.assigned().items] == [Split.TEST]


def test_a_drop_seen_often_counts_once_and_so_does_a_file_that_lies_twice() -> None:
    lab = Lab()
    train = plate_on(Split.TRAIN)
    for content in ("a", "b", "c"):
        lab.say(lab.add("cellar", train, 1, content), CLEAR)
    lab.say(lab.add("cellar", train, 1, "d"), CRYSTALS)
    for drop in (2, 3):
        lab.say(lab.add("cellar", train, drop, "copied"), CLEAR)
    weights = {(i.drop_id, i.content_hash): i.weight for i in lab.assigned().items}
    assert weights == {
        (1, "a"): pytest.approx(1 / 3),
        (1, "b"): pytest.approx(1 / 3),
        (1, "c"): pytest.approx(1 / 3),
        (1, "d"): 1.0,
        (2, "copied"): 0.5,
        (3, "copied"): 0.5,
    }


def test_what_was_rewritten_needs_a_new_word() -> None:
    lab = Lab()
    image = lab.add("cellar", plate_on(Split.TRAIN), 1, "before")
    lab.say(image, CLEAR)
    image.bytes_now = "after"
    assert "not the file that was scored last" in lab.assigned().changed[0][1]
    lab.score(image)
    assert "rewritten after it was labelled" in lab.assigned().changed[0][1]
    lab.say(image, CRYSTALS)
    assert [(i.content_hash, i.label) for i in lab.assigned().items] == [("after", CRYSTALS)]


def test_shares_are_of_the_persons() -> None:
    lab = Lab()
    image = lab.add("cellar", plate_on(Split.TRAIN), 1, "X")
    for person, word in zip(PERSONS, (CRYSTALS, CRYSTALS, PRECIPITATE), strict=True):
        lab.say(image, word, person)
    [item] = lab.assigned().items
    assert item.shares == pytest.approx((0, 2 / 3, 0, 1 / 3))
    assert item.persons == {"ada": CRYSTALS, "bob": CRYSTALS, "cyd": PRECIPITATE}


def snapshot() -> Snapshot:
    """One with an image whose path is no text, and some left out."""
    item = Item(
        1, 2, 3, "cellar", "rigaku", "P\udcff1", "A01", 1, "P\udcff1/ä.jpg", "/plates", "ab", CRYSTALS,
        (0.0, 2 / 3, 0.0, 1 / 3), {"ada": CRYSTALS, "Bo\u0308": PRECIPITATE}, Split.TEST, 1 / 3, "audit", 0.25,
    )  # fmt: skip
    return Snapshot(utc(), 7, "visible", (item,), ("a is gone",), (), ("b",), "", "gate", ("all away",))


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    file, given = tmp_path / "manifest.jsonl", snapshot()
    write(given, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    again = read(file, digest)
    assert (again.items, again.missing, again.excluded, again.away) == (
        given.items,
        given.missing,
        given.excluded,
        given.away,
    )
    assert (again.taken_at, again.last_label_id, again.gate_digest, again.digest) == (utc(), 7, "gate", digest)
    write(again, file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_manifest_that_is_not_the_one_taken_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "manifest.jsonl"
    with pytest.raises(MarcodError, match="cannot be read: No such file"):
        read(file, "0" * 64)
    write(snapshot(), file)
    with pytest.raises(MarcodError, match="not the one that was taken"):
        read(file, "0" * 64)
    other = b'{"format":"marcod dataset 9"}\n'
    file.write_bytes(other)
    with pytest.raises(MarcodError, match="reads 'marcod dataset 1' only"):
        read(file, hashlib.sha256(other).hexdigest())
    with pytest.raises(MarcodError, match="cannot be written"):
        write(snapshot(), tmp_path / "not there" / "manifest.jsonl")

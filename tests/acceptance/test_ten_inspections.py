"""Plates imaged ten times, as every vendor writes them: the first hit of every drop, whatever comes when.

The plates are synthetic and the predictor is perfect: it reads what the renderer knows. What happens on the way is
not: images come late, twice, in any order, before the report they need, and once with other content than later.
"""

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import factories
import pytest
import sqlalchemy as sa
from factories import utc

from marcod import layouts
from marcod.catalog import registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.domain import CLASSES, PLATE_FORMATS, DropClass, DropImage, ImageKind, Modality, NotADrop, why_not_scored
from marcod.layouts import Layout, LayoutOptions
from marcod.settings import Settings
from marcod.store import queue, summaries
from marcod.store.versions import Version
from marcod.synthetic import ImagerStyle, PlannedFile, PlateSpec, drop_history, first_hit, plate_files, scene_label
from marcod.watch.ingest import open_sources
from marcod.watch.scan import scan_once

pytestmark = pytest.mark.story

# Half a minute to midnight, over the turn of the year: the date in a name is not always the inspection's.
FIRST = datetime(2025, 12, 1, 23, 59, 30, tzinfo=UTC)
TIMES = tuple(FIRST + timedelta(days=d) for d in (0, 1, 2, 4, 7, 11, 18, 28, 45, 70))
# Rock Maker's batches are numbered over all plates and change their number of digits.
FIRST_BATCH: Final = 996

Place = tuple[int, int, int]
"""Row, column and drop of a well."""


@dataclass(frozen=True)
class Plate:
    """One synthetic plate as a vendor writes it (``written``), read by ``layout`` with ``options``."""

    layout: str
    written: str
    spec: PlateSpec
    options: LayoutOptions = field(default_factory=LayoutOptions)

    @cached_property
    def reader(self) -> Layout:
        return layouts.make(self.layout, self.options)

    @cached_property
    def files(self) -> list[PlannedFile]:
        return list(plate_files(self.spec, layouts.make(self.written)))

    @cached_property
    def images(self) -> list[PlannedFile]:
        """What is to be scored."""
        return [
            f for f in self.files if f.image and (f.kind, f.image.modality) == (ImageKind.COMPOSITE, Modality.VISIBLE)
        ]

    @cached_property
    def keys(self) -> list[str]:
        """The inspections' keys in order of time."""
        return list(dict.fromkeys(_image(f).inspection_key for f in self.images))

    @cached_property
    def truth(self) -> dict[Place, list[DropClass]]:
        """Every drop's classes over the inspections, straight from the renderer."""
        places = sorted({_place(f) for f in self.images})
        return {place: [scene_label(s) for s in drop_history(self.spec, *place)] for place in places}

    def best(self, place: Place) -> tuple[str, float]:
        """The drop's most crystalline image, as the perfect predictor sees them all."""
        own = {f.path: predict(_body(f.label, f.path))[1] for f in self.images if _place(f) == place}
        path = max(own, key=own.__getitem__)
        return path, own[path]

    @cached_property
    def first_hits(self) -> dict[Place, int | None]:
        """Every drop's first inspection with crystals, from 0, as the renderer says."""
        return {place: first_hit(self.spec, *place) for place in self.truth}


def _image(file: PlannedFile) -> DropImage:
    assert file.image is not None
    return file.image


def _place(file: PlannedFile) -> Place:
    image = _image(file)
    return image.row, image.column, image.drop


def plate(layout: str, key: str, imager: ImagerStyle = ImagerStyle.FORMULATRIX) -> Plate:
    """14 or 15 drops, most of which grow crystals; the seeds were chosen so that every trend is among them."""
    seed, drops, filled = {
        ImagerStyle.FORMULATRIX: (72, (1, 2), 7),
        ImagerStyle.RIGAKU: (15, (1, 3, 4), 5),
        ImagerStyle.HWI: (4, (1,), 14),
    }[imager]
    if layout == "rockmaker-export":
        seed, drops, filled = 26, (1,), 14
    wells = PLATE_FORMATS[1536 if imager is ImagerStyle.HWI else 96]
    batch = 1 if layout in ("crims", "rigaku") else FIRST_BATCH
    set_at = FIRST - timedelta(days=8)
    spec = PlateSpec(imager, key, TIMES, wells, drops, seed, filled / wells.wells, 0.7, set_at, batch)
    return Plate(layout, layout, spec)


def by_regex(written: Plate, pattern: str) -> Plate:
    """The same files, read by a site's own pattern."""
    return replace(written, layout="regex", options=LayoutOptions(pattern=pattern))


BY_DATE: Final = r"(?P<barcode>[^/_]+)_(?P<date>[\d-]{10})_[^/]*/[^/]*_(?P<col>\d\d)(?P<row>[A-P])_(?P<drop>\d)\.jpg"
BY_NUMBER: Final = (
    r"(?P<plate>[^/]+)/(?P<inspection>\d+)/[^/]*_(?P<col>\d\d)_(?P<row>\d\d)_(?P<drop>\d\d)_00_99_"
    r"(?P<modality>Vis|UV)\."
)

PLATES: Final = {
    "formulatrix": plate("formulatrix", "2041"),
    "rockmaker-export": plate("rockmaker-export", "90j8"),
    "oppf": plate("oppf", "441312000010"),
    "xchem": plate("xchem", "90j8"),
    "crims": plate("crims", "CD044931"),
    "rigaku": plate("rigaku", "CI022987", ImagerStyle.RIGAKU),
    "hwi": plate("hwi", "X000005127", ImagerStyle.HWI),
    "rhombix": plate("rhombix", "TG-20"),
    "ami": plate("ami", "plate7"),
    "regex": by_regex(plate("xchem", "90j8"), BY_DATE),
    "regex, numbered": by_regex(plate("crims", "CD044931"), BY_NUMBER),
}


def test_every_layout_has_a_plate_with_every_story() -> None:
    assert {plate.layout for plate in PLATES.values()} == set(layouts.NAMES)
    for plate in PLATES.values():
        stories = {trend_of([label is DropClass.CRYSTALS for label in labels]) for labels in plate.truth.values()}
        assert stories == {"none", "steady", "appearing", "dissolving"}
        assert {0, None} < set(plate.first_hits.values())
        assert len(set(plate.first_hits.values())) >= 8
        assert len(plate.keys) == 10


def trend_of(hits: Sequence[bool]) -> str:
    """Said anew, from the words' meaning."""
    if True not in hits:
        return "none"
    if hits[-1] is False:
        return "dissolving"
    return "appearing" if False in hits else "steady"


@dataclass(frozen=True)
class Arrival:
    """A file as it is written for the ``edition``-th time: what its image shows, or what it says.

    ``shade`` decides how sure the predictor is.
    """

    path: str
    edition: int
    shade: str
    label: DropClass | None = None
    content: bytes | None = None

    @property
    def body(self) -> bytes:
        """The file's bytes; an image's stand for its pixels."""
        return _body(self.label, self.shade) if self.content is None else self.content


def _body(label: DropClass | None, shade: str) -> bytes:
    return f"{label} {shade}".encode()


def predict(body: bytes) -> tuple[float, float, float, float]:
    """The perfect predictor: what the image shows, more or less surely."""
    label, _, shade = body.decode().partition(" ")
    sure = 0.6 + crc32(shade.encode()) % 3000 / 10_000
    first, second, third, fourth = (sure if c == label else (1 - sure) / 3 for c in CLASSES)
    return first, second, third, fourth


def arrivals(plate: Plate) -> list[Arrival]:
    """All that the imager writes, in its order. Some images have other content first; some drops a second image."""
    written: Counter[str] = Counter()
    coming = []
    for file in plate.files:
        written[file.path] += 1
        coming.append(Arrival(file.path, written[file.path], file.path, file.label, file.content))
    misjudged = _misjudged(plate)
    early = [replace(a, edition=0, label=_another(a.label)) for a in coming if a.path in misjudged]
    return [*early, *coming, *_copies(plate)]


def _another(label: DropClass | None) -> DropClass:
    return DropClass.CLEAR if label is DropClass.CRYSTALS else DropClass.CRYSTALS


def _misjudged(plate: Plate) -> set[str]:
    """Images whose first edition would move a first hit, or make one where there is none."""
    of_drop: dict[Place, list[PlannedFile]] = {}
    for file in plate.images:
        of_drop.setdefault(_place(file), []).append(file)
    by_first = {first: place for place, first in plate.first_hits.items()}
    never, late = by_first[None], by_first[8]
    return {of_drop[never][3].path, of_drop[late][8].path, of_drop[late][0].path}


def _copies(plate: Plate) -> list[Arrival]:
    """A second region of some drops, as crystalline as the first to the last digit: the first path is to count."""
    if plate.written != "formulatrix":
        return []
    again = [(f, replace(_image(f), region=(_image(f).region or 0) + 5)) for f in plate.images[::3]]
    return [Arrival(plate.reader.format(image), 1, file.path, _or_other(file.label)) for file, image in again]


def _or_other(label: DropClass | None) -> DropClass:
    return DropClass.CRYSTALS if label is DropClass.CRYSTALS else DropClass.OTHER


def as_written(plate: Plate, chance: random.Random) -> list[Arrival]:
    """In the imager's order."""
    return arrivals(plate)


def backwards(plate: Plate, chance: random.Random) -> list[Arrival]:
    """The last inspection first."""
    return arrivals(plate)[::-1]


def shuffled(plate: Plate, chance: random.Random) -> list[Arrival]:
    """In any order."""
    return chance.sample(coming := arrivals(plate), len(coming))


def first_hits_last(plate: Plate, chance: random.Random) -> list[Arrival]:
    """Late are the whole first inspection, and of every drop the image that is its first hit."""
    late = {f.path for f in plate.images if _image(f).inspection_key == plate.keys[0]}
    late |= {f.path for f in plate.images if plate.keys.index(_image(f).inspection_key) == plate.first_hits[_place(f)]}
    return sorted(shuffled(plate, chance), key=lambda a: a.path in late)


Order = Callable[[Plate, random.Random], list[Arrival]]
ORDERS: Final[tuple[Order, ...]] = (as_written, backwards, shuffled, first_hits_last)


def with_repeats(coming: list[Arrival], chance: random.Random) -> list[Arrival]:
    """Every tenth file is seen again at any other time; what is written twice stays in its order."""
    more = [*coming]
    for arrival in chance.sample(coming, len(coming) // 10):
        more.insert(chance.randrange(len(more)), arrival)
    editions: dict[str, deque[Arrival]] = {}
    for arrival in sorted(more, key=lambda a: a.edition):
        editions.setdefault(arrival.path, deque()).append(arrival)
    return [editions[arrival.path].popleft() for arrival in more]


def handfuls(coming: list[Arrival], chance: random.Random) -> Iterator[list[Arrival]]:
    """All of them, a few at a time."""
    done = 0
    while done < len(coming):
        size = chance.choice((1, 20, 60))
        yield coming[done : done + size]
        done += size


def digest(body: bytes) -> str:
    """The content hash."""
    return hashlib.sha256(body).hexdigest()


class Share:
    """An imager's share: files appear on it, are taken in a few at a time, and scored a few at a time."""

    def __init__(self, db: Database, version: Version, plate: Plate, name: str) -> None:
        self.name = name
        self._db, self._version, self._plate = db, version, plate
        self._lying: dict[str, Arrival] = {}
        self._waiting: list[str] = []
        self._minutes = 0
        self._source_id = db.write(
            lambda c: registration.register_source(c, name, f"/{name}", plate.layout, len(plate.truth), utc())
        )

    def deliver(self, coming: list[Arrival], chance: random.Random) -> None:
        """Everything arrives, and is scored in between and at the end."""
        for some in handfuls(coming, chance):
            self._take_in(some)
            if chance.random() < 0.5:
                self._score(chance.choice((5, 40)))
        while self._score(200):
            pass

    def _take_in(self, some: list[Arrival]) -> None:
        self._lying |= {arrival.path: arrival for arrival in some}
        offered, self._waiting = [*self._waiting, *(arrival.path for arrival in some)], []
        sightings = [sighting for path in offered if (sighting := self._sighting(path))]
        factories.record(self._db, self._source_id, sightings, self._later())

    def _sighting(self, path: str) -> Sighting | None:
        """What a watcher makes of a file that stands still."""
        read = self._plate.reader.parse(path, self._beside)
        if isinstance(read, NotADrop):
            if read.may_change:
                self._waiting.append(path)
            return None
        edition = self._lying[path].edition
        return None if why_not_scored(read) else Sighting(path, 1000 + edition, 10**18 + edition, read)

    def _beside(self, path: str) -> bytes | None:
        return self._lying[path].content if path in self._lying else None

    def _score(self, limit: int) -> int:
        lease = factories.claim(self._db, self._later(), limit=limit)
        if lease is None:
            return 0
        done = factories.finish(
            self._db,
            lease,
            self._version,
            self._later(),
            hashes=lambda claim: digest(self._lying[claim.path].body),
            scores=lambda claim: predict(self._lying[claim.path].body),
        )
        return done.scored

    def _later(self) -> datetime:
        self._minutes += 1
        return utc(minutes=self._minutes)


ORDERED: Final = {
    "lims_drop_v1": "well_row, well_column, drop_number",
    "lims_plate_summary_v1": "inspection_key",
    "lims_hit_v1": "well_row, well_column, drop_number",
}
WRITTEN: Final = {
    *("drop_id", "inspection_id", "hit_id", "source", "updated_at", "found_at", "first_hit_found_at"),
    *("first_image_at", "last_image_at"),
}


def shows(db: Database, source: str) -> dict[str, list[dict[str, Any]]]:
    """All that a LIMS reads of a source, but ids and when it was written."""
    return {view: _rows(db, view, source) for view in ORDERED}


def _rows(db: Database, view: str, source: str) -> list[dict[str, Any]]:
    statement = sa.text(f"select * from {view} where source = :source order by {ORDERED[view]}")
    found = db.read(lambda c: [dict(row) for row in c.execute(statement, {"source": source}).mappings()])
    return [{name: value for name, value in row.items() if name not in WRITTEN} for row in found]


def check_against_the_truth(plate: Plate, shown: dict[str, list[dict[str, Any]]], rule: str = "expected") -> None:
    """What the views say of a plate, against what the renderer knows."""
    drops = {(r["well_row"], r["well_column"], r["drop_number"]): r for r in shown["lims_drop_v1"]}
    assert drops.keys() == plate.truth.keys()
    for place, labels in plate.truth.items():
        hits = [label is DropClass.CRYSTALS for label in labels]
        key, row = drops[place]["first_hit_inspection_key"], drops[place]
        assert (None if key is None else plate.keys.index(key)) == plate.first_hits[place]
        assert (row["trend"], row["inspections"], bool(row["hit"])) == (trend_of(hits), 10, hits[-1])
        assert (row["inspection_key"], row["label"]) == (plate.keys[-1], labels[-1])
        assert (row["first_hit_path"] is None) == (key is None)
        assert (row["best_path"], row["highest_p_crystals"]) == plate.best(place)
    found = [(r["well_row"], r["well_column"], r["drop_number"]) for r in shown["lims_hit_v1"]]
    assert found == [place for place, labels in plate.truth.items() if DropClass.CRYSTALS in labels]
    check_summaries(plate, shown["lims_plate_summary_v1"], rule)


def check_summaries(plate: Plate, shown: list[dict[str, Any]], rule: str) -> None:
    """The counts of each inspection, and that it is complete."""
    summaries = {row["inspection_key"]: row for row in shown}
    assert summaries.keys() == set(plate.keys)
    drops = len(plate.truth)
    for number, key in enumerate(plate.keys):
        counts, row = Counter(labels[number] for labels in plate.truth.values()), summaries[key]
        assert [row[f"n_{label.lower()}"] for label in CLASSES] == [counts[label] for label in CLASSES]
        assert (row["hits"], row["failed"], row["seen"], row["scored"]) == (counts[DropClass.CRYSTALS], 0, drops, drops)
        expected = drops if rule == "expected" else None
        assert (row["expected"], bool(row["complete"]), row["complete_rule"]) == (expected, True, rule)


@pytest.mark.parametrize(
    ("backend", "name"), [*(("sqlite", name) for name in PLATES), ("postgres", "formulatrix")], indirect=["backend"]
)
def test_every_drop_has_its_first_hit_whatever_comes_when(db: Database, champion: Version, name: str) -> None:
    plate, before = PLATES[name], None
    for number, order in enumerate(ORDERS):
        chance = random.Random(number)
        share = Share(db, champion, plate, order.__name__)
        share.deliver(with_repeats(order(plate, chance), chance), chance)
        shown = shows(db, share.name)
        check_against_the_truth(plate, shown)
        assert before in (None, shown)
        before = shown


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_files_on_a_disk_give_the_same_whatever_comes_when(db: Database, champion: Version, tmp_path: Path) -> None:
    plate, orders = PLATES["formulatrix"], (as_written, first_hits_last)
    for root in (roots := {order.__name__: tmp_path / order.__name__ for order in orders}).values():
        root.mkdir()
    given = {name: {"root": root, "layout": plate.layout} for name, root in roots.items()}
    opened = open_sources(db, Settings.model_validate({"sources": given}), utc())
    for source, order in zip(opened, orders, strict=True):
        chance = random.Random(source.id)
        for some in handfuls(with_repeats(order(plate, chance), chance), chance):
            for arrival in some:
                _write(roots[source.name], arrival)
            scan_once(db, source, settle_s=0.0)
            _score_files(db, champion)
    db.write(lambda c: summaries.complete_quiet(c, datetime.now(UTC) + timedelta(hours=2), quiet_s=3600))
    before, after = (shows(db, name) for name in roots)
    check_against_the_truth(plate, before, rule="quiet")
    assert before == after


def _write(root: Path, arrival: Arrival) -> None:
    target = root / arrival.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(arrival.body)


def _score_files(db: Database, version: Version) -> None:
    now = datetime.now(UTC)
    factories.drain(db, version, now, hashes=lambda c: digest(_read(c)), scores=lambda c: predict(_read(c)))


def _read(claim: queue.Claim) -> bytes:
    return (Path(claim.root) / claim.path).read_bytes()

"""A plain recomputation of every derived row and view from the base rows, with none of marcod's own code.

Slow and simple on purpose: whole tables are read into dictionaries, each rule is written as docs/derived.md has it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from marcod.database import schema
from marcod.database.engine import Database

TABLES = (
    "source", "plate", "drop", "inspection", "image", "model_version", "model_alias", "job", "score", "label",
    "inspection_summary", "drop_summary", "hit", "event",
)  # fmt: skip
COUNTS = {"Clear": "n_clear", "Crystals": "n_crystals", "Other": "n_other", "Precipitate": "n_precipitate"}


@dataclass(frozen=True)
class Look:
    """One image as a version knows it."""

    image: Any
    in_light: bool
    state: str
    score: Any = None
    threshold: float = 1.0

    @property
    def p(self) -> float | None:
        return None if self.score is None else self.score.p_crystals

    @property
    def hit(self) -> bool:
        return self.p is not None and self.p >= self.threshold

    @property
    def rank(self) -> tuple[Any, ...]:
        return self.in_light, self.p if self.p is not None else -1.0 if self.state == "waiting" else -2.0


@dataclass(frozen=True)
class Verdict:
    """A drop at an inspection: the image that counts, and people's label, which wins."""

    look: Look
    person: str | None
    label: str | None
    hit: bool
    disputed: bool

    @property
    def known(self) -> bool:
        return self.person is not None or self.look.p is not None


@dataclass
class World:
    """Every base row, by table and id."""

    rows: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, db: Database) -> "World":
        def work(connection: sa.Connection) -> dict[str, list[Any]]:
            return {name: list(connection.execute(sa.select(getattr(schema, name)))) for name in TABLES}

        return cls(db.read(work))

    def __post_init__(self) -> None:
        def by(name: str) -> dict[int, Any]:
            return {row.id: row for row in self.rows[name]}

        self.images, self.versions, self.inspections = by("image"), by("model_version"), by("inspection")
        self.drops, self.plates, self.sources, self.scores = by("drop"), by("plate"), by("source"), by("score")
        self.own = {(s.image_id, s.model_version_id, s.content_hash): s for s in self.rows["score"]}
        self.jobs = {(j.image_id, j.model_version_id): j for j in self.rows["job"]}
        self.alias = {a.alias: a.model_version_id for a in self.rows["model_alias"]}
        self.at: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for image in sorted(self.images.values(), key=lambda i: i.path):
            if image.same_as_id is None:
                self.at[image.drop_id, image.inspection_id].append(image)
        self.labels = self._labels()

    def _labels(self) -> dict[tuple[int, int], list[Any]]:
        """Each person's latest label of each subject, unless it was withdrawn."""
        latest: dict[tuple[Any, ...], Any] = {}
        for row in sorted(self.rows["label"], key=lambda r: (r.labelled_at, r.id)):
            latest[row.drop_id, row.inspection_id, self.counting(row.image_id), row.person] = row
        found: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for (drop_id, inspection_id, _, _), row in latest.items():
            if row.label is not None:
                found[drop_id, inspection_id].append(row)
        return found

    def look(self, image: Any, version: Any) -> Look:
        """A version's own score of the present bytes; for a file that is gone, the score kept with it."""
        light = image.modality == version.modality
        own = self.own.get((image.id, version.id, image.content_hash))
        if own is not None:
            return Look(image, light, "scored", own, version.crystal_threshold)
        if image.gone_at is not None:
            kept = self.scores.get(image.gone_score_id)
            if kept is None:
                return Look(image, light, "gone")
            return Look(image, light, "scored", kept, self.versions[kept.model_version_id].crystal_threshold)
        job = self.jobs.get((image.id, version.id))
        return Look(image, light, "failed" if job is not None and job.failed_at is not None else "waiting")

    def verdict(self, drop_id: int, inspection_id: int, version: Any, *, any_light: bool) -> Verdict | None:
        """None where the version has nothing to look at."""
        images = self.at.get((drop_id, inspection_id), [])
        looks = [self.look(i, version) for i in images if any_light or i.modality == version.modality]
        if not looks:
            return None
        best = max(looks, key=lambda found: found.rank)
        seen = any(found.hit for found in looks)
        said = self._said(self.labels.get((drop_id, inspection_id), []), looks)
        if said is None:
            return Verdict(best, None, None if best.score is None else best.score.label, seen, False)
        person, label, disputed = said
        return Verdict(best, person, label, label == "Crystals", disputed)

    def counting(self, image_id: int | None) -> int | None:
        """The image that counts for the files of the same bytes."""
        return image_id if image_id is None else self.images[image_id].same_as_id or image_id

    def _said(self, labels: list[Any], looks: list[Look]) -> tuple[str, str, bool] | None:
        """People's class of a drop: by subject the majority, over subjects crystals, else the latest."""
        subjects: dict[int | None, list[Any]] = defaultdict(list)
        for row in labels:
            subjects[self.counting(row.image_id)].append(row)
        if not subjects:
            return None
        verdicts = []
        for image_id, rows in subjects.items():
            ordered = sorted(rows, key=lambda r: (r.labelled_at, r.id))
            votes, last = Counter(r.label for r in ordered), {r.label: n for n, r in enumerate(ordered)}
            winner = max(votes, key=lambda label: (votes[label], last[label]))
            verdicts.append((image_id, winner, ordered[last[winner]]))
        crystals = [v for v in verdicts if v[1] == "Crystals"]
        unlabelled = None not in subjects and any(look.hit and look.image.id not in subjects for look in looks)
        if unlabelled and not crystals:
            return None
        counting = max(crystals or verdicts, key=lambda v: v[2].labelled_at)
        return counting[2].person, counting[1], len({r.label for r in labels}) > 1

    def expected(self, inspection_id: int) -> int | None:
        plate = self.plates[self.inspections[inspection_id].plate_id]
        if plate.format_drops is not None:
            return int(plate.format_rows * plate.format_columns * plate.format_drops)
        return self.sources[plate.source_id].expected_drops  # type: ignore[no-any-return]

    def summary(self, inspection_id: int, version: Any) -> dict[str, Any] | None:
        """The row of an inspection; None where the version has no image in its light."""
        drop_ids = sorted({d for d, i in self.at if i == inspection_id})
        pairs = [(d, self.verdict(d, inspection_id, version, any_light=False)) for d in drop_ids]
        found = {d: verdict for d, verdict in pairs if verdict is not None}
        if not found:
            return None
        looks = [
            self.look(i, version) for d in found for i in self.at[d, inspection_id] if i.modality == version.modality
        ]
        states = Counter(verdict.look.state for verdict in found.values())
        classes = Counter(verdict.label for verdict in found.values())
        expected, waiting = self.expected(inspection_id), sum(look.state == "waiting" for look in looks)
        return {
            **{column: classes[label] for label, column in COUNTS.items()},
            "hits": sum(verdict.hit for verdict in found.values()),
            "labelled": sum(verdict.person is not None for verdict in found.values()),
            "expected": expected,
            "seen": len(found),
            "scored": states["scored"],
            "failed": states["failed"],
            "gone": states["gone"],
            "waiting": waiting,
            "complete": waiting == 0,
            "first_image_at": min(look.image.seen_at for look in looks),
            "last_image_at": max(look.image.seen_at for look in looks),
        }

    def course(self, drop_id: int, version: Any) -> list[tuple[Any, Verdict]]:
        """The verdicts on a drop in order of time; images of another light count where people labelled."""
        found = []
        for inspection_id in {i for d, i in self.at if d == drop_id}:
            any_light = bool(self.labels.get((drop_id, inspection_id)))
            verdict = self.verdict(drop_id, inspection_id, version, any_light=any_light)
            if verdict is not None:
                found.append((self.inspections[inspection_id], verdict))
        return sorted(found, key=lambda pair: (_order(pair[0]), pair[0].id))

    def drop(self, drop_id: int, version: Any) -> dict[str, Any] | None:
        """The row of a drop; None while nobody knows anything of it."""
        course = self.course(drop_id, version)
        known = [(where, verdict) for where, verdict in course if verdict.known]
        if not known:
            return None
        where, current = known[-1]
        scored = [(w, v) for w, v in known if v.look.p is not None]
        first = next(((w, v) for w, v in known if v.hit), None)
        highest = max((v.look.p for _, v in scored if v.look.p is not None), default=None)
        hits = [v.hit for _, v in known]
        trend = "none" if not any(hits) else "dissolving" if not hits[-1] else "steady" if all(hits) else "appearing"
        return {
            "inspections": len(course),
            "scored_inspections": len(scored),
            "inspection_id": where.id,
            "p_crystals": current.look.p,
            "label": current.label,
            "label_person": current.person,
            "label_disputed": current.disputed,
            "highest_p_crystals": highest,
            "hit": current.hit,
            "first_hit_inspection_id": None if first is None else first[0].id,
            "trend": trend,
        }


def _order(inspection: Any) -> str:
    text = inspection.key if inspection.ordinal is None else str(inspection.ordinal)
    return re.sub(r"\d+", lambda found: found[0].zfill(20), text)


def faults(db: Database) -> list[str]:
    """Every way in which the derived rows and views of a drained database are not what the base rows say."""
    world = World.read(db)
    return [
        *_summaries(world), *_drops(world), *_hits(world), *_owed(world), *_copies(world), *_labels(world),
        *_views(db, world), *_events(world),
    ]  # fmt: skip


def _speaking(world: World) -> list[Any]:
    return [v for v in world.versions.values() if v.promoted_at is not None]


def _differences(what: str, row: Any, wanted: dict[str, Any] | None) -> list[str]:
    if wanted is None:
        return [f"{what} should not be there"]
    return [
        f"{what}: {name} is {getattr(row, name)!r}, recomputed {value!r}"
        for name, value in wanted.items()
        if getattr(row, name) != value
    ]


def _summaries(world: World) -> list[str]:
    found, there = [], set()
    for row in world.rows["inspection_summary"]:
        version = world.versions[row.model_version_id]
        there.add((row.inspection_id, version.id))
        what = f"summary of inspection {row.inspection_id} by version {version.id}"
        wanted = world.summary(row.inspection_id, version)
        found += _differences(what, row, wanted)
        if wanted and wanted["complete"]:
            enough = wanted["expected"] is not None and wanted["seen"] >= wanted["expected"]
            if not enough and row.complete_rule != "quiet":
                found.append(f"{what}: rule {row.complete_rule}, recomputed quiet")
    for version in _speaking(world):
        for image in world.images.values():
            own = (image.id, version.id, image.content_hash) in world.own and image.modality == version.modality
            if image.same_as_id is None and own and (image.inspection_id, version.id) not in there:
                found.append(f"no summary of inspection {image.inspection_id} by version {version.id}")
    return found


def _drops(world: World) -> list[str]:
    found, there = [], set()
    for row in world.rows["drop_summary"]:
        there.add((row.drop_id, row.model_version_id))
        what = f"drop {row.drop_id} by version {row.model_version_id}"
        found += _differences(what, row, world.drop(row.drop_id, world.versions[row.model_version_id]))
    speaking = _speaking(world)
    for drop_id in world.drops:
        images = [i for (d, _), its in world.at.items() if d == drop_id for i in its]
        for version in speaking:
            own = any(
                (i.id, version.id, i.content_hash) in world.own and i.modality == version.modality for i in images
            )
            if own and (drop_id, version.id) not in there:
                found.append(f"no row of drop {drop_id} by version {version.id}")
        labelled = any(world.labels.get(where) for where in world.at if where[0] == drop_id)
        if labelled and not any((drop_id, version.id) in there for version in speaking):
            found.append(f"no row of the labelled drop {drop_id}")
    return found


def _hits(world: World) -> list[str]:
    """A hit stands for as long as the version sees crystals in any inspection of the drop."""
    standing = {(h.drop_id, h.model_version_id) for h in world.rows["hit"] if h.ended_at is None}
    # A version that was thinned has hits alone.
    known = {(r.drop_id, r.model_version_id) for r in world.rows["drop_summary"]}
    seen = {
        (r.drop_id, r.model_version_id) for r in world.rows["drop_summary"] if r.first_hit_inspection_id is not None
    }
    return [
        *(f"no hit of drop {drop_id} by version {version_id}" for drop_id, version_id in sorted(seen - standing)),
        *(
            f"the hit of drop {drop_id} by version {version_id} stands, and it sees none"
            for drop_id, version_id in sorted((standing & known) - seen)
        ),
    ]


def _owed(world: World) -> list[str]:
    """List images of plates that the champion has begun without a score or a visible reason."""
    champion = world.versions[world.alias["champion"]]
    begun = {
        world.inspections[row.inspection_id].plate_id
        for row in world.rows["inspection_summary"]
        if row.model_version_id == champion.id
    }
    found = []
    for image in world.images.values():
        plate_id = world.inspections[image.inspection_id].plate_id
        if plate_id not in begun or image.modality != champion.modality:
            continue
        job = world.jobs.get((image.id, champion.id))
        if job is not None and job.failed_at is not None and image.unread:
            found.append(f"image {image.id} was given up, and a score of former bytes counts for it")
        if image.gone_at is not None or image.same_as_id is not None or job is not None:
            continue
        if image.unread or (image.id, champion.id, image.content_hash) not in world.own:
            found.append(f"the champion owes image {image.id} and nothing is queued")
    return found


def _copies(world: World) -> list[str]:
    """List images of the same bytes at one place of which not exactly one counts."""
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for image in world.images.values():
        if image.content_hash is not None and not image.unread:
            key = (
                image.source_id, image.drop_id, image.inspection_id, image.modality, image.content_hash, image.profile,
                image.region,
            )  # fmt: skip
            groups[key].append(image)
    found = []
    for key, its in groups.items():
        counting = [i for i in its if i.same_as_id is None]
        # What is gone and was a copy stays one when the image that counts for it holds other bytes.
        if len(counting) > 1 or (not counting and any(i.gone_at is None for i in its)):
            found.append(f"of {len(its)} images of the same bytes {len(counting)} count: {key}")
        elif counting and counting[0].gone_at is not None and any(i.gone_at is None for i in its):
            found.append(f"image {counting[0].id} is gone and counts for one that is there")
    for image in world.images.values():
        there = image.same_as_id is not None and image.gone_at is None
        if there and world.images[image.same_as_id].same_as_id is not None:
            found.append(f"image {image.id} is a copy of a copy")
    return found


def _labels(world: World) -> list[str]:
    """A label given to an image stands where the image is."""
    images = world.images
    return [
        f"label {row.id} of image {row.image_id} stays where the image was"
        for row in world.rows["label"]
        if row.image_id is not None
        and (row.drop_id, row.inspection_id) != (images[row.image_id].drop_id, images[row.image_id].inspection_id)
    ]


def _views(db: Database, world: World) -> list[str]:
    def view(sql: str) -> Sequence[sa.Row[Any]]:
        return db.read(lambda c: c.execute(sa.text(sql)).all())

    found = []
    champion = world.alias["champion"]
    speaking = {v.id: v for v in _speaking(world)}
    rows = [r for r in world.rows["inspection_summary"] if r.model_version_id in speaking]
    of_each: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        of_each[row.inspection_id].append(row)
    shown = {r.inspection_id: r for r in view("select * from lims_plate_summary_v1")}
    if set(shown) != set(of_each):
        found.append(f"lims_plate_summary_v1 shows {sorted(shown)}, not {sorted(of_each)}")
    for inspection_id, its in of_each.items():
        best = max(its, key=lambda r: (
            r.waiting == 0 and r.model_version_id == champion, r.waiting == 0, r.scored, r.model_version_id == champion,
            speaking[r.model_version_id].promoted_at, r.model_version_id,
        ))  # fmt: skip
        told = shown.get(inspection_id)
        if told is not None and told.model_version != speaking[best.model_version_id].version:
            found.append(
                f"inspection {inspection_id}: version {told.model_version} speaks, not {best.model_version_id}"
            )
        if told is not None and (told.hits, told.n_crystals) != (best.hits, best.n_crystals):
            found.append(f"inspection {inspection_id}: the view shows other counts than its row")
    of_drop: dict[int, list[Any]] = defaultdict(list)
    for row in world.rows["drop_summary"]:
        if row.model_version_id in speaking:
            of_drop[row.drop_id].append(row)
    drops = {r.drop_id: r for r in view("select * from lims_drop_v1")}
    if set(drops) != set(of_drop):
        found.append(f"lims_drop_v1 shows {sorted(drops)}, not {sorted(of_drop)}")
    hits = {r.drop_id for r in view("select drop_id from lims_hit_v1")}
    for drop_id, its in of_drop.items():
        best = max(its, key=lambda r: (
            r.scored_inspections, r.model_version_id == champion, speaking[r.model_version_id].promoted_at,
            r.model_version_id,
        ))  # fmt: skip
        told = drops.get(drop_id)
        if told is not None and (told.label, bool(told.hit), told.trend) != (best.label, bool(best.hit), best.trend):
            found.append(f"drop {drop_id}: the view shows another row than that of version {best.model_version_id}")
        own = next((r for r in its if r.model_version_id == champion), None)
        wanted = best.first_hit_inspection_id is not None or (
            own is not None and own.first_hit_inspection_id is not None
        )
        if wanted != (drop_id in hits):
            found.append(f"drop {drop_id}: listed among the hits {drop_id in hits}, recomputed {wanted}")
    return found


def _events(world: World) -> list[str]:
    """New hits that a speaking version shows were told; a completion was told, and each once."""
    found = []
    told: set[tuple[int, str, int]] = set()
    for event in world.rows["event"]:
        if event.kind == "hits":
            inspection_id = int(event.subject.split(":")[1])
            told |= {(inspection_id, well["well"], well["drop"]) for well in event.detail["wells"]}
    standing = {(r.drop_id, r.model_version_id): r for r in world.rows["drop_summary"]}
    for hit in world.rows["hit"]:
        version, row = world.versions[hit.model_version_id], standing.get((hit.drop_id, hit.model_version_id))
        if version.promoted_at is None or hit.cause != "new" or row is None or row.first_hit_inspection_id is None:
            continue
        drop = world.drops[hit.drop_id]
        if not any(well == drop.well and number == drop.drop_number for _, well, number in told):
            found.append(f"the new hit of drop {hit.drop_id} was never told")
    completions = Counter(
        tuple(event.subject.split(":", 2)[1:]) for event in world.rows["event"] if event.kind == "complete"
    )
    for subject, count in completions.items():
        if count > 1:
            found.append(f"completion {subject} was told {count} times")
    complete = {int(inspection_id) for inspection_id, _ in completions}
    for row in world.rows["inspection_summary"]:
        if row.complete and row.model_version_id == world.alias["champion"] and row.inspection_id not in complete:
            found.append(f"inspection {row.inspection_id} is complete and nobody was told")
    return found

"""The reckoning: every file on the disk against the database, and the database against itself.

Nothing of marcod's own counting is used: files are read and hashed, images scored directly by the champion, and
summaries and hits counted anew from images, scores and labels.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from chaos.imagers import Share, State, Truth, photographs
from chaos.lab import Lab
from chaos.people import PERSON
from chaos.stores import FINISHED
from marcod.database import schema
from marcod.database.workers import ALIVE_S
from marcod.domain import CLASSES, path_text
from marcod.model.predictor import Predictor
from marcod.model.registry import Registry
from marcod.store import versions
from marcod.store.versions import Version

TOLERANCE: Final = 1e-4
FORGOTTEN: Final = timedelta(days=1)
SHOWN: Final = 3
UNFINISHED: Final = "training runs that nobody goes on with"
FORBIDDEN: Final = " (the database forbids it)"
"""Of what a unique constraint keeps from happening: it cannot be found but where the constraint is gone."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the reckoning: how many were expected, how many found, and examples of what does not agree."""

    what: str
    expected: int
    found: int
    wrong: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return self.expected == self.found and not self.wrong


@dataclass(frozen=True)
class _Image:
    """An image's row, its champion's scores of its present content, and its champion's job."""

    key: str
    truth: Truth | None
    row: Any
    scores: list[Any]
    job: Any


@dataclass(frozen=True)
class _Books:
    """Everything the database says, read in one transaction."""

    champion: Version
    images: list[_Image]
    rows: dict[str, list[Any]]
    finished: Counter[tuple[int, int]]
    """How often a job of an image and a version was finished."""


TABLES: Final = ("image", "score", "job", "label", "label_inbox", "inspection_summary", "drop_summary", "hit", "drop",
                 "worker", "training_run", "campaign_range")  # fmt: skip


def reckon(lab: Lab) -> list[Line]:
    """All lines but those that take the model. Raises StoreError while the database is away."""
    books = _read(lab)
    return [
        *_files(lab, books),
        *_scores(books),
        *_queue(books),
        _double_work(lab, books),
        *_summaries(books),
        *_hits(books),
        *_labels(lab, books),
        *_workers(lab, books),
        Line("damage that the database finds in itself", 0, 0, _some([lab.store.damage(lab.db)])),
    ]


def idle(lab: Lab) -> bool:
    """Whether nothing waits; to be asked before the whole reckoning, which reads every file."""
    job, inbox = schema.job, schema.label_inbox
    waiting = sa.select(sa.func.count()).select_from(job).where(job.c.failed_at.is_(None))
    unheard = sa.select(sa.func.count()).select_from(inbox).where(inbox.c.state == "waiting")
    archives = sa.select(sa.func.count()).select_from(schema.campaign_range)
    return lab.db.read(lambda c: not any(c.execute(one).scalar() for one in (waiting, archives, unheard)))


def settled(lines: Iterable[Line]) -> bool:
    """Whether everything agrees."""
    return all(line.agrees for line in lines)


def _some(wrong: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(each) for each in wrong if each)[:SHOWN]


def _read(lab: Lab) -> _Books:
    def work(connection: sa.Connection) -> tuple[Version, dict[str, list[Any]], Counter[tuple[int, int]]]:
        found = {n: list(connection.execute(sa.select(schema.metadata.tables[n]))) for n in (*TABLES, "source")}
        finished = connection.execute(sa.text(f"select image_id, model_version_id from {FINISHED}"))
        return versions.champion(connection), found, Counter((row[0], row[1]) for row in finished)

    champion, rows, finished = lab.db.read(work)
    names = {row.id: row.name for row in rows["source"]}
    truths = {
        f"{share.name}/{path_text(path)}": truth for share in lab.shares for path, truth in list(share.truth.items())
    }
    scores, jobs = defaultdict(list), {}
    for row in rows["score"]:
        if row.model_version_id == champion.id:
            scores[row.image_id, row.content_hash].append(row)
    for row in rows["job"]:
        if row.model_version_id == champion.id:
            jobs[row.image_id] = row
    images = []
    for row in rows["image"]:
        key = f"{names[row.source_id]}/{row.path}"
        images.append(_Image(key, truths.get(key), row, scores[row.id, row.content_hash], jobs.get(row.id)))
    return _Books(champion, images, rows, finished)


def _files(lab: Lab, books: _Books) -> list[Line]:
    """The disk itself: every file of a share is hashed."""
    recorded = {image.key: image for image in books.images}
    wanted: dict[str, Truth] = {}
    other, stale = [], []
    for share in lab.shares:
        for path, truth in share.truth.items():
            key = f"{share.name}/{path_text(path)}"
            if truth.state is State.NEVER:
                other += [f"recorded: {key}"] if key in recorded else []
                continue
            wanted[key] = truth
            digest = _digest(share, path)
            if digest != truth.digest:
                other.append(f"the disk holds another file: {key}")
            if key in recorded and truth.state is not State.UNLIT and recorded[key].row.content_hash != digest:
                stale.append(key)
    missing = [f"not recorded: {key}" for key in wanted.keys() - recorded.keys()]
    unknown = [f"recorded, not delivered: {key}" for key in recorded.keys() - wanted.keys()]
    never = sum(truth.state is State.NEVER for share in lab.shares for truth in share.truth.values())
    counts = Counter(truth.state for truth in wanted.values())
    made = f"{counts[State.INTACT]} intact, {counts[State.BROKEN]} broken, {counts[State.UNLIT]} in another light"
    return [
        Line(f"images on the disk ({made}) = images", len(wanted), len(recorded), _some(missing + unknown)),
        Line(f"empty files, pipes, links, folders ({never}) taken in", 0, len([o for o in other if "rec" in o[:3]])),
        Line("files as they were written", 0, 0, _some(o for o in other if "rec" not in o[:3])),
        Line("images whose content is not the disk's", 0, len(stale), _some(stale)),
    ]


def _digest(share: Share, path: str) -> str:
    with share.still() as home:
        return hashlib.sha256((home / path).read_bytes()).hexdigest()


def _of(books: _Books, state: State) -> list[_Image]:
    return [image for image in books.images if image.truth is not None and image.truth.state is state]


def _scores(books: _Books) -> list[Line]:
    intact, broken, unlit = (_of(books, state) for state in (State.INTACT, State.BROKEN, State.UNLIT))
    lost = [image.key for image in intact if not image.scores]
    twice = [image.key for image in intact if len(image.scores) > 1]
    scored = [image.key for image in broken + unlit if image.scores]
    unfair = [f"{image.key}: {image.job.error}" for image in intact if image.job and image.job.failed_at]
    wrong = [f"{image.key}: {image.job and image.job.error}" for image in broken if not _is_right(image)]
    return [
        Line("intact images with one score of the champion", len(intact), sum(len(i.scores) == 1 for i in intact)),
        Line("intact images lost", 0, len(lost), _some(lost)),
        Line(f"intact images scored twice{FORBIDDEN}", 0, len(twice), _some(twice)),
        Line("intact images in quarantine", 0, len(unfair), _some(unfair)),
        Line("broken images in quarantine with their reason", len(broken), len(broken) - len(wrong), _some(wrong)),
        Line("broken or unlit images scored", 0, len(scored), _some(scored)),
        Line(
            "images = scored + quarantined + in another light",
            len(books.images),
            sum(bool(i.scores) for i in books.images)
            + sum(i.job is not None and i.job.failed_at is not None for i in books.images)
            + len(unlit),
        ),
    ]


def _is_right(image: _Image) -> bool:
    """Whether a broken image was given up for what is wrong with it."""
    reason = image.truth.reason if image.truth else None
    return image.job is not None and image.job.failed_at is not None and bool(re.search(reason or "^", image.job.error))


def _queue(books: _Books) -> list[Line]:
    jobs = books.rows["job"]
    waiting = [f"image {j.image_id}: {j.error}" for j in jobs if j.failed_at is None]
    repeated = Counter((s.image_id, s.model_version_id, s.content_hash) for s in books.rows["score"])
    return [
        Line("leases left", 0, sum(job.lease is not None for job in jobs)),
        Line("jobs left, of any model", 0, len(waiting), _some(waiting)),
        Line("ranges of rescores left", 0, len(books.rows["campaign_range"])),
        Line(f"scores of any model that are there twice{FORBIDDEN}", 0, sum(n > 1 for n in repeated.values())),
    ]


def _double_work(lab: Lab, books: _Books) -> Line:
    """Jobs of the champion finished oftener than something happened to their file: no constraint forbids that.

    A late finisher is none of them: its job is another's, so it finishes nothing.
    """
    reasons = {f"{share.name}/{path_text(path)}": n for share in lab.shares for path, n in share.disturbed.items()}
    times = [(image.key, books.finished[image.row.id, books.champion.id]) for image in books.images]
    allowed = {key: 1 + reasons.get(key, 0) for key, _ in times}
    again = [f"{key}: {n} times, {allowed[key]} allowed" for key, n in times if n > allowed[key]]
    unheld = [f"{i.key}: scored, but no job was finished" for i in books.images if i.scores and not
              books.finished[i.row.id, books.champion.id]]  # fmt: skip
    what = f"images scored again without a reason ({sum(n for _, n in times)} jobs finished)"
    return Line(what, 0, len(again) + len(unheld), _some(again + unheld))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a recount says of a drop at an inspection."""

    label: str | None
    hit: bool
    p: float | None
    said: bool
    failed: bool


def _verdicts(books: _Books) -> dict[int, dict[int, _Verdict]]:
    """By inspection and drop: what its only person says, else its most crystalline image."""
    said = {(row.inspection_id, row.drop_id): row.label for row in books.rows["label"]}
    images_of: dict[tuple[int, int], list[_Image]] = defaultdict(list)
    for image in books.images:
        if image.row.modality == books.champion.modality:
            images_of[image.row.inspection_id, image.row.drop_id].append(image)
    found: dict[int, dict[int, _Verdict]] = defaultdict(dict)
    for (inspection_id, drop_id), images in images_of.items():
        best = max((s for image in images for s in image.scores), key=lambda s: s.p_crystals, default=None)
        p, label = (None, None) if best is None else (best.p_crystals, best.label)
        word = said.get((inspection_id, drop_id))
        hit = word == "Crystals" if word else p is not None and p >= books.champion.crystal_threshold
        failed = p is None and any(image.job is not None and image.job.failed_at for image in images)
        found[inspection_id][drop_id] = _Verdict(word or label, hit, p, word is not None, failed)
    return found


def _summaries(books: _Books) -> list[Line]:
    kept = {r.inspection_id: r for r in books.rows["inspection_summary"] if r.model_version_id == books.champion.id}
    wrong = []
    recount = _verdicts(books)
    for inspection_id, drops in recount.items():
        row = kept.get(inspection_id)
        counts = Counter(v.label for v in drops.values())
        scored = sum(v.p is not None for v in drops.values())
        numbers = (
            *(counts[str(c)] for c in CLASSES), sum(v.hit for v in drops.values()), len(drops), scored,
            sum(v.failed for v in drops.values()), sum(v.said for v in drops.values()),
        )  # fmt: skip
        stored = row and (row.n_clear, row.n_crystals, row.n_other, row.n_precipitate, row.hits, row.seen, row.scored,
                          row.failed, row.labelled)  # fmt: skip
        if stored != numbers:
            wrong.append(f"inspection {inspection_id}: {stored} instead of {numbers}")
    return [Line("plate summaries that equal a recount", len(recount), len(kept), _some(wrong))]


def _hits(books: _Books) -> list[Line]:
    """Drops that are hits at any inspection, against the rows of drops over time and of hits."""
    recount = {drop for drops in _verdicts(books).values() for drop, verdict in drops.items() if verdict.hit}
    mine = [row for row in books.rows["drop_summary"] if row.model_version_id == books.champion.id]
    over_time = {row.drop_id for row in mine if row.first_hit_inspection_id is not None}
    rows = Counter(row.drop_id for row in books.rows["hit"] if row.model_version_id == books.champion.id)
    wrong = [f"drop {drop}" for drop in sorted(recount ^ over_time)]
    unrecorded = [f"drop {drop} has no row" for drop in sorted(recount - rows.keys())]
    known = {d for drops in _verdicts(books).values() for d, v in drops.items() if v.p is not None or v.said}
    return [
        Line("drops over time = drops with a verdict", len(known), len({row.drop_id for row in mine})),
        Line("hits that equal a recount", len(recount), len(over_time), _some(wrong + unrecorded)),
        Line(f"hits recorded twice{FORBIDDEN}", 0, sum(n > 1 for n in rows.values())),
    ]


def _labels(lab: Lab, books: _Books) -> list[Line]:
    """Every label that the database took is one label; one it may have taken as the line broke is at most one."""
    inbox = [row for row in books.rows["label_inbox"] if row.person == PERSON]
    kept = Counter(row.labelled_at for row in books.rows["label"] if row.person == PERSON)
    unheard = [f"{row.plate} {row.well}: {row.state}, {row.reason}" for row in inbox if row.state != "resolved"]
    lost = [str(when) for when in lab.people.said if when not in kept]
    return [
        Line("labels in the inbox that are labels", len(inbox), kept.total(), _some(unheard)),
        Line("labels that were taken and are lost", 0, len(lost), _some(lost)),
        Line("labels that are there twice", 0, sum(n > 1 for n in kept.values())),
    ]


def _workers(lab: Lab, books: _Books) -> list[Line]:
    """A dead process's row goes after its time; nobody counts it as alive for longer than it may be silent."""
    now, alive = datetime.now(UTC), {process.pid for process in lab.processes if process.lives}
    dead = [row for row in books.rows["worker"] if row.pid not in alive]
    undead = [row.name for row in dead if row.seen_at > lab.calm_since + timedelta(seconds=ALIVE_S)]
    late = [row.name for row in books.rows["worker"] if row.seen_at < now - FORGOTTEN]
    runs = [f"run {row.id}" for row in books.rows["training_run"] if row.state == "running" and row.pid not in _pids()]
    return [
        Line("rows of dead processes beyond their time", 0, len(undead) + len(late), _some(undead + late)),
        Line(UNFINISHED, 0, len(runs), _some(runs)),
    ]


def _pids() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def probabilities(lab: Lab, sample: int) -> list[Line]:
    """Every score against the champion's own word on the image, and a sample of files scored directly from disk."""
    books = _read(lab)
    predictor = _champion(lab, books.champion)
    right = _predicted(predictor, photographs())
    intact = [image for image in _of(books, State.INTACT) if len(image.scores) == 1]
    off = [
        _distance(image.scores[0], right[image.truth.photograph or 0]) for image in intact if image.truth is not None
    ]
    chosen = lab.rng.sample(intact, min(sample, len(intact)))
    files = _predicted(predictor, [_bytes(lab, image) for image in chosen])
    from_disk = [_distance(image.scores[0], vector) for image, vector in zip(chosen, files, strict=True)]
    wrong = [f"{image.key}: off by {d:.2g}" for image, d in zip(intact, off, strict=True) if d > TOLERANCE]
    return [
        Line("probabilities as the champion gives them", len(intact), sum(d <= TOLERANCE for d in off), _some(wrong)),
        Line("of those, files scored directly", len(chosen), sum(d <= TOLERANCE for d in from_disk)),
    ]


def _champion(lab: Lab, version: Version) -> Predictor:
    return Registry(lab.db, lab.folder / "models").load(version, 4)


def _predicted(predictor: Predictor, files: Iterable[bytes]) -> np.ndarray[Any, Any]:
    prepared = [predictor.prepare(data) for data in files]
    parts = [predictor.predict(np.stack(prepared[n : n + 4])) for n in range(0, len(prepared), 4)]
    return predictor.fold(np.concatenate(parts)) if parts else np.zeros((0, 4))


def _distance(score: Any, vector: Any) -> float:
    stored = (score.p_clear, score.p_crystals, score.p_other, score.p_precipitate)
    return float(np.abs(np.asarray(stored) - vector).max())


def _bytes(lab: Lab, image: _Image) -> bytes:
    by_text: Callable[[Share], dict[str, str]] = cache(lambda share: {path_text(p): p for p in share.truth})
    for share in lab.shares:
        if image.key.startswith(f"{share.name}/"):
            with share.still() as home:
                return (home / by_text(share)[image.row.path]).read_bytes()
    raise AssertionError(image.key)

"""Few labels of a new imager: candidates that training makes of half of its drops, judged on the other half.

``MARCOD_REAL_PLATES`` names a folder with ``photographs/labels.csv`` (columns ``image``, ``label``, ``source``), and
``MARCOD_BUNDLES`` folders of bundles, apart by colons; by default the shipped one is used. Most drops of the imager are
thumbnails, and the few that are not are shrunk to their size, or size alone would tell crystals. Near-duplicates stay
in one half. Candidates come from ``training.candidate`` itself, which finds the features of all images cached.
"""

import csv
import io
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench import Bench
from benchmarks.photographs import BUNDLES, FOLDER
from benchmarks.tables import Cell, Spread, Table
from marcod.domain import CLASSES, CRYSTALS, DropClass, Split
from marcod.evaluate import gate, metrics
from marcod.evaluate.gate import GateResult
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.fitting import batches, checkpoint, steps
from marcod.model import bundle, network, registry
from marcod.model.bundle import BundleRecord
from marcod.settings import TrainSettings
from marcod.training import assess, candidate, committees, data, rehearsal, tiers
from marcod.training.calibrate import Calibrated
from marcod.training.candidate import CHAMPION, RENEWED, Candidate, TrainContext
from marcod.training.rehearsal import RehearsalSet
from marcod.training.snapshot import Item, Snapshot

IMAGER: Final = "LP-CDF"
"""The new imager: the beginning of the name of its source."""

HALVES: Final = 20
BASE: Final = 800
VALIDATION: Final = 0.2
ALIKE: Final = 0.8
"""Correlation of small grey images, less the imager's mean image, from which drops count as near-duplicates."""

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph: its file, class, and group of near-duplicates; ``new`` are the new imager's."""

    file: Path
    label: DropClass
    new: bool
    group: int


def run(bench: Bench) -> Iterator[Table]:
    """Each bundle as champion of a lab that gets the new imager."""
    folder = os.environ.get(FOLDER)
    if not folder:
        bench.say(f"labels: nothing measured; {FOLDER} must name the folder of the photographs")
        return
    shipped = registry.shipped_folder().joinpath(*registry.SHIPPED)
    rows: list[list[Cell]] = []
    with bench.place("labels") as place:
        photos = read(Path(folder) / "photographs", place / "photographs")
        labs: dict[str, Lab] = {}
        for number, path in enumerate(os.environ.get(BUNDLES, str(shipped)).split(":")):
            bench.say(f"labels: {path}")
            record = bundle.read(Path(path))
            if record.committee is not None:
                champion: Champion = CommitteeLab(record, [labs[m.digest] for m in record.committee.members])
            else:
                champion = labs[record.digest] = Lab(Path(path), photos, place / f"lab-{number}", bench.size(BASE, 100))
            rows.append(_judged(bench, champion))
    yield Table("Half of a new imager's labels", _about(photos, bench), COLUMNS, rows)


def read(folder: Path, place: Path) -> list[Photo]:
    """Copy the photographs, the new imager's all of one size, and group near-duplicates."""
    place.mkdir(parents=True)
    rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))
    contents = {row["image"]: (folder / row["image"]).read_bytes() for row in rows}
    own = [row for row in rows if row["source"].startswith(IMAGER)]
    (size, _), *_ = Counter(_size(contents[row["image"]]) for row in own).most_common(1)
    for row in own:
        if _size(contents[row["image"]]) != size:
            contents[row["image"]] = _shrunk(contents[row["image"]], size)
    for name, content in contents.items():
        (place / name).write_bytes(content)
    groups = dict(zip([row["image"] for row in own], _alike([contents[row["image"]] for row in own]), strict=True))
    return [
        Photo(place / row["image"], DropClass(row["label"]), row in own, groups.get(row["image"], -1)) for row in rows
    ]


def _size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def _shrunk(content: bytes, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB").resize(size, Image.Resampling.BOX)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _alike(contents: Sequence[bytes]) -> list[int]:
    """Number images so that near-duplicates, directly or through others, have one number."""
    grey = [Image.open(io.BytesIO(one)).convert("L").resize((40, 30), Image.Resampling.BOX) for one in contents]
    small = np.stack([np.asarray(one, np.float64).ravel() for one in grey])
    small -= small.mean(axis=1, keepdims=True)
    small -= small.mean(axis=0)
    small /= np.sqrt((small**2).mean(axis=1, keepdims=True)) + 1e-6
    alike = small @ small.T / small.shape[1] >= ALIKE
    numbers = np.arange(len(contents))
    for _ in contents:
        numbers = np.array([numbers[row].min() for row in alike])
    return [int(number) for number in numbers]


@dataclass(frozen=True)
class Trial:
    """A champion and the candidate of one half: their logits [n, 4] of all files, and how the candidate is read."""

    tier: str
    champion: BundleRecord
    before: Logits
    calibrated: Calibrated
    after: Logits


@dataclass(frozen=True)
class Lab:
    """A lab with a bundle as champion: the features of every image, once for all halves."""

    bundle: Path
    photos: list[Photo]
    folder: Path
    base_images: int

    @cached_property
    def parent(self) -> tuple[BundleRecord, dict[str, NDArray[np.float32]]]:
        return bundle.load_weights(self.bundle)

    @cached_property
    def settings(self) -> TrainSettings:
        return TrainSettings(folder=self.folder / "training", base_images=self.base_images)

    @cached_property
    def base(self) -> RehearsalSet:
        self.folder.mkdir(parents=True, exist_ok=True)
        return rehearsal.load(
            self.settings, self.parent[0], progress=lambda *step: None, stopped=lambda: False, processes=2
        )

    def context(self, folder: Path, snapshot: Snapshot) -> TrainContext:
        """What training gets to know."""
        folder.mkdir(parents=True, exist_ok=True)
        record, weights = self.parent
        return TrainContext(
            settings=self.settings, snapshot=snapshot, rehearsal_set=self.base, folder=folder, roots={},
            parent=record, parent_folder=self.bundle, parent_weights=weights, threads=2, stop=threading.Event(),
            progress=lambda *step: None,
        )  # fmt: skip

    @cached_property
    def files(self) -> list[Path]:
        return [*(photo.file for photo in self.photos), *(image.file for image in self.base.images)]

    @cached_property
    def trunks(self) -> dict[str, dict[str, NDArray[np.float32]]]:
        """The champion's trunk, and one with normalization for the new imager, from all its drops without labels."""
        every = self.context(self.folder / "all", taken([p for p in self.photos if p.new], [], 0))
        rows = data.training_set(every.snapshot, self.base, Split.TRAIN, {})
        seen = data.load(
            rows, every.preprocessing, every.folder / "train.npy",
            threads=2, progress=every.report, stopped=every.stop.is_set, what="",
        )  # fmt: skip
        return {CHAMPION: self.parent[1], RENEWED: candidate.renewed(every, seen)}

    @cached_property
    def features(self) -> dict[str, NDArray[np.float32]]:
        """Features of all files by trunk."""
        context = self.context(self.folder / "all", taken([], [], 0))
        pixels, wrong = batches.kept(self.files, context.preprocessing, self.folder / "all" / "all.npy", threads=2)
        if wrong:
            raise ValueError(f"cannot be read: {wrong}")
        return {
            name: data.extract(
                pixels, data.FeatureExtractor(context.architecture, weights), context.preprocessing,
                self.folder / "all" / f"all-{name}.npz", progress=context.report,
            )
            for name, weights in self.trunks.items()
        }  # fmt: skip

    @property
    def record(self) -> BundleRecord:
        return self.parent[0]

    def snapshot(self, taught: list[Photo], number: int) -> Snapshot:
        """Return the labels of a half as a data set, a fifth of the near-duplicates' groups to validate."""
        groups = sorted({photo.group for photo in taught})
        drawn = np.random.default_rng(number).permutation(groups)
        judging = set(drawn[: max(1, round(VALIDATION * len(groups)))].tolist())
        own = [photo for photo in taught if photo.group not in judging]
        return taken(own, [photo for photo in taught if photo.group in judging], number)

    def train(self, taught: list[Photo], number: int) -> Candidate:
        """Make a candidate as a training run does, with cached features."""
        snapshot = self.snapshot(taught, number)
        context = self.context(self.folder / f"half-{number}", snapshot)
        checkpoint.save_arrays(context.folder / "trunk.npz", self.trunks[RENEWED])
        place = {file: index for index, file in enumerate(self.files)}
        sides = {str(s): data.training_set(snapshot, self.base, s, {}).files for s in (Split.TRAIN, Split.VALIDATION)}
        sides["sample"] = tuple(photo.file for photo in taught)
        for name, found in self.features.items():
            for side, files in sides.items():
                chosen = found[[place[file] for file in files]]
                checkpoint.save_arrays(context.folder / f"{side}-{name}-features.npz", {"features": chosen})
        size = context.preprocessing.size
        made = candidate.train_candidate(
            context, tiers.tier_for(snapshot, self.settings), lambda: np.zeros((len(taught), size, size, 3), np.uint8)
        )
        shutil.rmtree(context.folder)
        return made

    def logits(self, weights: dict[str, NDArray[np.float32]]) -> Logits:
        """Logits of all files by weights that have one of the trunks."""
        changed = any(
            not np.array_equal(weights[n], v) for n, v in self.parent[1].items() if "/moving_" in n and n in weights
        )
        return steps.logits(self.features[RENEWED if changed else CHAMPION], network.head(weights))

    def try_half(self, taught: list[Photo], number: int) -> Trial:
        """Make a candidate of one half. Raises KeyError for photographs that the lab does not have."""
        made = self.train(taught, number)
        return Trial(made.tier, self.record, self.logits(self.parent[1]), made.calibrated, self.logits(made.weights))


@dataclass(frozen=True)
class CommitteeLab:
    """A lab whose champion is a committee of the networks of other labs, of which the last learns."""

    record: BundleRecord
    members: list[Lab]

    @property
    def learner(self) -> Lab:
        return self.members[-1]

    photos = property(lambda self: self.learner.photos)
    files = property(lambda self: self.learner.files)
    base = property(lambda self: self.learner.base)
    settings = property(lambda self: self.learner.settings)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """The members' probabilities of all files, float32 [n, members, 4]."""
        found = [_folded(m.record, m.logits(m.parent[1])) for m in self.members]
        return np.stack(found, axis=1).astype(np.float32)

    def try_half(self, taught: list[Photo], number: int) -> Trial:
        """Make a candidate of the member that learns, and the committee with it."""
        lab, rule = self.learner, self.record.committee
        assert rule is not None
        made = lab.train(taught, number)
        fitted = made.calibrated
        record = lab.record.model_copy(
            update={"name": "lab", "classes": fitted.classes, "folding": fitted.folding,
                    "temperature": fitted.temperature, "threshold": fitted.threshold}
        )  # fmt: skip
        after = self.scores.copy()
        after[:, -1] = _folded(record, lab.logits(made.weights))
        place = {file: index for index, file in enumerate(self.files)}
        rows = data.training_set(lab.snapshot(taught, number), self.base, Split.VALIDATION, {})
        chosen = [place[file] for file in rows.files]
        new, found = committees.refit(
            self.record, len(self.members) - 1, record, (self.scores[chosen], after[chosen]), rows, made,
            self.settings.recall,
        )  # fmt: skip
        return Trial(made.tier, self.record, rule.logits(self.scores), found, new.logits(after))


def _folded(record: BundleRecord, logits: Logits) -> NDArray[np.floating[Any]]:
    return Predictions((), logits.astype(np.float64), ()).folded(record)


Champion = Lab | CommitteeLab


def taken(own: Sequence[Photo], judging: Sequence[Photo], number: int) -> Snapshot:
    """A data set of a training and a validation side; a group of near-duplicates is a plate."""
    sides = [(photo, Split.TRAIN) for photo in own] + [(photo, Split.VALIDATION) for photo in judging]
    items = tuple(
        Item(
            image_id=i, drop_id=i, inspection_id=1, source=IMAGER, imager=IMAGER, plate_key=str(photo.group), well="A1",
            drop_number=1, path=photo.file.name, root=str(photo.file.parent), content_hash=str(i), label=photo.label,
            shares=tuple(float(photo.label is c) for c in CLASSES), persons={"author": photo.label}, side=side,
            weight=1.0, stream=None, inclusion=None,
        )
        for i, (photo, side) in enumerate(sides)
    )  # fmt: skip
    return Snapshot(datetime.now(UTC), None, "visible", items, (), (), (), f"half {number}", "")


def halves(photos: Sequence[Photo], seed: int) -> tuple[list[Photo], list[Photo]]:
    """Draw halves with as many drops of each class in both as whole groups of near-duplicates allow."""
    rng = np.random.default_rng(seed)
    sides: tuple[list[Photo], list[Photo]] = ([], [])
    counts = [Counter[DropClass](), Counter[DropClass]()]
    groups: dict[int, list[Photo]] = {}
    for photo in photos:
        groups.setdefault(photo.group, []).append(photo)
    numbers = sorted(groups)
    # The large ones first, since the small ones can make up for them.
    for number in sorted(rng.permutation(numbers).tolist(), key=lambda n: -len(groups[n])):
        of_class = Counter(photo.label for photo in groups[number])
        behind = [sum(counts[side][label] for label in of_class) for side in (0, 1)]
        side = int(rng.integers(2)) if behind[0] == behind[1] else int(behind[0] > behind[1])
        sides[side].extend(groups[number])
        counts[side].update(of_class)
    return sides


@dataclass(frozen=True, slots=True)
class Judged:
    """Accuracy and crystal AUC of champion and candidate, by part: the other half, other sources, rendered drops."""

    tier: str
    values: dict[str, tuple[float, float]]
    verdict: GateResult


PARTS: Final = ("half", "others", "base")
COLUMNS: Final = [
    "champion", "tiers", "accuracy", "accuracy after", "crystal AUC", "crystal AUC after",
    "others: accuracy", "others: accuracy after", "others: crystal AUC", "others: crystal AUC after",
    "rendered: accuracy", "rendered: accuracy after", "within the margin",
]  # fmt: skip


def _judge(lab: Champion, made: Trial, half: Sequence[Photo], rules: gate.Rules) -> Judged:
    record, fitted = made.champion, made.calibrated
    update = {"classes": fitted.classes, "folding": fitted.folding, "temperature": fitted.temperature,
              "threshold": fitted.threshold}  # fmt: skip
    both = [(record, made.before), (record.model_copy(update=update), made.after)]
    place = {file: index for index, file in enumerate(lab.files)}
    labelled = [
        *(_labelled(p.file, p.label, IMAGER, str(p.group)) for p in half),
        *(_labelled(p.file, p.label, "others", p.file.name) for p in lab.photos if not p.new),
        *(replace(image, own=None) for image in lab.base.side(Split.TEST)),
    ]
    rows = [place[image.file] for image in labelled]
    given = [(r, Predictions(tuple(labelled), logits[rows].astype(np.float64), ())) for r, logits in both]
    labels = np.array([CLASSES.index(image.label) for image in labelled])
    parts = np.array([{IMAGER: "half", "others": "others"}.get(image.imager, "base") for image in labelled])
    values = {}
    for part in PARTS:
        chosen = parts == part
        for when, (r, found) in zip(("before", "after"), given, strict=True):
            scores = found.folded(r)[chosen]
            accuracy = float((scores.argmax(axis=1) == labels[chosen]).mean())
            odds = steps.crystal_odds(found.logits[chosen])
            values[f"{part} {when}"] = (accuracy, metrics.auc(odds, labels[chosen] == CRYSTALS) or 0.0)
    return Judged(made.tier, values, gate.judge(given[0], given[1], rules))


def _labelled(file: Path, label: DropClass, imager: str, group: str) -> Labelled:
    return Labelled(file, label, imager, imager, file.name, "1", str(file), f"{imager}/{group}")


def _judged(bench: Bench, lab: Champion) -> list[Cell]:
    found = []
    for number in range(bench.size(HALVES, 1)):
        taught, half = halves([photo for photo in lab.photos if photo.new], number)
        made = lab.try_half(taught, number)
        rules = replace(assess.rules_of(lab.settings, made.tier), min_crystals=0, min_drops=0, min_plates=0)
        found.append(_judge(lab, made, half, rules))
        bench.say(f"half {number}: {made.tier}, {_numbers(found[-1])}; {'; '.join(found[-1].verdict.reasons)}")
    tiers_taken = Counter(one.tier for one in found)
    cells: list[Cell] = [
        f"{lab.record.name}:{lab.record.version}",
        ", ".join(f"{n} {t}" for t, n in tiers_taken.items()),
    ]
    for part, measures in (("half", (0, 1)), ("others", (0, 1)), ("base", (0,))):
        for measure in measures:
            cells += [_spread([one.values[f"{part} {when}"][measure] for one in found]) for when in ("before", "after")]
    kept = [
        all(check.passed for check in one.verdict.checks if check.name in ("imager others", "imager base"))
        for one in found
    ]
    return [*cells, f"{sum(kept)} of {len(kept)}"]


def _spread(values: Sequence[float]) -> Spread:
    return Spread.of(round(value, 3) for value in values)


def _numbers(one: Judged) -> str:
    return ", ".join(f"{name} {accuracy:.3f} {area:.3f}" for name, (accuracy, area) in one.values.items())


def _about(photos: Sequence[Photo], bench: Bench) -> str:
    new = [photo for photo in photos if photo.new]
    counts = Counter(str(photo.label) for photo in new)
    classes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    groups = len({photo.group for photo in new})
    return (
        f"{len(new)} drops of {IMAGER} ({classes}; {groups} groups of near-duplicates), {bench.size(HALVES, 1)} random "
        f"halves with as many of each class; a fifth of the groups in the half that teaches only validate. Median, "
        f"lowest and highest. Others: {len(photos) - len(new)} photographs of other sources, which taught nothing. "
        f"Rendered: the test side of the base set of {bench.size(BASE, 100)}. Within the margin: the gate's checks of "
        "others and of the base set. Normalization was re-estimated once, on the imager's drops of both halves without "
        "their labels."
    )

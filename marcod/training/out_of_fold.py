"""Likely label errors by out-of-fold linear heads on the champion's features.

A label is judged only by heads that did not learn from its plate. A person decides; nothing is changed. Confident
learning, arXiv 1911.00068.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, Split
from marcod.errors import MarcodError
from marcod.evaluate import label_issues, predictions
from marcod.evaluate.label_issues import LabelIssues
from marcod.fitting import adapt
from marcod.fitting.adapt import Features
from marcod.model import bundle, families, network, preprocess
from marcod.model.predictor import NetworkPredictor
from marcod.training import data
from marcod.training.data import TrainingSet
from marcod.training.rehearsal import NOTHING
from marcod.training.snapshot import Item, Snapshot

FOLDS: Final = 5
BATCH: Final = 16


@dataclass(frozen=True)
class SnapshotIssues:
    """Label issues of a snapshot: suspect ``s`` is ``items[s.index]``. ``unreadable`` names what was left out."""

    issues: LabelIssues
    items: tuple[Item, ...]
    unreadable: tuple[str, ...]


def find_issues(rows: TrainingSet, seen: Features, seed: int) -> LabelIssues | None:
    """Find issues in the lab's labels; the rehearsal set teaches every fold. None with labels on one plate only.

    Features are standardized by imager and the layer starts from zeros: what the champion makes of an imager that it
    does not know must not decide which labels are wrong.
    """
    lab = np.flatnonzero(rows.is_lab)
    plates = [rows.plates[i] for i in lab]
    if len(set(plates)) < 2:
        return None
    of_fold = np.full(len(rows), -1, np.intp)
    of_fold[lab] = label_issues.folds(plates, FOLDS)
    features = adapt.standardized(seen.features, rows.domains)
    weights = adapt.balanced(seen.targets, seen.weights, rows.is_lab)
    start = np.zeros((features.shape[1], len(CLASSES)), np.float32), np.zeros(len(CLASSES), np.float32)
    scores = adapt.out_of_fold(Features(features, seen.targets, weights), of_fold, start, seed)[lab]
    return label_issues.find(scores, rows.labels[lab], [rows.persons[i] for i in lab], rows.weights[lab])


def find(
    snapshot: Snapshot,
    folder: Path,
    roots: Mapping[str, Path],
    *,
    threads: int,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> SnapshotIssues:
    """Find issues in every label of a snapshot, whatever its side, with the bundle in ``folder``.

    Raises MarcodError when there are labels on one plate only, BundleError for the bundle.
    """
    items = [item for side in Split for item in snapshot.side(side)]
    rows = reduce(TrainingSet.and_, (data.training_set(snapshot, NOTHING, side, roots) for side in Split))
    features, unreadable = _features(rows, folder, threads, done)
    kept = np.array([i for i in range(len(rows)) if i not in unreadable], np.intp)
    known = rows.only(kept)
    found = find_issues(known, Features(features, known.targets, known.weights), seed) if len(known) else None
    if found is None:
        raise MarcodError("labels on one plate cannot be compared with others; label drops of more plates")
    texts = tuple(f"{rows.files[i]}: {text}" for i, text in unreadable.items())
    return SnapshotIssues(found, tuple(items[i] for i in kept), texts)


def _features(
    rows: TrainingSet, folder: Path, threads: int, done: Callable[[int], None]
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Extract features as in scoring; return them and the error of each unreadable image by index."""
    record, weights = bundle.load_weights(folder)
    # A network that looks at whole images learns from their central squares too.
    central = record.model_copy(update={"preprocessing": preprocess.central(record.preprocessing)})
    predictor = NetworkPredictor(central, weights, BATCH)
    describe = network.compiled_features(families.architecture(record.architecture), weights, BATCH)
    found: list[NDArray[np.float32]] = []
    unreadable: dict[int, str] = {}
    for batch in predictions.prepared(rows.files, range(len(rows)), predictor, threads):
        pixels = [outcome for outcome in batch.values() if not isinstance(outcome, str)]
        unreadable |= {i: outcome for i, outcome in batch.items() if isinstance(outcome, str)}
        if pixels:
            found.append(describe(np.stack(pixels)))
        done(sum(len(part) for part in found) + len(unreadable))
    width = len(network.head(weights)[0])
    return np.concatenate(found) if found else np.zeros((0, width), np.float32), unreadable

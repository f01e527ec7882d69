"""Label issues by confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068).

The caller must give out-of-fold probabilities, with the folds of :func:`folds`: a model must not have seen the label it
judges. A model is confident of a class where its probability is at least the mean probability of the rows with that
label, so a timid model and a rare class have their own measure. A row is a suspect if its label is not the class the
model is confident of. About half of such suspects proved wrong in ten published test sets (Northcutt, Athalye and
Mueller, arXiv 2103.14749): a person has to look, and nothing is changed here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, DropClass, path_text
from marcod.evaluate.metrics import clopper_pearson, confusion

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_UNSURE: Final = -1


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """Row whose label a model doubts; ``index`` is its place in the input.

    ``probabilities`` are in the order of ``domain.CLASSES``. ``margin`` is the label's probability less the highest of
    the others, from -1, the worst, to 1.
    """

    index: int
    given: DropClass
    likely: DropClass
    probabilities: tuple[float, ...]
    margin: float


@dataclass(frozen=True, slots=True)
class PersonNoise:
    """Comparison of one person's labels with the model.

    ``labels`` counts the labels, ``judged`` those where the model is confident of a class. ``table`` counts the judged
    labels; rows are the given class, columns the likely one, both in the order of ``domain.CLASSES``.
    ``interval`` holds the share of doubted labels with 95 % confidence (Clopper and Pearson), as if every label were of
    another drop; None where nothing was judged, as is ``share``.
    """

    person: str
    labels: int
    judged: int
    share: float | None
    interval: tuple[float, float] | None
    table: tuple[tuple[int, ...], ...]

    @property
    def confused(self) -> tuple[DropClass, DropClass] | None:
        """The pair of classes confused most often, first the one labelled more often than it is likely."""
        counts = np.array(self.table)
        np.fill_diagonal(counts, 0)
        if not counts.any():
            return None
        given, likely = np.unravel_index(int((counts + counts.T).argmax()), counts.shape)
        if counts[likely, given] > counts[given, likely]:
            given, likely = likely, given
        return CLASSES[given], CLASSES[likely]

    @property
    def swapped(self) -> bool:
        """True if most labels of either class of the pair are likely the other: a mix-up, not a habit."""
        if self.confused is None:
            return False
        one, other = (CLASSES.index(drop_class) for drop_class in self.confused)
        counts = np.array(self.table)
        return all(2 * counts[a, b] > counts[a].sum() for a, b in ((one, other), (other, one)))


@dataclass(frozen=True, slots=True)
class LabelIssues:
    """Rows to look at, the most doubtful first; number of confident rows; and the noise of the labels.

    ``noise`` is the estimated share of wrong labels among all rows, also those of which the model is not confident.
    """

    suspects: tuple[LabelIssue, ...]
    judged: int
    noise: float
    by_person: tuple[PersonNoise, ...]


def folds(plates: Sequence[str], k: int) -> NDArray[np.intp]:
    """Assign each row a fold from 0 to k - 1 by its plate, int [n].

    The same plates always get the same folds, whatever their order; no fold is empty while there are k plates.
    """
    order = sorted(set(plates), key=lambda plate: hashlib.sha256(f"fold\x00{path_text(plate)}".encode()).digest())
    of_plate = {plate: rank % k for rank, plate in enumerate(order)}
    return np.array([of_plate[plate] for plate in plates], np.intp)


def find(
    probabilities: Floats, labels: Ints, persons: Sequence[Mapping[str, DropClass]], weights: Floats | None = None
) -> LabelIssues:
    """Find label issues by out-of-fold probabilities.

    ``probabilities`` are float [n, 4] in the order of ``domain.CLASSES``, ``labels`` indices into it, int [n],
    ``persons`` each person's label of a row, and ``weights`` the weight of a row, float [n]; n is at least 1.
    """
    counted = np.ones(len(labels)) if weights is None else weights
    confident = _confident(probabilities, labels, counted)
    doubted = np.flatnonzero((confident != _UNSURE) & (confident != labels))
    margins = _margins(probabilities, labels)
    order = doubted[np.argsort(margins[doubted], kind="stable")]
    return LabelIssues(
        suspects=tuple(_suspect(i, probabilities, labels, confident, margins) for i in order.tolist()),
        judged=int((confident != _UNSURE).sum()),
        noise=_noise(labels, confident, counted),
        by_person=tuple(_person(name, persons, confident) for name in sorted({p for row in persons for p in row})),
    )


def _confident(probabilities: Floats, labels: Ints, weights: Floats) -> NDArray[np.intp]:
    """Return the likeliest of the classes that reach their thresholds, int [n]; -1 where none does."""
    thresholds = np.full(len(CLASSES), np.inf)
    for c in range(len(CLASSES)):
        of_class = labels == c
        if weights[of_class].sum() > 0:
            thresholds[c] = np.average(probabilities[of_class, c], weights=weights[of_class])
    reached = probabilities >= thresholds
    likeliest = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), likeliest, _UNSURE)


def _margins(probabilities: Floats, labels: Ints) -> Floats:
    """Return the label's probability less the highest of the others, float [n]."""
    rows = np.arange(len(labels))
    others = probabilities.astype(np.float64)
    others[rows, labels] = -np.inf
    return np.asarray(probabilities[rows, labels] - others.max(axis=1))


def _noise(labels: Ints, confident: Ints, weights: Floats) -> float:
    """Estimate the share of wrong labels by the confident joint, each label scaled to its frequency."""
    wrong = 0.0
    for c in range(len(CLASSES)):
        given = labels == c
        judged = given & (confident != _UNSURE)
        if weights[judged].sum() > 0:
            wrong += weights[given].sum() * weights[judged & (confident != c)].sum() / weights[judged].sum()
    return float(wrong / weights.sum())


def _suspect(i: int, probabilities: Floats, labels: Ints, confident: Ints, margins: Floats) -> LabelIssue:
    shown = tuple(probabilities[i].tolist())
    return LabelIssue(i, CLASSES[labels[i]], CLASSES[confident[i]], shown, float(margins[i]))


def _person(name: str, persons: Sequence[Mapping[str, DropClass]], confident: Ints) -> PersonNoise:
    rows = [i for i, row in enumerate(persons) if name in row]
    given, likely = np.array([CLASSES.index(persons[i][name]) for i in rows], np.intp), confident[rows]
    sure = likely != _UNSURE
    table = confusion(given[sure], likely[sure], len(CLASSES))
    judged = int(table.sum())
    wrong = judged - int(table.trace())
    return PersonNoise(
        person=name,
        labels=len(rows),
        judged=judged,
        share=wrong / judged if judged else None,
        interval=clopper_pearson(wrong, judged),
        table=tuple(map(tuple, table.tolist())),
    )

"""Training data: the lab's labelled images and the rehearsal set (``train.base``), ready for a network.

Guarantees:

* Only the training and the validation side are loaded here.
* The same run finds the same rows after a kill.
* An unreadable image is named and left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, DropClass, Split
from marcod.errors import MarcodError
from marcod.evaluate.labelled import Labelled
from marcod.fitting import adapt, batches, checkpoint, packs
from marcod.fitting.fit import Progress
from marcod.fitting.packs import Pack
from marcod.fitting.recipes import LARGE
from marcod.model import network
from marcod.model.architecture import Architecture
from marcod.model.parts import Scoring
from marcod.model.preprocess import Preprocessing
from marcod.training.rehearsal import SOURCE, RehearsalSet
from marcod.training.snapshot import Item, Snapshot

KEPT_LARGE: Final = 1.2
"""Less is kept around the input of a large network: a kept image of 719 pixels takes 1.5 MB."""

MOST_UNREADABLE: Final = 0.05
"""Share of images that were there when the labels were taken and may be gone now."""

FEW_UNREADABLE: Final = 3

ACTIVE: Final = frozenset({"threshold", "disagreement"})
"""Review streams that choose drops by the model's scores; a recall measured on them is not the lab's."""

EXTRACT_BATCH: Final = 16
"""Images whose features are taken at once."""

Flips = tuple[tuple[int, int], ...]
UPRIGHT: Final[Flips] = ((1, 1),)
FLIPS: Final[Flips] = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class TrainingSet:
    """Rows of one side: file, class index, soft label, weight, domain (source or rehearsal set) and plate.

    ``hashes`` are the files' SHA-256, empty where they are not known. ``is_lab`` marks the lab's images, ``chosen``
    those that people saw because of the model's own scores; ``persons`` has each person's label.
    """

    files: tuple[Path, ...]
    hashes: tuple[str, ...]
    labels: NDArray[np.intp]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    domains: tuple[str, ...]
    plates: tuple[str, ...]
    drops: tuple[str, ...]
    chosen: NDArray[np.bool_]
    persons: tuple[Mapping[str, DropClass], ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def is_lab(self) -> NDArray[np.bool_]:
        """The mask of the lab's own rows, bool [n]."""
        return np.array([domain != SOURCE for domain in self.domains], bool)

    def only(self, kept: NDArray[Any]) -> "TrainingSet":
        """Select rows by index."""
        return TrainingSet(*(_rows(getattr(self, column.name), kept) for column in fields(self)))

    def some(self, count: int, seed: int) -> "TrainingSet":
        """Draw ``count`` rows at random, and keep their order."""
        if len(self) <= count:
            return self
        return self.only(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def and_(self, other: "TrainingSet") -> "TrainingSet":
        """Append other rows."""
        return TrainingSet(*(_joined(getattr(self, c.name), getattr(other, c.name)) for c in fields(self)))


def _rows(column: Any, kept: NDArray[Any]) -> Any:
    return column[kept] if isinstance(column, np.ndarray) else tuple(column[i] for i in kept)


def _joined(first: Any, second: Any) -> Any:
    return np.concatenate([first, second]) if isinstance(first, np.ndarray) else first + second


def training_set(
    snapshot: Snapshot, rehearsal_set: RehearsalSet, side: Split, roots: Mapping[str, Path]
) -> TrainingSet:
    """List the lab's images of a side, then the rehearsal set's."""
    own, others = snapshot.side(side), rehearsal_set.side(side)
    classes = [CLASSES.index(label) for label in (*(i.label for i in own), *(p.label for p in others))]
    certain = batches.one_hot(np.array(classes[len(own) :], np.intp), len(CLASSES))
    soft = np.array([item.shares for item in own], np.float32).reshape(-1, len(CLASSES))
    return TrainingSet(
        files=(*(file_of(item, roots) for item in own), *(image.file for image in others)),
        hashes=(*(item.content_hash for item in own), *("" for _ in others)),
        labels=np.array(classes, np.intp),
        targets=np.concatenate([soft, certain]),
        weights=np.array([item.weight for item in own] + [1.0] * len(others), np.float32),
        domains=(*(item.source for item in own), *(SOURCE for _ in others)),
        plates=(*(f"{item.source}/{item.plate_key}" for item in own), *(p.group for p in others)),
        drops=(*(str(item.drop_id) for item in own), *(p.drop for p in others)),
        chosen=np.array([item.stream in ACTIVE for item in own] + [False] * len(others), bool),
        persons=(*(item.persons for item in own), *({} for _ in others)),
    )


def file_of(item: Item, roots: Mapping[str, Path]) -> Path:
    """Return the path of a snapshot's image on this host."""
    return roots.get(item.source, Path(item.root)) / item.path


def tested(snapshot: Snapshot, rehearsal_set: RehearsalSet, roots: Mapping[str, Path]) -> tuple[Labelled, ...]:
    """List the test side for the gate, without drops that people were shown because of the champion's score.

    On those the champion looks bad by choice, and any other model better than it is.
    """
    own = [_tested(item, roots) for item in own_tested(snapshot)]
    return (*own, *(replace(image, own=None) for image in rehearsal_set.side(Split.TEST)))


def own_tested(snapshot: Snapshot) -> tuple[Item, ...]:
    """List the lab's own images of :func:`tested`."""
    return tuple(item for item in snapshot.side(Split.TEST) if item.stream not in ACTIVE)


def _tested(item: Item, roots: Mapping[str, Path]) -> Labelled:
    return Labelled(
        file=file_of(item, roots),
        label=item.label,
        source=item.source,
        imager=item.imager,
        drop=str(item.drop_id),
        inspection=str(item.inspection_id),
        unit=f"drop {item.drop_id} at {item.inspection_id}, {item.label}",
        group=f"{item.source}/{item.plate_key}",
    )


def for_patches(record: Preprocessing) -> Preprocessing:
    """Return how images are kept that patches are cut from: larger than they are scored."""
    return replace(record, size=round(record.size * (batches.KEPT_SHARE if record.size <= LARGE else KEPT_LARGE)))


@dataclass(frozen=True)
class LoadedSet:
    """Readable rows of one side, with their kept pixels uint8 [n, side, side, 3]."""

    rows: TrainingSet
    pixels: NDArray[np.uint8]
    unreadable: tuple[str, ...]

    @property
    def place(self) -> Path:
        """The file that the pixels are read from."""
        assert isinstance(self.pixels, np.memmap)
        return Path(str(self.pixels.filename))


def load(
    wanted: TrainingSet,
    how: Preprocessing,
    place: Path,
    *,
    threads: int,
    progress: Progress,
    stopped: Callable[[], bool],
    what: str,
    pack: Path | None = None,
) -> LoadedSet:
    """Read the images of a side once and keep them at ``place``, those in a ``pack`` from there.

    Raises InterruptedError when stopped, and MarcodError for a damaged pack.
    """
    if not len(wanted):
        return LoadedSet(wanted, np.zeros((0, how.size, how.size, 3), np.uint8), ())
    packed = None if pack is None else Pack(packs.folder_of(pack, how))
    pixels, wrong = batches.kept(
        wanted.files, how, place,
        threads=threads, done=lambda done: progress(what, done, len(wanted)), stopped=stopped,
        packed=lambda index: None if packed is None else packed.read(wanted.hashes[index]),
    )  # fmt: skip
    if not wrong:
        return LoadedSet(wanted, pixels, ())
    if len(wrong) > max(FEW_UNREADABLE, MOST_UNREADABLE * len(wanted)):
        place.unlink()
        first = next(iter(wrong))
        raise MarcodError(
            f"{len(wrong)} of {len(wanted)} images cannot be read, such as {wanted.files[first]}: {wrong[first]}; "
            "is a share offline? The next `marcod retrain` starts again"
        )
    good = np.array([i for i in range(len(wanted)) if i not in wrong], np.intp)
    unreadable = tuple(f"{wanted.files[i]}: {text}" for i, text in wrong.items())
    return LoadedSet(wanted.only(good), _only(pixels, good, place.with_suffix(".good.npy")), unreadable)


def _only(pixels: NDArray[np.uint8], kept: NDArray[np.intp], place: Path) -> NDArray[np.uint8]:
    """Copy some of the images to a file, since as an array they might not fit into memory."""
    found = np.lib.format.open_memmap(place, mode="w+", dtype=np.uint8, shape=(len(kept), *pixels.shape[1:]))
    for target, source in enumerate(kept):
        found[target] = pixels[source]
    found.flush()
    return found


class FeatureExtractor:
    """Network without its last layer, compiled at its first image and used for all later ones."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._architecture, self._weights = architecture, weights
        self.features = len(network.head(weights)[0])

    @cached_property
    def extract(self) -> Scoring:
        """The compiled network up to its last layer, in batches of :data:`EXTRACT_BATCH`."""
        return network.compiled_features(self._architecture, self._weights, EXTRACT_BATCH)


def extract_features(
    material: LoadedSet,
    extractor: FeatureExtractor,
    record: Preprocessing,
    place: Path,
    *,
    flips: Flips,
    progress: Progress,
) -> adapt.Features:
    """Extract features of all images and flips as :func:`extract` does, with the labels of the rows."""
    targets, given = np.tile(material.rows.targets, (len(flips), 1)), np.tile(material.rows.weights, len(flips))
    found = extract(material.pixels, extractor, record, place, flips=flips, progress=progress)
    return adapt.Features(found, targets, given)


def extract(
    pixels: NDArray[np.uint8],
    extractor: FeatureExtractor,
    record: Preprocessing,
    place: Path,
    *,
    flips: Flips = UPRIGHT,
    progress: Progress,
) -> NDArray[np.float32]:
    """Extract features of loaded images and flips, one flip of all after another; cache them at ``place``.

    ``progress`` is called with steps done, and may raise to end it.
    """
    if place.exists():
        with np.load(place, allow_pickle=False) as archive:
            return np.asarray(archive["features"])
    found: list[NDArray[np.float32]] = []
    for number, (down, across) in enumerate(flips):
        for start in range(0, len(pixels), EXTRACT_BATCH):
            part = pixels[start : start + EXTRACT_BATCH, ::down, ::across]
            found.append(extractor.extract(batches.prepared(part, record)))
            progress("looking at the images", number * len(pixels) + start + len(part), len(flips) * len(pixels))
    features = np.concatenate(found) if found else np.zeros((0, extractor.features), np.float32)
    checkpoint.save_arrays(place, {"features": features})
    return features

"""Rehearsal set (``train.base``): labelled images that a model must still know after learning a lab's own.

They are a folder that the lab names, or drops rendered once and kept. An image stays on its side for ever, and
rendered ones follow from their seeds.
"""

import csv
import hashlib
import multiprocessing
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from marcod import files, synthetic
from marcod.domain import Modality, Split, split_of
from marcod.errors import ConfigError, MarcodError, os_reason
from marcod.evaluate import labelled
from marcod.evaluate.labelled import Labelled
from marcod.model.bundle import BundleRecord
from marcod.settings import TrainSettings
from marcod.text import count

IMAGER: Final = "base"
SOURCE: Final = ""
"""The base set among the sources; a lab's source has a name, which may be `base`."""

FIRST_SEED: Final = 5_000_000
"""Far from the seeds that the shipped bundle was trained, chosen and tested with."""

LIST: Final = "labels.csv"


@dataclass(frozen=True)
class RehearsalSet:
    """Labelled images with an imager of their own; ``about`` describes the set for people and for the record."""

    about: str
    synthetic: bool
    images: tuple[Labelled, ...]

    def side(self, split: Split) -> tuple[Labelled, ...]:
        """List the images of one side, by the drop's plate where the list names it, else by the image."""
        return tuple(p for p in self.images if split_of(IMAGER, p.group) is split)


NOTHING: Final = RehearsalSet("nothing", False, ())


def wanted(settings: TrainSettings, parent: BundleRecord) -> str:
    """Return the kind of rehearsal set of a training from ``parent``: ``folder``, ``rendered`` or ``none``.

    Drops are rendered as in visible light, and a model of any family can learn from them.
    """
    if settings.base_folder is not None:
        return "folder"
    if settings.base == "auto":
        return "rendered" if parent.modality == Modality.VISIBLE else "none"
    return settings.base


def about(settings: TrainSettings, parent: BundleRecord) -> str:
    """Identify the rehearsal set of a training, so that another list is noticed. Raises ConfigError."""
    kind = wanted(settings, parent)
    if kind == "folder":
        assert settings.base_folder is not None
        try:
            return hashlib.sha256((settings.base_folder / LIST).read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"train.base_folder: {settings.base_folder / LIST}: {error.strerror}") from error
    return f"{kind}, {settings.base_images}"


def load(
    settings: TrainSettings,
    parent: BundleRecord,
    *,
    progress: Callable[[str, int, int], None],
    stopped: Callable[[], bool],
    processes: int,
    known: Collection[str] = (),
) -> RehearsalSet:
    """Load the configured rehearsal set without files whose SHA-256 is in ``known``, the lab's own labelled ones.

    Raises ConfigError for a list that cannot be read, InterruptedError when stopped.
    """
    kind = wanted(settings, parent)
    if kind == "none":
        return NOTHING
    if kind == "folder":
        assert settings.base_folder is not None
        found = _listed(settings.base_folder, parent, settings)
        # The same file might be on the lab's test side, and would be learned by heart.
        other = tuple(p for p in found.images if hashlib.sha256(p.file.read_bytes()).hexdigest() not in known)
        return replace(found, images=other)
    folder = settings.folder / "base" / f"rendered-{settings.base_images}"
    _render(folder, settings.base_images, progress, stopped, processes)
    found = _listed(folder, parent, settings)
    return replace(
        found, about=f"{count(settings.base_images, 'rendered drop')}, seeds from {FIRST_SEED}", synthetic=True
    )


def _listed(folder: Path, parent: BundleRecord, settings: TrainSettings) -> RehearsalSet:
    """Choose ``base_images`` of the images in a list, the same ones each time."""
    given = labelled.from_csv(folder / LIST, folder, parent).images
    order = np.random.default_rng(settings.seed).permutation(len(given))[: settings.base_images]
    chosen = tuple(replace(given[i], source=SOURCE, imager=IMAGER) for i in sorted(order))
    digest = hashlib.sha256((folder / LIST).read_bytes()).hexdigest()
    return RehearsalSet(f"{len(chosen)} of {len(given)} images in {folder}, list {digest[:12]}", False, chosen)


def _render(
    folder: Path, count: int, progress: Callable[[str, int, int], None], stopped: Callable[[], bool], processes: int
) -> None:
    """Render drops into a folder; the list is written last, so that a folder with a list is complete."""
    if (folder / LIST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(folder, number) for number in range(count)]
    rows = []
    # Spawned, since a fork of a process that runs TensorFlow may hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, row in enumerate(pool.imap(_draw, tasks, chunksize=8), start=1):
            if stopped():
                raise InterruptedError
            rows.append(row)
            progress("rendering the base set", done, count)
    with files.replacing(folder / LIST) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("image", "label"), *rows])


def _draw(task: tuple[Path, int]) -> tuple[str, str]:
    folder, number = task
    name = f"synthetic-{number:06d}.jpg"
    try:
        data, label = synthetic.drop_jpeg(FIRST_SEED + number)
        (folder / name).write_bytes(data)
    except OSError as error:
        raise MarcodError(f"cannot write the base set to {folder}: {os_reason(error)}") from error
    return name, str(label)

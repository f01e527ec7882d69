"""A lab whose imager no shipped model has seen, with the truth about every drop: for benchmarks of the learning loop.

Everything in it is synthetic: :func:`marcod.synthetic.another_imager` says how its images differ.
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from marcod import layouts
from marcod.domain import CLASSES, DropClass, ImageKind, Split, split_of
from marcod.settings.environment import child_environment
from marcod.synthetic import ImagerStyle, PlannedFile, PlateSpec, another_imager, plate_files, write_file

SOURCE: Final = "new-imager"
SIZE: Final = (408, 342)
SET_AT: Final = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
AGE_D: Final = 21
"""The drops were set so long before their only inspection, so that what grows has grown."""

_NEVER_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Drop:
    """One drop of the lab: its plate, its well, its image below the source's root, and what it truly shows."""

    plate: str
    well: str
    path: str
    truth: DropClass


@dataclass(frozen=True, slots=True)
class Called:
    """What a command printed, how it ended, and how long it took in seconds."""

    output: str
    code: int
    seconds: float


class Lab:
    """One installation in ``folder`` with its own SQLite database and models."""

    def __init__(self, folder: Path, *, seed: int, **train: Any) -> None:
        self.folder, self.seed = folder, seed
        self.root = folder / "export"
        self.root.mkdir(parents=True)
        self.url = f"sqlite:///{folder / 'marcod.sqlite'}"
        self.config = folder / "marcod.toml"
        chosen = {"seed": seed, "folder": str(folder / "training")} | train
        lines = [
            f'store.url = "{self.url}"', f'models.folder = "{folder / "models"}"', "watch.settle_s = 0.2", "",
            "[train]", *(f"{name} = {json.dumps(value)}" for name, value in chosen.items()),
            "", f"[sources.{SOURCE}]", f'root = "{self.root}"', 'layout = "rigaku"',
        ]  # fmt: skip
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def deliver(self, first: int, count: int, share: float, hit_rate: float = 0.5) -> list[Drop]:
        """Write so many plates, a share of their wells filled; returns their drops."""
        planned = [file for key in self._keys(first, count) for file in self._plate(key, share, hit_rate)]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write, [self.root] * len(planned), planned, chunksize=8))
        return [_drop(file) for file in planned]

    def _keys(self, first: int, count: int) -> list[int]:
        """Numbers of plates of which one in five is a test plate and one in five validates, as of many plates."""
        found: list[int] = []
        turns = (Split.TRAIN, Split.TEST, Split.TRAIN, Split.VALIDATION, Split.TRAIN)
        number = 100_000 * self.seed + first
        while len(found) < count:
            if split_of(SOURCE, _key(number)) is turns[len(found) % len(turns)]:
                found.append(number)
            number += 1
        return found

    def _plate(self, number: int, share: float, hit_rate: float) -> list[PlannedFile]:
        spec = PlateSpec(
            ImagerStyle.RIGAKU, _key(number), (SET_AT + timedelta(days=AGE_D),),
            seed=number, filled=share, hit_rate=hit_rate, set_at=SET_AT,
        )  # fmt: skip
        files = plate_files(spec, layouts.make("rigaku"))
        return [_elsewhere(file) for file in files if file.kind is ImageKind.COMPOSITE]

    def call(self, *arguments: str, ends: Sequence[int] = (0,)) -> Called:
        """One command in a process of its own. Raises RuntimeError when it ends otherwise than expected."""
        start = time.perf_counter()
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, env=self.environment())
        if done.returncode not in ends:
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return Called(done.stdout, done.returncode, time.perf_counter() - start)

    def command(self, *arguments: str) -> list[str]:
        """What starts marcod with this lab's configuration."""
        return [sys.executable, "-m", "marcod", "--config", str(self.config), *arguments]

    def environment(self) -> dict[str, str]:
        """Without the settings of whoever runs the benchmark."""
        return child_environment()

    def json(self, *arguments: str, ends: Sequence[int] = (0,)) -> Any:
        """What a command says as JSON."""
        return json.loads(self.call(*arguments, "--json", ends=ends).output)

    def score(self) -> None:
        """Find what was delivered and score it."""
        self.call("scan")
        self.call("score")

    def label(
        self, drops: Sequence[Drop], person: str, said: Callable[[int, Drop], DropClass] = lambda _, drop: drop.truth
    ) -> None:
        """Give labels as a person does with a CSV file; ``said`` is what the person writes down."""
        file = self.folder / f"labels-{person}-{len(drops)}.csv"
        rows = [(d.plate, d.well, said(i, d).value, person, "2026-04-01 10:00") for i, d in enumerate(drops)]
        _write_csv(file, ("plate", "well", "label", "person", "time"), rows)
        self.call("label", "import", str(file))

    def truth_of(self, drops: Sequence[Drop], name: str) -> Path:
        """The truth about drops as ``marcod model evaluate --labels`` takes it."""
        file = self.folder / f"truth-{name}.csv"
        rows = [(str(self.root / d.path), d.truth.value, SOURCE, d.plate, d.well) for d in drops]
        _write_csv(file, ("image", "label", "source", "plate", "drop"), rows)
        return file

    def judge(self, model: str, file: Path) -> dict[str, float]:
        """Accuracy, crystal average precision and recall of a model on a list of true classes."""
        found = self.json("model", "evaluate", model, "--labels", str(file), "--root", "/")
        at = found["detection"][1]
        return {
            "accuracy": found["accuracy"]["value"],
            "average_precision": found["crystals"]["average_precision"]["value"],
            "recall": at["recall"]["value"],
            "precision": at["precision"]["value"],
        }


def _key(number: int) -> str:
    return f"CI{10_000_000 + number}"


def _elsewhere(file: PlannedFile) -> PlannedFile:
    assert file.scene is not None
    return replace(file, scene=another_imager(file.scene))


def _drop(file: PlannedFile) -> Drop:
    assert file.image is not None
    assert file.label is not None
    return Drop(file.image.plate_key, file.image.well, file.path, file.label)


def _write(root: Path, planned: PlannedFile) -> None:
    write_file(root, planned, SIZE)


def _write_csv(file: Path, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([heading, *rows])


def as_people_label(drops: Sequence[Drop], a_plate: int) -> list[Drop]:
    """So many drops of each plate: up to two of five with crystals, which interest people, the rest as it comes."""
    by_plate: dict[str, list[Drop]] = {}
    for drop in drops:
        by_plate.setdefault(drop.plate, []).append(drop)
    found: list[Drop] = []
    for of_plate in by_plate.values():
        crystals = [d for d in of_plate if d.truth is DropClass.CRYSTALS][: 2 * a_plate // 5]
        others = [d for d in of_plate if d not in crystals][: a_plate - len(crystals)]
        found += [*crystals, *others]
    return found


def shares(drops: Sequence[Drop]) -> str:
    """The classes of drops in words."""
    return ", ".join(f"{sum(d.truth is c for d in drops)} {c.value}" for c in CLASSES)

"""The learning loop in a lab whose imager is new to the shipped bundle: labels, `marcod retrain`, poisoned labels."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import Bench
from benchmarks.lab import Drop, Lab, as_people_label, shares
from benchmarks.tables import Cell, Table
from marcod.domain import CLASSES, DropClass
from marcod.model import bundle
from marcod.synthetic import drop_jpeg
from marcod.training.shipped_model import TEST

SEED: Final = 1
PLATES: Final = 25
UNSEEN: Final = 12
FILLED: Final = 0.75
HITS: Final = 0.35
ROUNDS: Final = (8, 40)
"""Labels a plate: 200 of 25 plates, then 1,000."""

OLD: Final = 600
SWAP: Final = {DropClass.CRYSTALS: DropClass.CLEAR, DropClass.CLEAR: DropClass.CRYSTALS}

COLUMNS: Final = [
    "labels", "run", "tier", "model", "minutes", "new: accuracy", "new: crystal AP", "new: recall",
    "old: accuracy", "old: crystal AP",
]  # fmt: skip


def run(bench: Bench) -> Iterator[Table]:
    """Both tables."""
    with bench.place("lab") as folder:
        scene = Scene(bench, folder)
        yield learning(bench, scene)
        yield poisoned(bench, scene, folder)


class Scene:
    """A lab that has scored its plates, with plates nobody labels and old imagers' drops to be judged on."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.lab = Lab(
            folder / "lab", seed=SEED, base_images=bench.size(2000, 100), min_test_crystals=bench.size(15, 1)
        )
        bench.say("rendering and scoring the lab's plates")
        self.drops = self.lab.deliver(0, bench.size(PLATES, 5), FILLED, HITS)
        unseen = self.lab.deliver(5000, bench.size(UNSEEN, 2), 40 / 96, HITS)
        self.lab.score()
        self.unseen = self.lab.truth_of(unseen, "unseen")
        self.old = _old(folder / "old", bench.size(OLD, 20))
        plates = bench.size(PLATES, 5)
        self.about = (
            f"Synthetic: {len(self.drops)} drops on {plates} plates of an imager with another lamp, other wells and a "
            f"softer focus. New: {len(unseen)} drops ({shares(unseen)}) on plates that nobody labelled. Old: "
            f"{bench.size(OLD, 20)} drops of the imagers the shipped bundle knows, from its own test. Up to two of "
            f"five labels are of crystals, as people label. Seed {SEED}, two CPU cores."
        )

    def row(self, labels: str, state: str, tier: str, minutes: float, model: str) -> list[Cell]:
        """What a model does on plates that nobody labelled and on the old imagers."""
        new, old = (self.lab.judge(model, file) for file in (self.unseen, self.old))
        return [
            labels, state, tier, model, round(minutes, 1),
            _three(new["accuracy"]), _three(new["average_precision"]), _three(new["recall"]),
            _three(old["accuracy"]), _three(old["average_precision"]),
        ]  # fmt: skip


def _three(value: float) -> float:
    return round(value, 3)


def _champion(lab: Lab) -> str:
    known = lab.json("model", "list")
    return next(str(m["model"]) for m in known if "champion" in m["aliases"])


def _candidate(lab: Lab, run: dict[str, Any]) -> str:
    """The candidate's name, its bundle brought to the others to be measured if it was refused."""
    (path,) = [file.parent for file in (Path(run["folder"]) / "candidate").glob("*/*/bundle.toml")]
    bundle.install(path, lab.folder / "models")
    return str(run["candidate"])


def _old(folder: Path, count: int) -> Path:
    """Drops of the shipped bundle's own test, as files with a list."""
    folder.mkdir(parents=True)
    lines = ["image,label"]
    for number in range(count):
        data, label = drop_jpeg(TEST + number)
        (folder / f"{number}.jpg").write_bytes(data)
        lines.append(f"{folder / f'{number}.jpg'},{label.value}")
    (folder / "old.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "old.csv"


def learning(bench: Bench, scene: Scene) -> Table:
    """200 labels, then 1,000, while a scorer runs."""
    lab = scene.lab
    rows = [scene.row("0", "", "", 0.0, _champion(lab))]
    with _scoring(lab):
        for a_plate in ROUNDS:
            some = as_people_label(scene.drops, a_plate)
            lab.label(some, "ann")
            bench.say(f"{len(some)} labels: {shares(some)}")
            run, minutes = _retrain(lab)
            bench.say("; ".join(run["reasons"]))
            rows.append(scene.row(str(len(some)), run["state"], run["tier"] or "", minutes, _candidate(lab, run)))
        lab.call("rescore", "--all", "--no-wait")
        changed = _seconds_until(lambda: _plates_of(lab) == {_champion(lab)})
    about = (
        scene.about
        + f" After the last run `marcod rescore --all` had every plate under the champion in {changed:.0f} s."
    )
    return Table("Learning from labels", about, COLUMNS, rows)


def poisoned(bench: Bench, scene: Scene, folder: Path) -> Table:
    """The same labels, wrong in two ways, each time in a new lab whose champion is the shipped bundle."""
    some = as_people_label(scene.drops, ROUNDS[-1])
    clean = scene.lab.folder
    rows: list[list[Cell]] = []
    for name, words in (("30 % random", _random_words(some)), ("one of three swaps", _swapped_words(some))):
        lab = _copied(scene, clean, folder / name.replace(" ", "-").replace("%", ""))
        for person, drops, said in words:
            lab.label(drops, person, said)
        run, minutes = _retrain(lab)
        bench.say("; ".join(run["reasons"]))
        found = lab.json("label", "suspects", "--limit", "100000")
        listed = {(row["plate"], row["well"]) for row in found["suspects"]}
        wrong = {
            (d.plate, d.well) for _, drops, said in words for i, d in enumerate(drops) if said(i, d) is not d.truth
        }
        told = [f"{len(listed & wrong)} of {len(wrong)}", f"{len(listed - wrong)} of {len(some) - len(wrong)}"]
        found_row = _Poisoned(scene, lab).row(name, run["state"], run["tier"] or "", minutes, _candidate(lab, run))
        rows.append([*found_row, *told])
        bench.say(str(rows[-1]))
    columns = [*COLUMNS, "wrong labels listed", "right labels listed"]
    return Table("Poisoned labels", scene.about + f" {len(some)} labels each.", columns, rows)


class _Poisoned(Scene):
    """The same scene with another lab."""

    def __init__(self, scene: Scene, lab: Lab) -> None:
        self.lab, self.unseen, self.old = lab, scene.unseen, scene.old


_Words = Sequence[tuple[str, Sequence[Drop], Callable[[int, Drop], DropClass]]]


def _random_words(drops: Sequence[Drop]) -> _Words:
    """One person, of whose words 30 % are drawn at random from the other classes."""
    rng = random.Random(SEED)
    said = [rng.choice([c for c in CLASSES if c is not d.truth]) if rng.random() < 0.3 else d.truth for d in drops]
    return [("ann", drops, lambda i, _: said[i])]


def _swapped_words(drops: Sequence[Drop]) -> _Words:
    """Three persons label plates in turn, and one of them takes crystals for clear and clear for crystals."""
    plates = sorted({d.plate for d in drops})
    parts = [[d for d in drops if plates.index(d.plate) % 3 == n] for n in range(3)]
    return [
        ("ann", parts[0], lambda _, d: d.truth),
        ("bob", parts[1], lambda _, d: SWAP.get(d.truth, d.truth)),
        ("cyd", parts[2], lambda _, d: d.truth),
    ]


def _copied(scene: Scene, clean: Path, folder: Path) -> Lab:
    """Another lab with the same plates, scored, and the same base set; nothing labelled."""
    lab = Lab(folder, seed=SEED, base_images=2000)
    lab.config.write_text(scene.lab.config.read_text().replace(str(clean), str(folder)), encoding="utf-8")
    shutil.rmtree(lab.root)
    shutil.copytree(scene.lab.root, lab.root)
    lab.score()
    if (clean / "training" / "base").exists():
        shutil.copytree(clean / "training" / "base", folder / "training" / "base")
    return lab


def _retrain(lab: Lab) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    run: dict[str, Any] = lab.json("retrain", ends=(0, 3))
    return run, (time.perf_counter() - start) / 60


@contextmanager
def _scoring(lab: Lab) -> Iterator[None]:
    """A scorer of the lab, running all the while."""
    log = (lab.folder / "scorer.log").open("wb")
    command = lab.command("run", "--roles", "score,schedule")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=lab.environment())
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def _plates_of(lab: Lab) -> set[str]:
    """The models by which plates are shown."""
    listed = lab.json("plate", "list", "--limit", "1000")
    return {f"{row['model']}:{row['model_version']}" for row in listed}


def _seconds_until(condition: Callable[[], bool], most: float = 600.0) -> float:
    start = time.perf_counter()
    while not condition() and time.perf_counter() - start < most:
        time.sleep(2.0)
    return time.perf_counter() - start

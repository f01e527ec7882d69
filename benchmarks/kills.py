"""A trainer killed at ten random moments while a lab scores: what is lost, what is left, and how it ends."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from benchmarks.bench import Bench
from benchmarks.lab import Drop, Lab, as_people_label
from benchmarks.tables import Cell, Table
from marcod.database.engine import Database

KILLS: Final = 10
SEED: Final = 7
LONGEST_S: Final = 30.0
"""A kill comes this long after the start at the latest."""


def run(bench: Bench) -> Iterator[Table]:
    """One lab, one run, many kills."""
    with bench.place("kills") as folder:
        lab = Lab(folder / "lab", seed=SEED, base_images=bench.size(300, 100), promotion="manual", head_crystals=5)
        drops = lab.deliver(0, 10, 20 / 96, 0.4)
        lab.score()
        lab.label(as_people_label(drops, 20), "ann")
        later = lab.deliver(500, bench.size(12, 3), 0.5, 0.3)
        kills, rows = bench.size(KILLS, 2), []
        with _service(lab):
            for number in range(kills):
                rows.append(_kill(bench, lab, number))
            done = lab.json("retrain", ends=(0, 3))
            _wait_until_scored(lab, len(drops) + len(later))
        rows.append(["end", "", f"run {done['id']} {done['state']}", *_state(lab)])
        yield Table("Killing the trainer", _about(lab, kills, drops, later), _COLUMNS, rows)


_COLUMNS: Final = ["kill", "seconds after start", "run", "runs in all", "bundles half-written", "images scored so far"]


def _about(lab: Lab, kills: int, drops: list[Drop], later: list[Drop]) -> str:
    starts = sum(1 for file in (lab.folder / "training").glob("run-*/starts") for _ in file.open())
    return (
        f"kill -9 of `marcod retrain` at {kills} random moments (seed {SEED}), each time begun again, then left alone; "
        f"{starts} starts in all. Meanwhile `marcod run` scored {len(later)} new images beside {len(drops)} old ones. "
        "Synthetic, SQLite, the shipped bundle."
    )


def _kill(bench: Bench, lab: Lab, number: int) -> list[Cell]:
    after = random.Random(SEED * 100 + number).uniform(0.5, LONGEST_S)
    log = (lab.folder / "trainer.log").open("ab")
    process = subprocess.Popen(lab.command("retrain"), stdout=log, stderr=log, env=lab.environment())
    ended = True
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        ended = False
        process.send_signal(signal.SIGKILL)
        process.wait()
    log.close()
    step = _one(lab, "select step from training_run order by id desc limit 1")
    bench.say(f"kill {number + 1} after {after:.1f} s: {step}")
    told = f"ended by itself with {process.returncode}" if ended else str(step or "begins")
    return [str(number + 1), f"{after:.1f}", told, *_state(lab)]


def _state(lab: Lab) -> list[Cell]:
    runs = int(str(_one(lab, "select count(*) from training_run")))
    broken = [p for p in (lab.folder / "models").glob("*/*") if not (p / "bundle.toml").is_file()]
    return [runs, len(broken), int(str(_one(lab, "select count(*) from score")))]


def _one(lab: Lab, statement: str) -> object:
    db = Database(lab.url)
    try:
        return db.read(lambda connection: connection.execute(sa.text(statement)).scalar())
    finally:
        db.close()


@contextmanager
def _service(lab: Lab) -> Iterator[None]:
    """The lab's watcher and scorer, running all the while."""
    log = (lab.folder / "service.log").open("wb")
    process = subprocess.Popen(lab.command("run"), stdout=log, stderr=log, env=lab.environment())
    try:
        yield
    finally:
        process.terminate()
        if process.wait(90):
            raise RuntimeError(f"the service ended with {process.returncode}")
        log.close()


def _wait_until_scored(lab: Lab, images: int) -> None:
    start = time.monotonic()
    while int(str(_one(lab, "select count(*) from score"))) < images:
        if time.monotonic() - start > 300:
            raise RuntimeError("scoring stopped")
        time.sleep(1.0)

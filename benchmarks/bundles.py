"""Speed and memory of model bundles, from prepared images to probabilities, each in its own process, in turn.

``MARCOD_BUNDLES`` names folders of bundles, apart by colons; by default the shipped one is measured. Members of a
committee lie beside it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Spread, Table
from marcod import synthetic
from marcod.model import bundle, registry
from marcod.settings.environment import child_environment

BUNDLES: Final = "MARCOD_BUNDLES"
BATCH: Final = 16
BATCHES: Final = 6
TURNS: Final = 5


def run(bench: Bench) -> Iterator[Table]:
    """Every bundle in each turn; images a second of all cores, processor time, and most memory."""
    shipped = registry.shipped_folder().joinpath(*registry.SHIPPED)
    paths = os.environ.get(BUNDLES, str(shipped)).split(":")
    found: dict[str, list[dict[str, float]]] = {path: [] for path in paths}
    for turn in range(bench.size(TURNS, 1)):
        bench.say(f"bundles: turn {turn + 1}")
        for path in paths:
            found[path].append(_measured_apart(path, bench.size(BATCHES, 1)))
    first = [turn["rate"] for turn in found[paths[0]]]
    rows: list[list[Cell]] = []
    for path, turns in found.items():
        ratio = [mine / turn["rate"] for mine, turn in zip(first, turns, strict=True)]
        measured = [Spread.of(turn[name] for turn in turns) for name in ("rate", "cpu_ms", "memory_mb")]
        rows.append(["{}:{}".format(*Path(path).parts[-2:]), *measured, Spread.of(ratio)])
    about = (
        f"{BATCH} images a batch, {bench.size(BATCHES, 1)} batches after one that is not counted; median of "
        f"{bench.size(TURNS, 1)} turns with the lowest and the highest. The ratio is taken within a turn."
    )
    columns = [
        "bundle",
        "images a second",
        "processor ms an image",
        "most memory, MB",
        "the first one is faster, times",
    ]
    yield Table("Speed of bundles from memory", about, columns, rows)


def _measured_apart(path: str, batches: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bundles", path, str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if done.returncode:
        raise RuntimeError(f"{path} cannot be measured: {(done.stderr.splitlines() or ['no word why'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(path: Path, batches: int) -> dict[str, float]:
    predictor = bundle.load(path, BATCH, bundle.members_in([path.parent.parent], BATCH))
    data = synthetic.drop_jpeg(9_000_000)[0]
    given = np.stack([predictor.prepare(data)] * BATCH)
    predictor.predict(given)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(batches):
        predictor.predict(given)
    wall, cpu = time.perf_counter() - start, time.process_time() - processor
    images = batches * BATCH
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": images / wall, "cpu_ms": 1000 * cpu / images, "memory_mb": memory}


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))

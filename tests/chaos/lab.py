"""One lab under chaos: imagers that write, processes that work, people who ask, and when each fault is taken back."""

import heapq
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from chaos import people, service, stores
from chaos.imagers import LAYOUTS, Imager, Share, photographs
from marcod.database.engine import Database
from marcod.errors import StoreError

LEASE_S: Final = 5.0
STOP_S: Final = 60.0
PATIENCE_S: Final = 1.0
LEAVE_S: Final = 30.0
"""How long a command may take when nothing is wrong any more."""

_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    # The full walk finds what was rewritten in place while nobody watched; a lab has time to wait for it, a test not.
    "watch": {"settle_s": 0.4, "rescan_s": 2.0, "full_rescan_s": 10.0, "quiet_s": 20.0},
    "score": {"batch_size": 8, "lease_s": LEASE_S, "idle_s": 0.1, "retry_s": 0.25},
    "daemon": {"stop_s": STOP_S},
    "train": {
        "schedule": "* * * * *", "min_new_labels": 40, "base": "none", "promotion": "manual", "head_crystals": 5,
        "all_crystals": 100_000, "min_test_crystals": 1, "min_test_drops": 2, "min_test_plates": 1,
    },
}  # fmt: skip


class Lab:
    """A lab in ``folder``, whose every choice follows from ``seed``; its timing is the machine's."""

    def __init__(self, folder: Path, kind: stores.Kind, seed: int, files_a_second: float) -> None:
        self.folder, self.seed = folder, seed
        self.rng = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.store = stores.make(kind, folder)
        self.shares = [Share(folder / f"imager-{layout}", layout) for layout in LAYOUTS]
        self.config = self._configure()
        self.processes = service.processes(kind, self.config)
        self.db = Database(self.store.url, patience_s=PATIENCE_S)
        self.people = people.People(self.db, self.config, random.Random(seed + 1))
        self._imagers = [Imager(share, random.Random(seed + 2 + n)) for n, share in enumerate(self.shares)]
        self._undo: list[tuple[float, int, str, Callable[[], None]]] = []
        self._numbers = count()
        self._over = threading.Event()
        self._writing = threading.Thread(target=self._write, args=(1 / files_a_second,), name="imagers")

    def _configure(self) -> Path:
        people.make_other_model(self.folder / "models")
        training = {"folder": str(self.folder / "training")}
        sections = _SETTINGS | {
            "models": {"folder": str(self.folder / "models")},
            "train": _SETTINGS["train"] | training,
        }
        lines = [f"store.url = {json.dumps(self.store.url)}"]
        for name, values in sections.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        for share in self.shares:
            lines += [f"[sources.{share.name}]", f'root = "{share.root}"', f'layout = "{share.layout}"']
        config = self.folder / "marcod.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return config

    def start(self, longest_s: float) -> None:
        """Begin to work, and to write; returns when every process is at work.

        Raises RuntimeError when that takes longer than ``longest_s``, or one of them ends meanwhile.
        """
        self.tend()
        photographs()
        self._writing.start()
        tick, start = threading.Event(), time.monotonic()
        while not self.is_at_work:
            late = time.monotonic() >= start + longest_s
            if late or not all(process.lives for process in self.processes):
                idle = ", ".join(process.name for process in self.processes if not process.is_at_work)
                raise RuntimeError(f"not at work {time.monotonic() - start:.0f} s after the start: {idle}")
            tick.wait(0.2)

    @property
    def is_at_work(self) -> bool:
        """Whether every process has said that it runs."""
        return all(process.is_at_work for process in self.processes)

    def holds_lease(self, process: service.Process) -> bool:
        """Whether jobs are in this process's hands. False while the database cannot tell."""
        statement = sa.text("select count(*) from job where lease like :its and failed_at is null")
        try:
            found = self.db.read(lambda c: c.execute(statement, {"its": f"%:{process.pid}:%"}).scalar())
        except StoreError:
            return False
        return bool(found)

    def _write(self, pause_s: float) -> None:
        rng = random.Random(self.seed - 1)
        while not self._over.wait(rng.uniform(0, 2 * pause_s)):
            rng.choice(self._imagers).write_next()

    def tend(self) -> None:
        """Begin the processes that ended."""
        for process in self.processes:
            process.tend()

    def later(self, seconds: float, what: str, undo: Callable[[], None]) -> None:
        """Take something back after a while."""
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._numbers), what, undo))

    def under_way(self, what: str) -> bool:
        """Whether such a thing is still to be taken back."""
        return any(name == what for _, _, name, _ in self._undo)

    def take_back(self, *, all_of_it: bool = False) -> None:
        """Take back what is due."""
        while self._undo and (all_of_it or self._undo[0][0] <= time.monotonic()):
            heapq.heappop(self._undo)[3]()

    def calm(self) -> None:
        """Take every fault back, and let the imagers finish their plates."""
        self.take_back(all_of_it=True)
        self.store.mend()
        self.people.leave(LEAVE_S)
        self._over.set()
        self._writing.join()
        for imager in self._imagers:
            imager.finish()
        self.calm_since = datetime.now(UTC)

    def stop(self) -> dict[str, int]:
        """Stop the processes in order. Returns their exit codes by name."""
        for process in self.processes:
            process.terminate()
        return {process.name: process.wait(STOP_S + 10) for process in self.processes}

    def close(self) -> None:
        """End what is still there, whatever happened."""
        self._over.set()
        if self._writing.is_alive():
            self._writing.join()
        self.people.leave(0.0)
        for process in self.processes:
            process.kill()
        self.db.close()
        self.store.close()

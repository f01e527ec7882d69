"""Fit by several processes of one device each, which train as one would with their batches together.

The process that owns the run starts them, on this host; none of them knows the database. One that dies ends
all: the checkpoint has what was done so far, and the next start goes on from there.
"""

import importlib.util
import json
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, Final

from marcod import files, telemetry
from marcod.errors import TRY_AGAIN, ConfigError, MarcodError, os_reason
from marcod.fitting import checkpoint, jobs
from marcod.fitting.fit import Fitted, LostProcessError, Progress, StoppedError
from marcod.fitting.jobs import FitJob
from marcod.fitting.worker import STOPPED, WorkOrder
from marcod.settings.environment import card_of, child_environment

log = telemetry.logger(__name__)

RECORD: Final = "fit-job.npz"
STOP_S: Final = 20.0
"""Seconds that the first process may take to end its step and write a checkpoint; then it is ended.

Slurm kills 30 s after a signal. A process whose fellow died may wait for it longer than that.
"""

LOOK_S: Final = 0.2
BEAT_S: Final = 5.0
SILENCE_S: Final = 120.0
FOLLOW_S: Final = 1.0
"""Seconds between looks at a process, between its signs of life on a board, without one until it counts as dead, and
between looks at the board."""

KNOWN_S: Final = 2.0
"""Seconds in which the process that died is looked for, after another one said that it misses one."""


def require() -> None:
    """Raise ConfigError where JAX is not installed, with which alone several processes train."""
    if importlib.util.find_spec("jax") is None:
        raise ConfigError("several processes train with JAX, which is not installed here: install marcod[jax]")


@dataclass(frozen=True, slots=True)
class Team:
    """Processes that train together: ``size`` of them on this host, or one and the others by a scheduler.

    The others read on the ``board``, a file that all hosts have, what there is to do; this one is known as ``host``.
    """

    size: int = 1
    board: "Board | None" = None
    host: str = "127.0.0.1"


ALONE: Final = Team()


def run(job: FitJob, team: Team, progress: Progress, stop: Event) -> Fitted:
    """Carry out a fit by a team, and return what its first process found.

    Raises StoppedError when ``stop`` was set, LostProcessError when a process died, MarcodError as :func:`fit.fit`.
    """
    require()
    if stop.is_set():
        raise StoppedError
    folder = job.place.parent
    jobs.save(folder / RECORD, job)
    first = WorkOrder(str(folder / RECORD), f"{team.host}:{_free_port()}", 0, team.size)
    here = 1 if team.board is not None else team.size
    with ExitStack() as stack:
        workers = [
            stack.enter_context(TrainingProcess(replace(first, number=n), folder, alone=here == 1)) for n in range(here)
        ]
        if team.board is not None:
            team.board.post(first)
        log.info("training processes started", processes=team.size, here=here, folder=str(folder))
        _watch(workers, progress, stop)
        _conclude(workers)
    return _found(job)


def run_each(given: Sequence[FitJob], processes: int, progress: Progress, stop: Event) -> list[Fitted]:
    """Carry out independent fits, so many at a time, by a process of this host each; return what each found.

    ``progress`` counts the fits that are done. Raises as :func:`run`; what other fits did stays in their checkpoints.
    """
    require()
    waiting, done = list(enumerate(given)), 0
    with ExitStack() as stack:
        running: list[TrainingProcess] = []
        while waiting or running:
            while waiting and len(running) < processes and not stop.is_set():
                slot = free_slot(one.slot for one in running)
                running.append(stack.enter_context(_started(*waiting.pop(0), slot, alone=processes == 1)))
            if not running:
                raise StoppedError
            progress("training with every seed", done, len(given))
            _wait_for_one(running, stop)
            ended = [one for one in running if one.process.poll() is not None]
            for one in ended:
                _conclude([one])
            running, done = [one for one in running if one not in ended], done + len(ended)
    progress("training with every seed", done, len(given))
    return [_found(job) for job in given]


def free_slot(taken: Iterable[int]) -> int:
    """Return the lowest slot that is not taken, so that so many processes at a time need no more graphics cards."""
    held = set(taken)
    return next(slot for slot in count() if slot not in held)


def _started(number: int, job: FitJob, slot: int, *, alone: bool) -> "TrainingProcess":
    record = job.place.with_name(f"{job.place.stem}-job.npz")
    jobs.save(record, job)
    order = WorkOrder(str(record), f"127.0.0.1:{_free_port()}", 0, 1)
    return TrainingProcess(order, job.place.parent, alone=alone, number=number, slot=slot)


def _wait_for_one(running: Sequence["TrainingProcess"], stop: Event) -> None:
    """Wait until a process ends; after a stop until all did, each with its checkpoint."""
    deadline = None
    while all(one.process.poll() is None for one in running) or (deadline is not None and _some_live(running)):
        if stop.is_set() and deadline is None:
            deadline = time.monotonic() + STOP_S
            for one in running:
                one.process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            raise StoppedError
        stop.wait(LOOK_S) if deadline is None else time.sleep(LOOK_S)


def _some_live(running: Sequence["TrainingProcess"]) -> bool:
    return any(one.process.poll() is None for one in running)


def _found(job: FitJob) -> Fitted:
    state = checkpoint.load(job.place)
    assert state is not None
    return Fitted(state.best or state.average, state.curve)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


class TrainingProcess:
    """A training process of this host; its standard error is kept in ``process-NUMBER.log`` of the run's folder.

    ``slot`` is its place among those that run at the same time; it and the number are by default the order's number.
    """

    def __init__(
        self, order: WorkOrder, folder: Path, *, alone: bool, number: int | None = None, slot: int | None = None
    ) -> None:
        self.order, self._alone, self.slot = order, alone, order.number if slot is None else slot
        self.log = folder / f"process-{order.number if number is None else number}.log"
        self.error: str | None = None
        self.digest: str | None = None
        self.lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> "TrainingProcess":
        with self.log.open("wb") as stream:
            # A signal to the whole group is for the process that owns the run.
            self.process = subprocess.Popen(
                self.order.program(), env=self._environment(), start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"process {self.order.number}", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _environment(self) -> dict[str, str]:
        """Return its environment: of several on a host each gets a graphics card; one alone keeps what it was given."""
        cards = {} if self._alone else {"CUDA_VISIBLE_DEVICES": card_of(self.slot)}
        return child_environment(KERAS_BACKEND="jax", **cards)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                said = json.loads(line)
                self.error, self.digest = said.get("error", self.error), said.get("digest", self.digest)
                self.lines.put(said)

    def report(self, progress: Progress) -> None:
        """Report what it said since the last time."""
        while not self.lines.empty():
            said = self.lines.get()
            if "what" in said:
                progress(said["what"], said["done"], said["total"])

    @property
    def died(self) -> bool:
        """True if it ended otherwise than in order, and not because it misses another."""
        return self.process.poll() not in (None, 0, STOPPED, TRY_AGAIN)

    def obituary(self) -> str:
        """Return how it ended, in words."""
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"process {self.order.number} of {self.order.of} {how}"


def _watch(workers: list[TrainingProcess], progress: Progress, stop: Event) -> None:
    """Wait until the first process ends or another one dies; pass a stop on to the first one.

    Raises StoppedError when that one does not end in time; its last checkpoint has what was done until then.
    """
    first, deadline = workers[0], None
    while first.process.poll() is None and not any(worker.died for worker in workers):
        first.report(progress)
        if stop.is_set() and deadline is None:
            first.process.terminate()
            deadline = time.monotonic() + STOP_S
        if deadline is not None and time.monotonic() > deadline:
            raise StoppedError
        stop.wait(LOOK_S) if deadline is None else time.sleep(LOOK_S)
    first.report(progress)


def _conclude(workers: Sequence[TrainingProcess]) -> None:
    """Return if the first process is done; else raise what the end of the training means."""
    code = workers[0].process.poll()
    if code == 0:
        digests = {worker.digest for worker in workers if worker.digest is not None}
        if len(digests) > 1:
            raise MarcodError("the training processes ended with different weights, so that none can be trusted")
        return
    if code in (STOPPED, -signal.SIGTERM):  # SIGTERM itself ends a process that has no handler for it yet
        raise StoppedError
    until = time.monotonic() + KNOWN_S
    while not any(worker.died for worker in workers) and time.monotonic() < until:
        time.sleep(LOOK_S)
    dead = next((worker for worker in workers if worker.died), None)
    if dead is not None and dead.error is not None:
        raise MarcodError(dead.error)
    if dead is None:
        raise LostProcessError
    raise LostProcessError(
        f"{dead.obituary()}, and the others with it; {dead.log} may say why, and the next `marcod retrain` goes on "
        "from the checkpoint"
    )


class Board:
    """File on which the first process of a team posts what there is to do; it shows that it lives every few seconds.

    A write that fails is logged: the next sign of life says the same, and the training is worth more than one of them.
    """

    def __init__(self, place: Path) -> None:
        self.place, self._posted, self._beats = place, 0, 0
        self._order: dict[str, Any] = {}
        self._ended = False
        self._lock = threading.Lock()

    def post(self, order: WorkOrder) -> None:
        """Post the first process's order, from which the others make theirs."""
        with self._lock:
            self._posted, self._order = self._posted + 1, asdict(order)
        self._beat()

    def _beat(self) -> None:
        try:
            self._write()
        except OSError as error:
            log.warning("board not written", board=str(self.place), error=os_reason(error))

    def _write(self) -> None:
        with self._lock:
            self._beats += 1
            said = {"posted": self._posted, "order": self._order, "beats": self._beats, "end": self._ended}
            files.write_whole(self.place, json.dumps(said))

    @contextmanager
    def kept(self) -> Iterator["Board"]:
        """Keep the board; at the end the others are sent home. Raises OSError."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        over = Event()

        def beat() -> None:
            while not over.wait(BEAT_S):
                self._beat()

        thread = threading.Thread(target=beat, name="board", daemon=True)
        self._write()
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.end()

    def end(self) -> None:
        """Send the others home."""
        self._ended = True
        self._beat()


def follow(place: Path, number: int, stop: Event) -> None:
    """Do as process ``number`` what the first one posts on its board, until it sends everybody home.

    Raises LostProcessError when the first process gives no sign of life, or when this one's worker dies.
    """
    seen, since, done = "", time.monotonic(), 0
    while not stop.is_set():
        now = _text(place)
        if now != seen:
            seen, since = now, time.monotonic()
        said: dict[str, Any] = json.loads(seen) if seen else {"posted": 0}
        if said.get("end", False):
            return
        if said["posted"] > done:
            done = said["posted"]
            _take_part(WorkOrder(**said["order"]), number, stop)
        if time.monotonic() - since > SILENCE_S:
            raise LostProcessError(
                f"process 0 gave no sign of life on {place} for {SILENCE_S:.0f} s; "
                "the next `marcod retrain` goes on from the checkpoint"
            )
        stop.wait(FOLLOW_S)


def _text(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except OSError:
        return ""


def _take_part(first: WorkOrder, number: int, stop: Event) -> None:
    """Run one worker to its end. One that ends after a stop was left by the first process, which saved its work."""
    deadline = None
    with TrainingProcess(replace(first, number=number), Path(first.job).parent, alone=True) as worker:
        while worker.process.poll() is None:
            if stop.is_set() and deadline is None:
                deadline = time.monotonic() + STOP_S
            if deadline is not None and time.monotonic() > deadline:
                return
            time.sleep(LOOK_S)
        if worker.process.returncode == 0 or stop.is_set():
            return
        if worker.error is not None and worker.died:
            raise MarcodError(worker.error)
        raise LostProcessError(f"{worker.obituary()}; {worker.log} may say why, and the next start goes on")

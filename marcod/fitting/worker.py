"""One of several processes that train together: `python -m marcod.fitting.worker ORDER`, started by ``together``.

It reads the fit's record and joins the others. The first process reports its progress as JSON lines on standard output;
it alone can be stopped by a signal, after the step that it is in and a checkpoint. A worker ends when its standard
input does, so that none outlives the process that started it.
"""

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from marcod.errors import TRY_AGAIN, MarcodError

STOPPED: Final = 3
"""Exit code: the stop was asked for, and the checkpoint holds what was done."""


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """A worker's part: the fit's record, where the first process listens, its number, and how many there are."""

    job: str
    address: str
    number: int
    of: int

    def program(self) -> list[str]:
        """Return the command that carries it out."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]


def main() -> int:
    """Carry out the order in the first argument. Returns the exit code."""
    order, stop = WorkOrder(**json.loads(sys.argv[1])), threading.Event()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _listen(order, stop)
    try:
        return _work(order, stop)
    except MarcodError as error:
        _say({"error": str(error)})
        return error.exit_code


def _work(order: WorkOrder, stop: threading.Event) -> int:
    from marcod.model import backend

    backend.join(order.address, backend.Share(order.number, order.of))
    # Again, since JAX has taken SIGTERM for a notice to itself.
    _listen(order, stop)
    from marcod.fitting import checkpoint, fit, jobs

    def progress(what: str, done: int, total: int) -> None:
        if order.number == 0:
            _say({"what": what, "done": done, "total": total})

    try:
        found = jobs.run(jobs.load(Path(order.job)), progress, stop)
    except fit.StoppedError:
        return STOPPED
    _say({"digest": checkpoint.digest(found.weights)})
    backend.leave()
    return 0


def _listen(order: WorkOrder, stop: threading.Event) -> None:
    """Let signals stop the first process alone; others would leave it in the middle of a step, which was lost then."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, (lambda *_: stop.set()) if order.number == 0 else signal.SIG_IGN)


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Without JAX's own farewell, which waits for processes that may be gone.
    os._exit(code)

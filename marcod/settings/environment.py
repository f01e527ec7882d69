"""The environment of a process apart from settings: systemd's folders and sockets, TensorFlow's switches.

With ``loading`` and ``layers`` the only code that reads the environment.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marcod import quiet

PREFIX: Final = "MARCOD_"


def state_dir() -> Path:
    """Where the embedded database and models live by default: systemd's StateDirectory, else the user's own."""
    return _folder("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """Folder for what can be fetched again: systemd's CacheDirectory, else the user's own."""
    return _folder("CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")


def _folder(systemd: str, user: str, usual: str) -> Path:
    if named := os.environ.get(systemd):
        return Path(named.split(":")[0])
    base = os.environ.get(user)
    return (Path(base) if base else Path.home() / usual) / "marcod"


def published_wheel() -> Path | None:
    """File of a published model that is taken instead of a download, if one is named."""
    named = os.environ.get("MARCOD_PUBLISHED_WHEEL")
    return Path(named) if named else None


def notify_socket() -> str | None:
    """Where systemd listens for sd_notify(3) messages, if it does."""
    return os.environ.get("NOTIFY_SOCKET") or None


def quiet_tensorflow() -> None:
    """Keep TensorFlow's notes about missing graphics cards out of the log, and let it share the card that there is.

    By default it takes all memory of a card at its start, so that a command by hand would starve the scoring process
    at work there, or fail next to it. Keras writes its defaults into the user's home, where nothing else may be made.
    Both read the environment when first imported.
    """
    if not os.path.exists(os.path.expanduser("~/.keras/keras.json")):  # noqa: PTH110, PTH111 - there may be no home
        os.environ.setdefault("KERAS_HOME", os.devnull)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    graphics = Path("/dev/nvidiactl").exists()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if graphics else "3")
    quiet.import_tensorflow_quietly()


def use_the_cpu_alone() -> None:
    """Hide graphics cards from a process that compares scores to five decimals, which their precision does not give.

    TensorFlow and JAX read it when they are first imported.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def one_thread_an_operation() -> None:
    """Let a process that only scores work on several parts of a batch at once, with one thread each on a CPU.

    TensorFlow reads it when it starts; by default all threads share every operation and wait for one another.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a marcod of its own: this one's without its settings, with ``changes``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**kept, **changes}


def batch_task() -> str | None:
    """Return the name of this process's task in a batch system: Slurm's job and task, or the pod's; else None."""
    if job := os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"):
        array, step = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_PROCID", "0")
        return f"slurm-{job}" + (f"_{array}" if array else "") + (f".{step}" if step != "0" else "")
    pod = os.environ.get("POD_NAME")
    return f"pod-{pod}" if pod else None


def card_of(number: int) -> str:
    """Return which graphics card process ``number`` of this host takes, of those that this one may use."""
    allowed = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return allowed[number % len(allowed)] if allowed else str(number)


@dataclass(frozen=True, slots=True)
class StepTask:
    """Task of a Slurm job step: its number, how many there are, a name of the step's start, and its node."""

    number: int
    of: int
    name: str
    node: str


def slurm_task() -> StepTask | None:
    """Return the task of several, started by `srun`, that this process is; None for any other.

    The batch script has some of Slurm's variables too, but none of a step.
    """
    given = os.environ
    if "SLURM_STEP_ID" not in given or int(given.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    start = f"{given['SLURM_JOB_ID']}.{given['SLURM_STEP_ID']}-{given.get('SLURM_RESTART_COUNT', '0')}"
    node = given.get("SLURMD_NODENAME") or socket.gethostname()
    return StepTask(int(given["SLURM_PROCID"]), int(given["SLURM_STEP_NUM_TASKS"]), start, node)


def leave_memory_to_workers() -> None:
    """Let JAX take a card's memory as it needs it, where workers of this process train on the same card."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def watchdog_s() -> float | None:
    """Return the interval in seconds at which systemd expects a sign of life (WatchdogSec), or None."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdigit() and int(usec) > 0 else None

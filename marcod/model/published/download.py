"""Download of one distribution file by the pip of the running environment.

pip is used so that a lab's index, proxy, certificates and login count as they do for its other packages.
"""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marcod.errors import FetchError
from marcod.model.published.catalogue import Published
from marcod.settings.environment import child_environment

_POLL_S: Final = 0.2
_LONGEST_REASON: Final = 300

# The child asks the kernel to be killed with its parent: a download whose marcod was killed has nobody to end it.
_PIP: Final = """
import ctypes, os, runpy, signal, sys
parent = int(sys.argv.pop(1))
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == parent:
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """Limits of a download: attempts, pause between two, seconds of silence, and seconds in all."""

    tries: int = 3
    pause_s: float = 1.0
    silence_s: float = 15.0
    total_s: float = 1800.0


def has_pip() -> bool:
    """Tell whether the running environment has pip."""
    return importlib.util.find_spec("pip") is not None


def download(
    model: Published, scratch: Path, *, silence_s: float, limit_s: float, received: Callable[[int], None]
) -> Path:
    """Try once to get the file of a published model into the empty folder ``scratch``; returns its path there.

    ``received`` is called with the bytes so far. Raises FetchError with the reason, as part of a sentence.
    """
    target, temporary, log = scratch / "file", scratch / "tmp", scratch / "log"
    temporary.mkdir()
    errors = scratch / "errors"
    command = [sys.executable, "-P", "-c", _PIP, str(os.getpid()), *_arguments(model, target, log, silence_s)]
    # pip writes to files: it would block on a pipe that is full.
    with (
        errors.open("wb") as stream,
        subprocess.Popen(
            command,
            cwd=temporary,
            env=child_environment(TMPDIR=str(temporary)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        ) as pip,
    ):
        try:
            code = _wait(pip, limit_s, lambda: received(_largest(temporary)))
        except BaseException:
            pip.kill()
            raise
    if code != 0:
        raise FetchError(_reason(_read(errors), _read(log)))
    return target / model.file


def _arguments(model: Published, target: Path, log: Path, silence_s: float) -> list[str]:
    return [
        "download", f"{model.distribution}=={model.version}", "--dest", str(target),
        "--no-deps", "--only-binary", ":all:",
        # The file is kept by marcod itself; a copy in pip's cache might be a damaged one.
        "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        "--timeout", f"{silence_s:g}", "--retries", "0", "--log", str(log),
    ]  # fmt: skip


def _wait(pip: subprocess.Popen[bytes], limit_s: float, look: Callable[[], None]) -> int:
    """Wait for pip and look now and then. Raises FetchError when it takes too long."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return pip.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            look()
        if time.monotonic() > end:
            raise FetchError(f"the download was not done after {limit_s:.0f} seconds")


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder that pip is writing to."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return max(sizes)


def _read(file: Path) -> list[str]:
    if not file.exists():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _reason(errors: list[str], log: list[str]) -> str:
    """Return the line that says most about a failure, without a login that a URL may hold.

    pip calls an index that cannot be reached one that has no such version; only its log tells the difference.
    """
    unreached = [line.partition("Could not fetch URL ")[2].removesuffix(" - skipping") for line in log]
    reported = [
        line.removeprefix("ERROR: ") for line in errors if line.startswith("ERROR: ") and "Exception:" not in line
    ]
    lines = [*filter(None, unreached[::-1]), *reported, *[line for line in errors[::-1] if line.strip()], "pip failed"]
    reason = re.sub(r"//[^/@\s]+@", "//", " ".join(lines[0].split()))
    caused = re.search(r"^(.*?error: ).*\(Caused by \w+\(['\"]?(?:<[^>]*>: )?(.*?)['\"]?\)\)$", reason)
    if caused is not None:
        reason = caused[1] + caused[2]
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."

"""Reading and decoding of images ahead of the device, in threads.

A share that hangs delays its own images alone: a thread that waits for it is abandoned, and no further thread is sent
there until it answers. Nothing here uses the database.
"""

import errno
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod import images, telemetry
from marcod.domain import WarningKind
from marcod.errors import ImageError, is_out_of_memory
from marcod.model.predictor import Predictor
from marcod.store import queue, results

log = telemetry.logger(__name__)

_NOT_ITS_FAULT: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOSPC, errno.EDQUOT}
)
"""Errors of reading that are the fault of this host or the share, not of the file."""

NO_MEMORY: Final = "this host has too little memory to read images"
"""Error of an image that waits for memory."""


Known = Mapping[tuple[int, str], results.StoredScore]
"""Stored scores of one image by the networks of a predictor: by the network's index and the SHA-256 of the bytes."""

NOTHING_KNOWN: Final[Known] = {}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Image that was read: the SHA-256 of its bytes and what is odd about it.

    By the index of the predictor's network: ``inputs``, float32 pixels [size, size, 3], for those that must score it,
    ``stored`` scores of the others, and the ``looks`` to each.
    """

    inputs: Mapping[int, NDArray[np.float32]]
    stored: Mapping[int, results.StoredScore]
    looks: Mapping[int, images.Appearance]
    content_hash: str
    warnings: tuple[WarningKind, ...]
    decode_s: float

    def knowing(self, known: Known) -> "Prepared":
        """Replace inputs by scores that were stored meanwhile."""
        stored = {**self.stored, **_of_content(known, self.content_hash)}
        inputs = {index: pixels for index, pixels in self.inputs.items() if index not in stored}
        return replace(self, inputs=inputs, stored=stored)


def _of_content(known: Known, content_hash: str) -> dict[int, results.StoredScore]:
    return {index: score for (index, content), score in known.items() if content == content_hash}


Decoded = Prepared | queue.Failure


class Decoders:
    """Decoding threads. ``roots`` maps source names to folders on this host, else the database's root counts.

    One thread may start while another collects.
    """

    def __init__(self, threads: int, roots: Mapping[str, Path]) -> None:
        self._threads, self._roots = threads, roots
        self._pool, self._lock = self._fresh(), threading.Lock()
        self._hung: dict[str, list[Future[Decoded]]] = {}

    def begin(
        self, predictor: Predictor, claims: Sequence[queue.Claim], known: Mapping[int, Known] = MappingProxyType({})
    ) -> tuple[Future[Decoded], ...]:
        """Start to decode these claims, each with what is ``known`` of its image; of a source that hangs they fail."""
        with self._lock:
            return tuple(self._begin(predictor, claim, known.get(claim.image_id, NOTHING_KNOWN)) for claim in claims)

    def collect(
        self,
        claims: Sequence[queue.Claim],
        started: Sequence[Future[Decoded]],
        limit_s: float,
        progress: Callable[[], None] = lambda: None,
    ) -> list[Decoded]:
        """Return the outcome of each claim, in order. ``progress`` is called whenever some are ready.

        When none is finished for ``limit_s``, those that are left fail without being counted.
        """
        left = set(started)
        while left:
            done, left = wait(left, limit_s, FIRST_COMPLETED)
            if not done:
                break
            progress()
        found = [_outcome(claim, one) for claim, one in zip(claims, started, strict=True)]
        stuck = [(claim, one) for claim, one in zip(claims, started, strict=True) if one.running()]
        if stuck:
            self._leave(stuck)
        return found

    def close(self) -> None:
        """Start nothing more; hanging threads are abandoned."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fresh(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def _begin(self, predictor: Predictor, claim: queue.Claim, known: Known) -> Future[Decoded]:
        if self._hangs(claim.source):
            refused: Future[Decoded] = Future()
            refused.set_result(_uncounted(claim, f"source {claim.source} does not answer"))
            return refused
        return self._pool.submit(prepare, predictor, claim, self._roots.get(claim.source, Path(claim.root)), known)

    def _hangs(self, source: str) -> bool:
        left = [one for one in self._hung.get(source, []) if not one.done()]
        if not left and self._hung.pop(source, []):
            log.info("source answers again", source=source)
        return bool(left)

    def _leave(self, stuck: Sequence[tuple[queue.Claim, Future[Decoded]]]) -> None:
        """Abandon hanging threads, and continue with fresh ones."""
        log.error("sources do not answer, their images wait", sources=sorted({claim.source for claim, _ in stuck}))
        with self._lock:
            for claim, one in stuck:
                self._hung.setdefault(claim.source, []).append(one)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._fresh()


def _outcome(claim: queue.Claim, started: Future[Decoded]) -> Decoded:
    try:
        return started.result(0.0)
    except (TimeoutError, CancelledError):
        started.cancel()
        return _uncounted(claim, "reading it takes too long")


def _uncounted(claim: queue.Claim, error: str) -> queue.Failure:
    return queue.Failure(claim, error, retryable=True, counts=False)


def prepare(predictor: Predictor, claim: queue.Claim, root: Path, known: Known = NOTHING_KNOWN) -> Decoded:
    """Read one image below ``root`` and decode it for the networks without a stored score, or return its failure."""
    content_hash, start = None, time.perf_counter()
    try:
        data = images.read(root / claim.path, root)
        content_hash = hashlib.sha256(data).hexdigest()
        stored = _of_content(known, content_hash)
        inputs = predictor.inputs(data, [i for i in range(len(predictor.networks)) if i not in stored])
        looks = {index: images.Appearance(*score.measured) for index, score in stored.items()}
        looks |= {index: images.appearance(pixels) for index, pixels in inputs.items()}
        warnings = images.warnings_of(data, looks[0])
        return Prepared(inputs, stored, looks, content_hash, warnings, time.perf_counter() - start)
    except ImageError as error:
        return queue.Failure(claim, str(error), error.retryable, content_hash=content_hash)
    except FileNotFoundError:
        if _is_offline(root):
            return _uncounted(claim, f"source {claim.source} is away")
        return queue.Failure(claim, queue.GONE, retryable=True)
    except Exception as error:  # noqa: BLE001 - decoders fail in their own ways, and the next image must not pay
        return _failure(claim, root, error, content_hash)


def _failure(claim: queue.Claim, root: Path, error: Exception, content_hash: str | None) -> queue.Failure:
    """Distinguish trouble of this host or share, which costs no attempt, from trouble of the image."""
    if is_out_of_memory(error):
        return _uncounted(claim, NO_MEMORY)
    if isinstance(error, OSError):
        counts = not (_is_offline(root) or error.errno in _NOT_ITS_FAULT)
        return queue.Failure(claim, f"cannot be read: {error.strerror}", retryable=True, counts=counts)
    log.error("decoder failed in an unforeseen way", path=claim.path, exc_info=error)
    text = f"the decoder failed: {type(error).__name__}: {error}"
    return queue.Failure(claim, text, retryable=True, content_hash=content_hash)


def _is_offline(root: Path) -> bool:
    """Check for an offline source: its folder is gone or empty, as of an unmounted share."""
    try:
        return next(root.iterdir(), None) is None
    except OSError:
        return True

"""The scoring loop: hides leases, reading ahead and failures, and promises one score an image, model and content.

Three things go on at once: the device predicts batch N, a pool of threads reads and decodes batch N+1, and one
thread talks to the database (writes N-1, claims N+1). A bad picture fails alone; a model version loads when the
first job that asks for it is claimed, so a promotion takes effect between two batches.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod import telemetry
from marcod.bundle import Predictor
from marcod.errors import ImageError, StoreError
from marcod.settings import ScoreSettings
from marcod.store import queue, results, versions
from marcod.store.engine import Database

log = telemetry.logger(__name__)

MAX_FILE_BYTES: Final = 512 * 2**20
"""Larger files are not drop images; reading one would only cost memory."""

LOADED_MODELS: Final = 2
"""Models kept ready: the champion, and the one that a rescore asks for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image read and decoded: float32 pixels [size, size, 3] and the SHA-256 of its bytes."""

    pixels: NDArray[np.float32]
    content_hash: str


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One finished batch, for logs and progress bars; times in seconds."""

    model: str
    scored: int
    failed: int
    quarantined: int
    stale: int
    wait_s: float
    predict_s: float


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over batches."""

    scored: int = 0
    failed: int = 0
    quarantined: int = 0

    def plus(self, report: BatchReport) -> "Tally":
        return replace(
            self,
            scored=self.scored + report.scored,
            failed=self.failed + report.failed,
            quarantined=self.quarantined + report.quarantined,
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    lease: queue.Lease
    version: versions.Version
    predictor: Predictor
    images: tuple[Future[Prepared | queue.Failure], ...]


class Scorer:
    """Scores what the queue holds. One object, one device, one thread that calls :meth:`run` or :meth:`drain`.

    ``roots`` maps source names to where their folders are on this host; a source that is not in it is read
    from the root the database knows. ``load`` turns a version into a predictor and raises BundleError.
    """

    def __init__(
        self,
        db: Database,
        load: Callable[[versions.Version], Predictor],
        settings: ScoreSettings,
        *,
        worker: str,
        roots: Mapping[str, Path],
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db = db
        self._load = load
        self._settings = settings
        self._worker = worker
        self._roots = roots
        self._on_batch = on_batch
        self._clock = clock
        self._models: OrderedDict[int, tuple[versions.Version, Predictor]] = OrderedDict()

    def warm(self) -> versions.Version:
        """Load the champion, golden images included, before the first job. Raises BundleError."""
        champion = self._db.read(versions.champion)
        self._model(champion.id)
        return champion

    def run(self, stop: Event, alive: Callable[[], None] = lambda: None) -> None:
        """Score until ``stop`` is set; ``alive`` is called with every turn. Raises what the database raises."""
        self._work(stop, alive, drain=False)

    def drain(self, stop: Event, alive: Callable[[], None] = lambda: None) -> Tally:
        """Score until nothing waits any more; jobs that wait for a retry are left to their time."""
        return self._work(stop, alive, drain=True)

    def _work(self, stop: Event, alive: Callable[[], None], *, drain: bool) -> Tally:
        tally = Tally()
        with (
            ThreadPoolExecutor(self._settings.decode_threads, thread_name_prefix="decode") as decoders,
            ThreadPoolExecutor(1, thread_name_prefix="database") as database,
        ):
            written: Future[BatchReport] | None = None
            ahead = self._claim(decoders)
            try:
                while not stop.is_set():
                    alive()
                    if ahead is None:
                        if written is not None:
                            tally = tally.plus(written.result())
                            written = None
                        elif drain:
                            break
                        else:
                            stop.wait(self._settings.idle_s)
                        ahead = self._claim(decoders)
                        continue
                    batch, ahead = ahead, None
                    following = database.submit(self._claim, decoders)
                    try:
                        outcome = self._predict(batch)
                    finally:
                        ahead = following.result()
                    if written is not None:
                        tally = tally.plus(written.result())
                    written = database.submit(self._finish, batch, *outcome)
            finally:
                if ahead is not None:
                    self._give_back(ahead)
            return tally if written is None else tally.plus(written.result())

    def _claim(self, decoders: ThreadPoolExecutor) -> _Batch | None:
        """Claim the next batch and start to decode it."""
        now = self._clock()
        lease = self._db.write(
            lambda connection: queue.claim(
                connection,
                self._worker,
                limit=self._settings.batch_size,
                lease_s=self._settings.lease_s,
                max_attempts=self._settings.max_attempts,
                now=now,
            )
        )
        if lease is None:
            return None
        try:
            version, predictor = self._model(lease.model_version_id)
        except BaseException:
            self._db.write(lambda connection: queue.release(connection, lease, now))
            raise
        images = tuple(decoders.submit(self._prepare, predictor, claim) for claim in lease.claims)
        return _Batch(lease, version, predictor, images)

    def _model(self, version_id: int) -> tuple[versions.Version, Predictor]:
        if version_id not in self._models:
            version = self._db.read(lambda connection: versions.get(connection, version_id))
            while len(self._models) >= LOADED_MODELS:
                self._models.popitem(last=False)
            self._models[version_id] = (version, self._load(version))
            log.info("model loaded", model=str(version), synthetic=version.synthetic)
        self._models.move_to_end(version_id)
        return self._models[version_id]

    def _prepare(self, predictor: Predictor, claim: queue.Claim) -> Prepared | queue.Failure:
        root = self._roots.get(claim.source, Path(claim.root))
        try:
            data = _read(root / claim.path)
            return Prepared(predictor.prepare(data), hashlib.sha256(data).hexdigest())
        except ImageError as error:
            return queue.Failure(claim, str(error), error.retryable)
        except FileNotFoundError:
            if _is_away(root):
                return queue.Failure(claim, f"source {claim.source} is away", retryable=True, counts=False)
            return queue.Failure(claim, queue.GONE, retryable=True)
        except OSError as error:
            return queue.Failure(claim, f"cannot be read: {error.strerror}", retryable=True, counts=not _is_away(root))
        except MemoryError:
            return queue.Failure(claim, "not enough memory to decode it", retryable=True)

    def _predict(self, batch: _Batch) -> tuple[list[results.Scored], list[queue.Failure], float, float]:
        start = time.perf_counter()
        outcomes = [future.result() for future in batch.images]
        ready = time.perf_counter()
        pairs = zip(batch.lease.claims, outcomes, strict=True)
        good = [(claim, outcome) for claim, outcome in pairs if isinstance(outcome, Prepared)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, queue.Failure)]
        scored: list[results.Scored] = []
        if good:
            vectors = batch.predictor.predict(np.stack([prepared.pixels for _, prepared in good]))
            for (claim, prepared), vector in zip(good, vectors, strict=True):
                if np.isfinite(vector).all():
                    scored.append(_scored(batch.predictor, claim, prepared, vector))
                else:
                    failures.append(queue.Failure(claim, "the model gave no number for it", retryable=False))
        return scored, failures, ready - start, time.perf_counter() - ready

    def _finish(
        self,
        batch: _Batch,
        scored: list[results.Scored],
        failures: list[queue.Failure],
        wait_s: float,
        predict_s: float,
    ) -> BatchReport:
        now = self._clock()
        done = self._db.write(
            lambda connection: results.finish(
                connection,
                batch.lease.token,
                batch.version,
                scored,
                failures,
                now=now,
                retry_s=self._settings.retry_s,
                max_attempts=self._settings.max_attempts,
            )
        )
        report = BatchReport(
            str(batch.version), done.scored, done.failed, done.quarantined, done.stale, wait_s, predict_s
        )
        _log_batch(report, failures)
        self._on_batch(report)
        return report

    def _give_back(self, batch: _Batch) -> None:
        for future in batch.images:
            future.cancel()
        try:
            self._db.write(lambda connection: queue.release(connection, batch.lease, self._clock()))
        except StoreError as error:
            log.warning("claims not given back, their lease will lapse", error=str(error))


def _scored(
    predictor: Predictor, claim: queue.Claim, prepared: Prepared, vector: NDArray[np.float32]
) -> results.Scored:
    clear, crystals, other, precipitate = (float(p) for p in predictor.fold(vector[None, :])[0])
    own = None
    if len(vector) != 4 or tuple(predictor.record.classes) != results.CLASS_NAMES:
        own = {name: float(p) for name, p in zip(predictor.record.classes, vector, strict=True)}
    return results.Scored(claim, prepared.content_hash, (clear, crystals, other, precipitate), own)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB; not a drop image", retryable=False)
    return data


def _is_away(root: Path) -> bool:
    """Whether the whole source is gone or lists nothing, as an unmounted share does."""
    try:
        return next(root.iterdir(), None) is None
    except OSError:
        return True


def _log_batch(report: BatchReport, failures: list[queue.Failure]) -> None:
    log.info(
        "batch scored",
        model=report.model,
        scored=report.scored,
        failed=report.failed,
        stale=report.stale,
        wait_s=round(report.wait_s, 3),
        predict_s=round(report.predict_s, 3),
    )
    for failure in failures:
        log.warning("image failed", path=failure.claim.path, attempt=failure.claim.attempts, error=failure.error)

"""Scoring loop: one score per image, model and content.

Three things run at once: the device predicts batch N, a pool of threads reads and decodes batch N+1, and one
thread talks to the database (writes N-1, claims N+1). A bad image fails alone; a model version loads when the
first job that asks for it is claimed, so a promotion takes effect between two batches.

Every network scores an image once per content. Those of a committee are versions of their own: their stored scores are
used, and what is computed on the way becomes scores of theirs.

A fault of the host or the model costs no image an attempt. Batches are halved where memory is short. A batch of which
not one image can be scored for that, or for the model, is an error, and its images wait with the cause.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import telemetry
from marcod.database.engine import Database
from marcod.database.notices import NoticeLine
from marcod.errors import HostLacksError, MarcodError, is_out_of_memory
from marcod.images import Appearance
from marcod.model.predictor import CommitteePredictor, Predictor
from marcod.scoring.batch_size import BY_PARTS, BatchSize
from marcod.scoring.decode import NO_MEMORY, NOTHING_KNOWN, Decoded, Decoders, Known, Prepared
from marcod.scoring.leases import Leases
from marcod.scoring.outcomes import BatchReport, Outcome, ScoreTotals, log_batch, report_of
from marcod.scoring.range_work import RangeBatch, RangeWork, claim_size
from marcod.scoring.source_roots import SourceRoots
from marcod.settings import ScoreSettings
from marcod.store import backlog, queue, ranges, results, versions
from marcod.store.ranges import RangeLease

log = telemetry.logger(__name__)

UNUSABLE_PAUSE: Final = timedelta(minutes=1)
"""A model version that cannot be loaded is asked for again after this long."""

LOADED_MODELS: Final = 3
"""Models kept ready: the champion, the challenger, and the one that a rescore asks for.

One fewer, and jobs of all three that take turns would load a model with every batch.
"""


ASK_S: Final = 1.0
"""Within this time after they were asked for, new images are not asked for again between batches of a campaign."""


class ShortOfMemoryError(MarcodError):
    """Too little memory on this host or its device to score images; they wait until there is more."""


LEAVE_S: Final = 5.0
"""Time in seconds for the database to take back what there is no time to finish."""


class ModelFaultError(MarcodError):
    """The model fails on every image."""


@dataclass(frozen=True, slots=True)
class _Model:
    """Loaded version, and the versions of a committee's members; a network has none."""

    version: versions.Version
    predictor: Predictor
    members: tuple[versions.Version, ...]

    @property
    def networks(self) -> tuple[tuple[versions.Version, Predictor], ...]:
        """The networks that see the image, each with the version whose scores it gives."""
        return tuple(zip(self.members or (self.version,), self.predictor.networks, strict=True))


@dataclass(frozen=True, slots=True)
class _Batch:
    lease: queue.Lease
    model: _Model
    images: tuple[Future[Decoded], ...]

    @property
    def version(self) -> versions.Version:
        return self.model.version


_Read = tuple[queue.Claim, Prepared]


class Scorer:
    """Scorer of queued jobs. One object, one device, one thread that calls :meth:`run` or :meth:`drain`.

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
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._db = db
        self._load = load
        self._settings = settings
        self._worker = worker
        self._roots = roots
        self._places = SourceRoots(db, roots)
        self._decoders = Decoders(settings.threads, roots)
        self._on_batch = on_batch
        self._clock = clock or db.now
        self._unusable: dict[int, datetime] = {}
        self._drains = False
        self._models: OrderedDict[int, _Model] = OrderedDict()
        self._proven: dict[int, NDArray[np.float32]] = {}
        self._size = BatchSize(settings.most_images, measured=settings.batch_size == "auto")
        self._leases = Leases(db, settings.lease_s, self._clock)
        self._written: Future[BatchReport | None] | None = None
        self._range: RangeWork | None = None
        self._asked = float("-inf")
        # Set for good by the first committee. The thread of the database loads models while this one predicts.
        self._committees = False

    def warm(self) -> versions.Version:
        """Load the champion, golden images included, before the first job.

        Raises BundleError; it is a HostLacksError where another host may serve the version.
        """
        champion = self._db.read(versions.champion)
        self._model(champion.id)
        return champion

    def run(self, stop: Event, alive: Callable[[], None] = lambda: None) -> None:
        """Score until ``stop`` is set; ``alive`` is called with every turn. Raises what the database raises."""
        self._work(stop, alive, drain=False)

    def drain(self, stop: Event, alive: Callable[[], None] = lambda: None) -> ScoreTotals:
        """Score until the queue is empty; jobs that wait for a retry keep their time."""
        return self._work(stop, alive, drain=True)

    def until_empty(self, stop: Event, idle_s: float = 0.0) -> ScoreTotals:
        """Score what waits and what comes meanwhile, until nothing was left for ``idle_s`` seconds.

        What is in the hands of other workers is left, since one that dies leaves its images to the others.
        """
        return self._work(stop, lambda: None, drain=True, idle_s=idle_s)

    def is_done(self) -> bool:
        """Tell if nothing waits for this worker and nothing is in the hands of another."""
        now, most = self._clock(), self._settings.max_attempts
        ours: dict[str, Any] = {"without": tuple(self._unusable), "leaving": self._places.left_to_others()}
        jobs = self._db.read(backlog.is_left, now, max_attempts=most, **ours)
        return not jobs and not self._db.read(ranges.is_left, now, **ours)

    @property
    def left_to_others(self) -> Mapping[str, str]:
        """Reasons for which sources are left to other hosts, by their names."""
        return self._places.reasons

    def abandon(self) -> None:
        """Give back everything that is held, from another thread, because there is no time to finish it.

        Scores that are written after this find no job and change nothing. A database that does not answer is waited
        for no longer than :data:`LEAVE_S`.
        """
        leaving = Thread(target=self._leases.give_back_all, name="leave", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)

    def _work(self, stop: Event, alive: Callable[[], None], *, drain: bool, idle_s: float | None = None) -> ScoreTotals:
        """Score until ``stop``; with ``drain`` what waits now, and with ``idle_s`` what comes meanwhile too."""
        tally = ScoreTotals()
        self._drains = drain
        due = self._clock() if drain and idle_s is None else None
        quiet_since = time.monotonic()
        self._decoders = Decoders(self._settings.threads, self._roots)
        self._leases = Leases(self._db, self._settings.lease_s, self._clock)
        pool = ThreadPoolExecutor(1, thread_name_prefix="database")
        line = NoticeLine(self._db, [queue.CHANNEL])
        with self._leases, closing(self._decoders), closing(line), pool as database:
            written: Future[BatchReport | None] | None = None
            ahead: _Batch | None = None
            ended: float | None = None
            try:
                while not stop.is_set():
                    # Before every claim, so that what is queued after it is heard.
                    line.clear()
                    batch, ahead = ahead or database.submit(self._claim, due).result(), None
                    if batch is None:
                        if written is not None:
                            tally, written = tally.plus(written.result()), None
                        if drain and (idle_s is None or (time.monotonic() - quiet_since >= idle_s and self.is_done())):
                            break
                        alive()
                        ended = None
                        line.wait(self._settings.idle_s, stop)
                        continue
                    following = database.submit(self._claim, due)
                    outcome = self._predict_or_give_back(batch, following, alive)
                    ended = self._note(batch, outcome, ended)
                    if outcome is None:
                        ahead = following.result()
                        continue
                    report, written = written, database.submit(self._finish, batch.lease, outcome)
                    self._written = written
                    # Its images need not stay in memory while those of the next ones are decoded.
                    del batch
                    # Looked at after the write is on its way: a claim that fails must not cost a finished batch.
                    ahead = following.result()
                    tally = tally.plus(None if report is None else report.result())
                    if outcome.short and not outcome.scored:
                        written.result()
                        raise ShortOfMemoryError
                    quiet_since = time.monotonic()
                    alive()
                tally = tally.plus(database.submit(self._write_gathered, last=True).result())
            finally:
                if ahead is not None:
                    self._give_back(ahead)
                # Behind the writes that are under way.
                database.submit(self._leave_range).result()
            return tally if written is None else tally.plus(written.result())

    def _note(self, batch: _Batch, outcome: Outcome | None, before: float | None) -> float:
        """Let the size of batches follow this one, after one that ended at ``before``. Returns its own end."""
        ended = time.perf_counter()
        seconds = None if before is None else ended - before
        self._size.note(len(batch.images), seconds, short=outcome is not None and outcome.short)
        return ended

    def _claim(self, due: datetime | None) -> _Batch | None:
        """Claim the next batch and start to decode it. Jobs of a model that cannot be loaded here are skipped."""
        self._leases.settle()
        while True:
            now = self._clock()
            self._unusable = {version: until for version, until in self._unusable.items() if until > now}
            lease = self._take(now, due)
            if lease is None:
                return None
            try:
                model = self._model(lease.model_version_id)
                known = self._stored(model, [claim.image_id for claim in lease.claims])
                return _Batch(lease, model, self._decoders.begin(model.predictor, lease.claims, known))
            except Exception as error:  # noqa: BLE001 - such as no room on the device; no image has to pay for it
                self._pass_over(lease, error)

    def _take(self, now: datetime, due: datetime | None) -> queue.Lease | None:
        """Take jobs, or where none waits images of a campaign. Between batches of those new images are asked for."""
        images = self._size.images
        if time.monotonic() - self._asked < ASK_S and (portion := self._next(images)) is not None:
            return portion
        self._asked = time.monotonic()
        common: dict[str, Any] = {
            "lease_s": self._settings.lease_s, "now": now, "due": due, "without": tuple(self._unusable),
            "leaving": self._places.left_to_others(),
        }  # fmt: skip
        most = self._settings.max_attempts
        while True:
            lease = self._db.write(queue.claim, self._worker, limit=images, max_attempts=most, **common)
            if lease is not None:
                self._leases.hold(lease)
                return lease
            if (portion := self._next(images)) is not None:
                return portion
            taken = self._db.write(ranges.claim, self._worker, limit=claim_size(images), **common)
            if taken is None:
                return None
            if taken.claims:
                self._leases.hold(taken)
                self._range = RangeWork(taken)
                return self._next(images)
            # Others did all of it; there may be hundreds of such ranges, and new images meanwhile.

    def _next(self, images: int) -> RangeBatch | None:
        return None if self._range is None else self._range.next(images)

    def _pass_over(self, lease: queue.Lease, error: Exception) -> None:
        """Leave the jobs of this version to other hosts for a while.

        The champion must work, so its error is raised, unless this is a service and other hosts may have what this one
        lacks.
        """
        self._return(lease, _told(error))
        waits = isinstance(error, HostLacksError) and not self._drains
        if not waits and self._db.read(versions.champion).id == lease.model_version_id:
            raise error
        self._unusable[lease.model_version_id] = self._clock() + UNUSABLE_PAUSE
        unforeseen = not isinstance(error, MarcodError)
        log.error("model cannot be used here, its jobs wait", error=str(error), exc_info=unforeseen)

    def _model(self, version_id: int) -> _Model:
        if version_id not in self._models:
            version = self._db.read(versions.get, version_id)
            while len(self._models) >= LOADED_MODELS:
                self._models.popitem(last=False)
            predictor = self._load(version)
            named = () if predictor.record.committee is None else predictor.record.committee.members
            members = tuple(self._db.read(versions.find, m.name, str(m.version)) for m in named)
            self._models[version_id] = _Model(version, predictor, members)
            self._committees = self._committees or bool(members)
            by_parts = all(model.predictor.by_parts for model in self._models.values())
            self._size.limit(BY_PARTS if by_parts else None)
            log.info("model loaded", model=str(version), synthetic=version.synthetic, engine=predictor.engine)
        self._models.move_to_end(version_id)
        return self._models[version_id]

    def _stored(self, model: _Model, image_ids: Sequence[int]) -> Mapping[int, Known]:
        """Read what the networks of a version scored before.

        Without a committee every score comes from a job of its own version, so there is nothing to read.
        """
        if not self._committees:
            return {}
        return self._db.read(results.stored, [version.id for version, _ in model.networks], image_ids)

    def _predict_or_give_back(
        self, batch: _Batch, following: Future[_Batch | None], alive: Callable[[], None]
    ) -> Outcome | None:
        """Predict. When the device or the model itself fails, no claim loses an attempt.

        Returns None for a version that is passed over.
        """
        try:
            try:
                return self._predict(batch, alive)
            except ModelFaultError as error:
                self._pass_over(batch.lease, error)
                return None
        except BaseException as error:
            cause = _told(error) if isinstance(error, Exception) else None
            self._give_back(batch, cause)
            ahead = following.result()
            if ahead is not None:
                self._give_back(ahead, cause)
            raise

    def _predict(self, batch: _Batch, alive: Callable[[], None]) -> Outcome:
        start = time.perf_counter()
        outcomes = self._decoders.collect(batch.lease.claims, batch.images, self._settings.lease_s / 2, alive)
        ready = time.perf_counter()
        pairs = zip(batch.lease.claims, outcomes, strict=True)
        good = [(claim, outcome) for claim, outcome in pairs if isinstance(outcome, Prepared)]
        failures = self._places.without_fault(o for o in outcomes if isinstance(o, queue.Failure))
        short = any(failure.error == NO_MEMORY for failure in failures)
        good = self._newly_stored(batch.model, good)
        rows, errors, halved = self._score(batch.model, good)
        scored, failed = _outcomes(batch.model, good, rows, errors)
        if failed and not scored:
            failed = self._blamed(batch, good, failed)
        # Of images that the committee scored alone: what its members gave another image counts once it is tried again.
        alone = {row.claim.image_id for row in scored}
        by_members = [
            (member, [row for row in its if row is not None and row.claim.image_id in alone])
            for member, its in zip(batch.model.members, rows, strict=False)
        ]
        decode_s = [prepared.decode_s for _, prepared in good]
        times = ready - start, time.perf_counter() - ready
        return Outcome(batch.version, scored, by_members, [*failures, *failed], decode_s, *times, short or halved)

    def _newly_stored(self, model: _Model, good: list[_Read]) -> list[_Read]:
        """Add the scores that networks gave since the batch was claimed, such as those of the batch before it."""
        lacking = [claim.image_id for claim, prepared in good if prepared.inputs]
        if self._written is not None and self._committees:
            wait([self._written])
        known = self._stored(model, lacking) if lacking else {}
        return [(claim, prepared.knowing(known.get(claim.image_id, NOTHING_KNOWN))) for claim, prepared in good]

    def _score(
        self, model: _Model, good: Sequence[_Read]
    ) -> tuple[list[list[results.Scored | None]], list[str | None], bool]:
        """Let each network score the images that it must.

        Returns by network and image a new row, or None where there is none; the error of each image; and True if
        memory was too short for all at once.
        """
        rows: list[list[results.Scored | None]] = []
        errors: list[str | None] = [None] * len(good)
        short = False
        for index, (version, network) in enumerate(model.networks):
            rows.append([None] * len(good))
            mine = [i for i, (_, prepared) in enumerate(good) if index in prepared.inputs]
            vectors, halved = _vectors(network, [good[i][1].inputs[index] for i in mine])
            short = short or halved
            for i, vector in zip(mine, vectors, strict=True):
                claim, prepared = good[i]
                if vector is not None and np.isfinite(vector).all():
                    rows[index][i] = _scored(network, claim, prepared, vector, prepared.looks[index])
                    self._proven[version.id] = prepared.inputs[index]
                else:
                    errors[i] = "the model cannot score it" if vector is None else "the model gave no number for it"
        return rows, errors, short

    def _blamed(self, batch: _Batch, good: Sequence[_Read], failed: list[queue.Failure]) -> list[queue.Failure]:
        """Blame the images for a batch of which not one was scored, if the model scores what it scored before.

        A single image may be odd even where nothing was scored before; it is tried again. Raises ModelFaultError.
        """
        used = {index for _, prepared in good for index in prepared.inputs}
        networks = [one for index, one in enumerate(batch.model.networks) if index in used]
        proofs = [(network, self._proven.get(version.id)) for version, network in networks]
        if all(proof is not None and _works(network, proof) for network, proof in proofs):
            return failed
        if any(proof is None for _, proof in proofs) and len(failed) == 1:
            return [replace(failed[0], retryable=True)]
        raise ModelFaultError(f"{batch.version} fails on every image: {failed[0].error}")

    def _finish(self, lease: queue.Lease, outcome: Outcome) -> BatchReport | None:
        """Write a batch; one of a campaign is gathered, and written with others of its lease."""
        if not isinstance(lease, RangeBatch):
            return self._write(lease, outcome)
        lease.work.gather(lease, outcome)
        short = outcome.short and not outcome.scored
        return self._write_range(lease.work, last=short) if short or lease.work.is_due else None

    def _write_gathered(self, *, last: bool) -> BatchReport | None:
        return None if self._range is None else self._write_range(self._range, last=last)

    def _leave_range(self) -> None:
        """Give back what is left of a range, whose lease is renewed no more."""
        work, self._range = self._range, None
        if work is not None:
            work.abandon()
            self._leases.give_back(work.lease)

    def _write_range(self, work: RangeWork, *, last: bool = False) -> BatchReport | None:
        gathered = work.collect(last=last)
        return None if gathered is None else self._write(gathered.lease, gathered.outcome, keeps=gathered.keeps)

    def _write(self, lease: queue.Lease, outcome: Outcome, *, keeps: bool = False) -> BatchReport:
        now = self._clock()
        rules: dict[str, Any] = {
            "now": now, "retry_s": self._settings.retry_s, "max_attempts": self._settings.max_attempts,
            "by_members": outcome.by_members,
        }  # fmt: skip
        version, found = outcome.version, (outcome.scored, outcome.failures)
        try:
            if isinstance(lease, RangeLease):
                done = self._db.write(results.finish_range, lease, version, *found, keeps=keeps, **rules)
            else:
                done = self._db.write(results.finish, lease.token, version, *found, **rules)
        except BaseException as error:
            # A disk that is full often takes claims still, and no scores; no image has to pay for that.
            self._return(lease, _told(error) if isinstance(error, Exception) else None)
            raise
        if not keeps:
            self._leases.drop(lease)
        elif done.held:
            self._leases.proceed(lease)
        else:
            # Somebody else has the range, or its campaign was cancelled.
            self._return(lease)
        report = report_of(lease, str(version), outcome, done, now)
        log_batch(report, outcome.failures)
        self._on_batch(report)
        return report

    def _give_back(self, batch: _Batch, cause: str | None = None) -> None:
        for future in batch.images:
            future.cancel()
        self._return(batch.lease, cause)

    def _return(self, lease: queue.Lease, cause: str | None = None) -> None:
        """Give back a lease, of a batch of a campaign the whole one."""
        if isinstance(lease, RangeBatch):
            lease.work.abandon()
            lease = lease.work.lease
        elif self._range is not None and self._range.lease.token == lease.token:
            self._range.abandon()
        self._leases.give_back(lease, cause)


def _told(error: Exception) -> str:
    """Describe in one sentence what delayed images."""
    if is_out_of_memory(error):
        return str(ShortOfMemoryError())
    return str(error) if isinstance(error, MarcodError) else f"{type(error).__name__}: {error}"


_Vectors = Sequence[NDArray[np.float32] | None]


def _vectors(predictor: Predictor, pixels: list[NDArray[np.float32]]) -> tuple[_Vectors, bool]:
    """Return the model's output for each image, and True if memory was too short for all at once.

    When the batch fails, each is tried alone and None stands for a failure. Raises what the device raises when it
    cannot even predict a black image, and ShortOfMemoryError where there is no memory for one.
    """
    if not pixels:
        return [], False
    try:
        return list(predictor.predict(pixels)), False
    except Exception as error:
        if is_out_of_memory(error):
            return _halved(predictor, pixels, error), True
        log.exception("batch failed on the device")
    _black(predictor, pixels[0])
    return [_vector_alone(predictor, image) for image in pixels], False


def _halved(predictor: Predictor, pixels: list[NDArray[np.float32]], error: Exception) -> _Vectors:
    if len(pixels) == 1:
        raise ShortOfMemoryError from error
    middle = len(pixels) // 2
    return [vector for half in (pixels[:middle], pixels[middle:]) for vector in _vectors(predictor, half)[0]]


def _black(predictor: Predictor, like: NDArray[np.float32]) -> None:
    """Predict a black image. Raises what the device raises."""
    try:
        predictor.predict(np.zeros_like(like)[np.newaxis])
    except Exception as error:
        if is_out_of_memory(error):
            raise ShortOfMemoryError from error
        raise


def _vector_alone(predictor: Predictor, pixels: NDArray[np.float32]) -> NDArray[np.float32] | None:
    try:
        vector: NDArray[np.float32] = predictor.predict(pixels[np.newaxis])[0]
    except Exception as error:
        if is_out_of_memory(error):
            raise ShortOfMemoryError from error
        log.exception("image failed on the device")
        return None
    return vector


def _works(predictor: Predictor, pixels: NDArray[np.float32]) -> bool:
    """Check that the model still scores an image that it has scored before."""
    vector = _vector_alone(predictor, pixels)
    return vector is not None and bool(np.isfinite(vector).all())


def _outcomes(
    model: _Model, good: Sequence[_Read], rows: Sequence[Sequence[results.Scored | None]], errors: Sequence[str | None]
) -> tuple[list[results.Scored], list[queue.Failure]]:
    """Return the version's own scores, for a committee those that it makes of its members', and what failed."""
    scored: list[results.Scored] = []
    failed: list[queue.Failure] = []
    for i, (claim, prepared) in enumerate(good):
        error, own = errors[i], [of_network[i] for of_network in rows]
        if error is not None:
            failed.append(queue.Failure(claim, error, retryable=False, content_hash=prepared.content_hash))
        elif isinstance(model.predictor, CommitteePredictor):
            given = [row or prepared.stored[index] for index, row in enumerate(own)]
            vector = model.predictor.combine([[one.probabilities for one in given]])[0]
            scored.append(_scored(model.predictor, claim, prepared, vector, prepared.looks[0]))
        else:
            scored.append(own[0] or _known(claim, prepared))
    return scored, failed


def _known(claim: queue.Claim, prepared: Prepared) -> results.Scored:
    """Return the score that a network gave before: its row is there, and the image and its job follow."""
    before = prepared.stored[0]
    return results.Scored(claim, prepared.content_hash, before.probabilities, None, *before.measured, prepared.warnings)


def _scored(
    predictor: Predictor,
    claim: queue.Claim,
    prepared: Prepared,
    vector: NDArray[np.float32],
    looks: Appearance,
) -> results.Scored:
    clear, crystals, other, precipitate = (float(p) for p in predictor.fold(vector[None, :])[0])
    own = None
    if len(vector) != 4 or tuple(predictor.record.classes) != results.CLASS_NAMES:
        own = {name: float(p) for name, p in zip(predictor.record.classes, vector, strict=True)}
    folded = (clear, crystals, other, precipitate)
    measured = looks.brightness, looks.contrast, looks.focus
    return results.Scored(claim, prepared.content_hash, folded, own, *measured, prepared.warnings, predictor.engine)

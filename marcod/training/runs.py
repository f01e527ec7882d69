"""A training run from labels to verdict: one at a time over all hosts, and to be killed at any point.

Hides the order of the steps and what is done when a process dies between two of them. Promises that a run which was
killed goes on from what it left in its folder; that a candidate which does not pass changes nothing that serves; and
that a model which was rolled back is not made champion a second time.
"""

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from marcod import files, telemetry
from marcod.database.engine import Database
from marcod.domain import Modality
from marcod.errors import MarcodError, NotFoundError, StoreError, is_full, os_reason
from marcod.fitting import batches, fit, plots
from marcod.fitting.fit import Progress
from marcod.model import bundle
from marcod.model.bundle import BundleRecord
from marcod.model.registry import Registry
from marcod.settings import TrainSettings
from marcod.store import versions
from marcod.store.versions import Version
from marcod.text import count
from marcod.training import assess, candidate, data, rehearsal, run_rows, snapshot_rows
from marcod.training import snapshot as training_snapshot
from marcod.training.candidate import Candidate, Tier, TrainContext
from marcod.training.rehearsal import RehearsalSet
from marcod.training.run_rows import Run
from marcod.training.snapshot import Snapshot
from marcod.training.trainer import SILENCE_S, process_lives

log = telemetry.logger(__name__)

BEAT_S: Final = 5.0
MOST_STARTS: Final = 20
SAMPLE: Final = 400
"""Images from which the natural shares of the classes are estimated."""

MANIFEST: Final = "manifest.jsonl"
STARTS: Final = "starts"
VERDICT: Final = "verdict.json"
UNTRAINED: Final = "nothing was trained, because no candidate could pass; label drops with crystals on more plates"
TRAINER: Final = "trainer"
"""Who promotes, in the audit."""


class InterruptedRunError(MarcodError):
    """The training run was stopped; the next `marcod retrain` goes on with it."""


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """What a run was asked for. ``tier`` and ``sources`` are chosen by marcod where they are None."""

    cause: Literal["person", "schedule", "labels", "drift"]
    actor: str
    settings: TrainSettings
    tier: Tier | None = None
    sources: tuple[str, ...] | None = None
    again: bool = False
    tensorboard: bool = False

    def options(self) -> dict[str, Any]:
        """For the run's row, from which a run that was killed is gone on with."""
        return {
            "train": self.settings.model_dump(mode="json"),
            "tier": self.tier,
            "sources": None if self.sources is None else list(self.sources),
            "again": self.again,
            "tensorboard": self.tensorboard,
        }


@dataclass(frozen=True)
class RunContext:
    """Where a run happens: its database, the bundles, the sources' folders here, and how it is watched."""

    db: Database
    registry: Registry
    models: Path
    roots: Mapping[str, Path]
    threads: int
    stop: threading.Event
    progress: Progress
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


def retrain(context: RunContext, request: RetrainRequest) -> Run:
    """Train, judge and decide, going on with a run that was killed. Returns the run as it ended.

    Raises StoreError when another run is active, :class:`InterruptedRunError` when it was stopped, and what went
    wrong, which is in the run's row as well.
    """
    run = _own(context, request)
    folder = Path(run.folder)
    with _heartbeat(context, run) as progress:
        try:
            _count_start(folder)
            _Steps(replace(context, progress=progress), run, folder).take()
        except (InterruptedError, fit.StoppedError) as error:
            (folder / STARTS).unlink(missing_ok=True)
            raise InterruptedRunError from error
        except Exception as error:
            text = _told(error, folder)
            _end(context, run, state="failed", error=text)
            raise
    return context.db.read(run_rows.get, run.id)


def _told(error: Exception, folder: Path) -> str:
    """Text of an error for people; of a full disk, which a write to an open file does not name, with its context."""
    if isinstance(error, OSError) and is_full(error):
        return f"{error.filename or folder} cannot be written: {os_reason(error)}"
    return str(error) if isinstance(error, (MarcodError, OSError)) else repr(error)


def _own(context: RunContext, request: RetrainRequest) -> Run:
    """A run that was killed, or a new one."""
    me: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": uuid4().hex,
        "now": context.clock(),
    }
    taken = context.db.write(run_rows.take_over, silence_s=SILENCE_S, alive=process_lives, **me)
    if taken is not None:
        if Path(taken.folder).is_dir():
            log.info("going on with a training run", run=taken.id, started=taken.started_at.isoformat())
            return taken
        _end(context, taken, state="abandoned", error=f"its folder {taken.folder} is not on {me['host']}")
    champion = context.db.read(versions.champion)
    folder = request.settings.folder / f"run-{context.clock():%Y%m%dT%H%M%S}-{me['token'][:6]}"
    folder.mkdir(parents=True)
    return context.db.write(
        run_rows.begin,
        cause=request.cause,
        actor=request.actor,
        recipe=request.settings.recipe,
        options=request.options(),
        parent=str(champion),
        folder=str(folder),
        **me,
    )


def _count_start(folder: Path) -> None:
    """A run that dies each time, of memory for example, must not be gone on with for ever."""
    starts = folder / STARTS
    with starts.open("a", encoding="utf-8") as stream:
        stream.write("started\n")
    if len(starts.read_text(encoding="utf-8").splitlines()) > MOST_STARTS:
        raise MarcodError(f"the run was begun {MOST_STARTS} times and never came to its end; see the log for why")


@contextmanager
def _heartbeat(context: RunContext, run: Run) -> Iterator[Progress]:
    """Show life every few seconds, with the step the run is in; stop the context when the run was taken over."""
    over, step = threading.Event(), {"text": "begins"}

    def beat() -> None:
        while not over.wait(BEAT_S):
            try:
                context.db.write(run_rows.beat, run.id, run.token, step=step["text"], now=context.clock())
            except StoreError as error:
                log.warning("training run cannot show life", run=run.id, error=str(error))
                if not _ours(context, run):
                    context.stop.set()

    def progress(what: str, done: int, total: int) -> None:
        step["text"] = f"{what}, {done} of {total}"
        context.progress(what, done, total)

    thread = threading.Thread(target=beat, name="training heartbeat", daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()


def _ours(context: RunContext, run: Run) -> bool:
    """Whether the run is still this process's; a database that is away takes nothing from anybody."""
    try:
        return context.db.read(run_rows.get, run.id).token == run.token
    except NotFoundError:
        return False
    except StoreError:
        return True


def _end(context: RunContext, run: Run, **outcome: Any) -> None:
    context.db.write(run_rows.end, run.id, run.token, now=context.clock(), **outcome)
    log.info("training run ended", run=run.id, state=outcome["state"], candidate=run.candidate)
    # Images and checkpoints of gigabytes, which nobody needs after the end.
    for pattern in ("*.npy", "*.npz", "*.part"):
        for file in Path(run.folder).glob(pattern):
            file.unlink(missing_ok=True)


class _Steps:
    """The steps of one run; each is skipped whose result is in the folder."""

    def __init__(self, context: RunContext, run: Run, folder: Path) -> None:
        self._context, self._run, self._folder = context, run, folder
        self._settings = TrainSettings(**run.options["train"])
        self._sources = run.options["sources"]

    def take(self) -> None:
        """All of them, up to the run's end."""
        verdict_file = self._folder / VERDICT
        if not verdict_file.exists() and not self._judged():
            return
        verdict = json.loads(verdict_file.read_text(encoding="utf-8"))
        self._decide(verdict)

    def _judged(self) -> bool:
        """Train and judge; False when the run ended without a candidate."""
        parent = self._parent()
        snapshot = self._snapshot(parent)
        if not snapshot.items:
            self._end(state="unchanged", reasons=["no labelled image can be read; label drops first", *snapshot.away])
            return False
        if not (check := assess.enough(snapshot, self._settings)).passed:
            numbers = {"gate": {"checks": [asdict(check)]}}
            self._end(state="refused", reasons=[check.sentence, UNTRAINED], numbers=numbers)
            return False
        tier = self._run.options["tier"] or candidate.tier_for(snapshot, self._settings)
        same = self._material(snapshot, parent, tier)
        if (earlier := self._earlier(same)) is not None and not self._run.options["again"]:
            self._end(state="unchanged", reasons=[earlier], numbers={"material": same})
            return False
        self._note(tier=tier)
        rehearsal_set = rehearsal.load(
            self._settings, parent, progress=self._context.progress, stopped=self._context.stop.is_set,
            processes=self._context.threads, known={item.content_hash for item in snapshot.items},
        )  # fmt: skip
        context = self._context(parent)
        made = candidate.train_candidate(context, snapshot, rehearsal_set, tier, lambda: self._sample(context))
        self._judge(context, made, snapshot, rehearsal_set, same)
        return True

    def _partly(self, snapshot: Snapshot) -> list[str]:
        """Why a candidate that passed is only recommended: not all imagers that the champion serves were tested."""
        chosen = [f"only labels of {', '.join(self._sources)} were used"] if self._sources else []
        return [*snapshot.away, *chosen]

    def _parent(self) -> BundleRecord:
        name, version = str(self._run.parent).rsplit(":", 1)
        return bundle.read(self._context.registry.path(name, version))

    def _snapshot(self, parent: BundleRecord) -> Snapshot:
        context, manifest = self._context, self._folder / MANIFEST
        if manifest.exists():
            # The run as it is now: the one begun with had no data set yet.
            data_id = context.db.read(run_rows.get, self._run.id).dataset_id
            if data_id is None:
                raise MarcodError(f"{manifest} is of no data set that the database knows; remove {self._folder}")
            return training_snapshot.read(manifest, context.db.read(run_rows.data, data_id).digest)
        taken = training_snapshot.take(
            context.db, modality=Modality(parent.modality), roots=context.roots, now=context.clock(), sources=self._sources,
            done=lambda count: context.progress("reading labelled images", count, count),
        )  # fmt: skip
        # The row first: a manifest in the folder is always one that the database knows.
        dataset_id = training_snapshot.register(context.db, taken)
        self._note(dataset_id=dataset_id)
        training_snapshot.write(taken, manifest)
        for sentence in taken.away:
            log.warning("labelled images cannot be read", problem=sentence)
        return taken

    def _material(self, snapshot: Snapshot, parent: BundleRecord, tier: str) -> str:
        """What decides a candidate, as one hash: the same again would give the same model again."""
        rehearsal_set = rehearsal.about(self._settings, parent)
        rows = [(i.content_hash, i.label, i.shares, i.weight, i.side, i.source, i.plate_key) for i in snapshot.items]
        kept = {"folder", "schedule", "min_new_labels", "on_drift", "promotion", "shadow_images", "name"}
        options = {k: v for k, v in self._run.options["train"].items() if k not in kept}
        told = json.dumps([sorted(map(str, rows)), parent.digest, tier, rehearsal_set, options], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def _earlier(self, same: str) -> str | None:
        """A sentence on the latest run with the same material."""
        for run in self._context.db.read(run_rows.listed, 1000):
            if run.id != self._run.id and run.state in run_rows.JUDGED and (run.numbers or {}).get("material") == same:
                return (
                    f"labels, base set and settings are those of training run {run.id}, which ended {run.state}; "
                    "nothing was trained"
                )
        return None

    def _context(self, parent: BundleRecord) -> TrainContext:
        folder = self._context.registry.path(parent.name, str(parent.version))
        _, weights = bundle.load_weights(folder)
        return TrainContext(
            settings=self._settings,
            folder=self._folder,
            roots=self._context.roots,
            parent=parent,
            parent_folder=folder,
            parent_weights=weights,
            threads=self._context.threads,
            stop=self._context.stop,
            progress=self._context.progress,
            tensorboard=self._folder / "tensorboard" if self._run.options["tensorboard"] else None,
        )

    def _sample(self, context: TrainContext) -> NDArray[np.uint8]:
        """Kept images of the lab as they come."""
        context, kept = self._context, self._folder / "sample.npy"
        if kept.exists():
            return batches.kept_again(kept)
        stored = context.db.read(snapshot_rows.sample, Modality(context.parent.modality), SAMPLE, self._settings.seed)
        files = [context.roots.get(s.source, Path(s.root)) / s.path for s in stored]
        side = data.kept_side(context.architecture.input_size)
        if not files:
            return np.zeros((0, side, side, 3), np.uint8)
        batches.kept(
            files, side, kept, threads=context.threads,
            done=lambda count: context.progress("reading a sample", count, len(files)), stopped=context.stop.is_set,
        )  # fmt: skip
        return batches.kept_again(kept)

    def _judge(
        self, context: TrainContext, made: Candidate, snapshot: Snapshot, rehearsal_set: RehearsalSet, same: str
    ) -> None:
        path = self._written(context, made, snapshot, rehearsal_set)
        version = self._context.registry.find(str(self._run.parent))
        champion = self._context.registry.load(version, assess.BATCH)
        looks = self._context.db.read(run_rows.gate_uses, snapshot.gate_digest)
        verdict = assess.judge(context, champion, path, made, snapshot, rehearsal_set, looks)
        title = f"{path.parent.name}:{path.name}, {made.tier}"
        plots.write(self._folder, made.measured.get("curve", []), title, {"tier": made.tier, "title": title})
        numbers = {
            "gate": verdict.numbers,
            "material": same,
            "model": assess.model_digest(made),
            "partly": self._partly(snapshot),
            "unreadable": list(made.unreadable),
            "base": rehearsal_set.about,
            "natural_shares": made.measured.get("natural_shares"),
            "mix": made.measured.get("mix"),
            "label_noise": None if made.own_issues is None else made.own_issues.noise,
            "doubted_labels": None if made.label_issues is None else len(made.label_issues.suspects),
        }
        outcome = {"passed": verdict.passed, "reasons": list(verdict.reasons), "numbers": numbers, "path": str(path)}
        files.write_whole(self._folder / VERDICT, json.dumps(outcome, allow_nan=False))

    def _written(self, context: TrainContext, made: Candidate, snapshot: Snapshot, rehearsal_set: RehearsalSet) -> Path:
        """The candidate's bundle in the run's folder; it comes to the others when it has passed."""
        context, models = self._context, self._folder / "candidate"
        # One that is there was written before a kill, by weights that may differ in the last bit.
        shutil.rmtree(models, ignore_errors=True)
        runs = context.db.read(run_rows.listed, 1000)
        taken = [run.candidate for run in runs if run.candidate is not None]
        number = context.registry.next_number(self._settings.name, taken)
        return assess.write(models, context, made, snapshot, rehearsal_set, number)

    def _decide(self, outcome: dict[str, Any]) -> None:
        path = Path(outcome["path"])
        record = bundle.read(path)
        self._note(candidate=f"{record.name}:{record.version}", candidate_digest=record.digest)
        reasons, numbers = outcome["reasons"], outcome["numbers"]
        if not outcome["passed"]:
            self._end(state="refused", reasons=reasons, numbers=numbers)
            return
        if (why := self._rolled_back(record, numbers)) is not None:
            self._end(state="refused", reasons=[why, *reasons], numbers=numbers)
            return
        bundle.install(path, self._context.models)
        version = self._context.registry.register(record.name, str(record.version), self._context.clock())
        state, added = self._serve(version, numbers)
        self._end(state=state, reasons=[*added, *reasons], numbers=numbers)

    def _serve(self, version: Version, numbers: dict[str, Any]) -> tuple[str, list[str]]:
        """Promote a candidate that passed, let it score in shadow, or only recommend it, and why."""
        context, settings = self._context, self._settings
        champion = str(context.db.read(versions.champion))
        if champion not in (self._run.parent, str(version)):
            return "recommended", [
                f"{champion} became champion meanwhile, and the gate compared with {self._run.parent}"
            ]
        if partly := numbers.get("partly"):
            return "recommended", partly
        if settings.promotion == "manual":
            return "recommended", ["train.promotion is manual"]
        if settings.shadow_images:
            context.registry.challenge(version, actor=TRAINER, now=context.clock())
            return "shadow", [
                f"it scores the next {count(settings.shadow_images, 'new image')} beside the champion first"
            ]
        try:
            context.registry.promote(version, actor=TRAINER, now=context.clock(), instead_of=self._run.parent)
        except StoreError as error:
            return "recommended", [str(error)]
        return "promoted", []

    def _rolled_back(self, record: BundleRecord, numbers: dict[str, Any]) -> str | None:
        """Whether this model, under this name or another, was champion and was rolled back."""
        db = self._context.db
        same = [record.digest]
        for run in db.read(run_rows.listed, 1000):
            if run.candidate_digest and (run.numbers or {}).get("model") == numbers["model"]:
                same.append(run.candidate_digest)
        for digest in same:
            note = db.read(lambda connection, d=digest: run_rows.rolled_back(connection, d))  # type: ignore[misc]
            if note is not None:
                return (
                    f"the same model was rolled back on {note.at:%Y-%m-%d} by {note.actor}; "
                    f"a person may make it champion all the same, from {self._folder / 'candidate'}"
                )
        return None

    def _note(self, **values: Any) -> None:
        self._context.db.write(run_rows.note, self._run.id, self._run.token, **values)

    def _end(self, **outcome: Any) -> None:
        _end(self._context, self._run, **outcome)

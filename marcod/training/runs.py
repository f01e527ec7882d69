"""Training run from labels to decision: one at a time over all hosts.

Guarantees:

* A run that was killed at any point resumes from what it left in its folder.
* A candidate that does not pass changes nothing that serves.
* A model that was rolled back is not promoted a second time.
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
from marcod.errors import TRY_AGAIN, MarcodError, NotFoundError, StoreError, is_full, os_reason
from marcod.evaluate.gate import GateResult
from marcod.fitting import batches, fit, plots, together
from marcod.fitting.fit import Progress
from marcod.fitting.together import Team
from marcod.model import bundle
from marcod.model.bundle import BundleRecord
from marcod.model.predictor import CommitteePredictor, Predictor
from marcod.model.registry import Registry
from marcod.settings import TrainSettings
from marcod.store import versions
from marcod.store.versions import Version
from marcod.text import count
from marcod.training import assess, candidate, committees, data, looks, rehearsal, run_rows, snapshot_rows, tiers
from marcod.training import snapshot as training_snapshot
from marcod.training.candidate import Candidate, TrainContext
from marcod.training.rehearsal import RehearsalSet
from marcod.training.run_rows import Run
from marcod.training.snapshot import Snapshot
from marcod.training.tiers import Tier
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
"""The actor of a promotion in the audit log."""


class InterruptedRunError(MarcodError):
    """The training run was stopped; the next `marcod retrain` resumes it."""

    exit_code = TRY_AGAIN


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """Request for a run; marcod chooses ``tier`` and ``sources`` where they are None.

    With ``seeds`` the network is trained once with each, and the validation side chooses.
    """

    cause: Literal["person", "schedule", "labels", "drift"]
    actor: str
    settings: TrainSettings
    tier: Tier | None = None
    sources: tuple[str, ...] | None = None
    again: bool = False
    tensorboard: bool = False
    seeds: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """Return the options for the run's row, from which a run that was killed is resumed."""
        given = {name: getattr(self, name) for name in ("tier", "sources", "again", "tensorboard", "seeds")}
        return {"train": self.settings.model_dump(mode="json"), **given}


@dataclass(frozen=True)
class RunContext:
    """Surroundings of a run: database, bundles, the sources' folders on this host, stop event and progress."""

    db: Database
    registry: Registry
    models: Path
    roots: Mapping[str, Path]
    threads: int
    stop: threading.Event
    progress: Progress
    team: Team = together.ALONE
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


def retrain(context: RunContext, request: RetrainRequest) -> Run:
    """Open a run or resume one that was killed, carry it out, and return it as it ended.

    Raises StoreError when another run is active, :class:`InterruptedRunError` when it was stopped, LostProcessError
    when one of the processes that train together died, and any other error after noting it in the run's row.
    """
    run = _open_or_resume(context, request)
    folder = Path(run.folder)
    with _heartbeat(context, run) as progress:
        try:
            _count_start(folder)
            _OpenRun(replace(context, progress=progress), run, folder).carry_out()
        except (InterruptedError, fit.StoppedError) as error:
            (folder / STARTS).unlink(missing_ok=True)
            raise InterruptedRunError from error
        except fit.LostProcessError:
            # It stays open, so that the next start goes on from the checkpoint.
            raise
        except Exception as error:
            _end(context, run, state="failed", error=_describe(error, folder))
            raise
    return context.db.read(run_rows.get, run.id)


def _describe(error: Exception, folder: Path) -> str:
    """Return an error's sentence; for a full disk with the path, which a write to an open file does not name."""
    if isinstance(error, OSError) and is_full(error):
        return f"{error.filename or folder} cannot be written: {os_reason(error)}"
    return str(error) if isinstance(error, (MarcodError, OSError)) else repr(error)


def _open_or_resume(context: RunContext, request: RetrainRequest) -> Run:
    """Take over a run that was killed, or open a new one."""
    now = context.clock()
    me: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid4().hex, "now": now}
    taken = context.db.write(run_rows.take_over, silence_s=SILENCE_S, alive=process_lives, **me)
    if taken is not None:
        if Path(taken.folder).is_dir():
            log.info("training run resumed", run=taken.id, started=taken.started_at.isoformat())
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
    """Count the starts. Raises MarcodError for a run that dies each time, of memory for example."""
    starts = folder / STARTS
    with starts.open("a", encoding="utf-8") as stream:
        stream.write("started\n")
    if len(starts.read_text(encoding="utf-8").splitlines()) > MOST_STARTS:
        raise MarcodError(f"the run was started {MOST_STARTS} times and never ended; see the log for why")


@contextmanager
def _heartbeat(context: RunContext, run: Run) -> Iterator[Progress]:
    """Write a heartbeat with the current step every few seconds; stop the work when another process owns the run."""
    over, step = threading.Event(), {"text": "starts"}

    def beat() -> None:
        while not over.wait(BEAT_S):
            try:
                context.db.write(run_rows.beat, run.id, run.token, step=step["text"], now=context.clock())
            except StoreError as error:
                log.warning("training heartbeat failed", run=run.id, error=str(error))
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
    """Check that this process still owns the run; an unreachable database changes no owner."""
    try:
        return context.db.read(run_rows.get, run.id).token == run.token
    except NotFoundError:
        return False
    except StoreError:
        return True


def _end(context: RunContext, run: Run, **outcome: Any) -> None:
    context.db.write(run_rows.end, run.id, run.token, now=context.clock(), **outcome)
    log.info("training run ended", run=run.id, state=outcome["state"], candidate=run.candidate)
    # Gigabytes of images and checkpoints that are useless after the end.
    for pattern in ("*.npy", "*.npz", "*.part"):
        for file in Path(run.folder).glob(pattern):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _OpenRun:
    """A run of this process, and its folder, which holds the result of every step that is done."""

    context: RunContext
    run: Run
    folder: Path

    @property
    def settings(self) -> TrainSettings:
        """The settings the run was requested with."""
        return TrainSettings(**self.run.options["train"])

    @property
    def _seeds(self) -> tuple[int, ...]:
        """The seeds that the validation side chooses between; runs of before have no such option."""
        return tuple(self.run.options.get("seeds") or ())

    def carry_out(self) -> None:
        """Freeze the data, train, write the bundle, ask the gate, and decide; finished steps are not repeated."""
        if not (self.folder / VERDICT).exists():
            parent = committees.learner(self._champion(), self.context.registry, self.settings)
            if (reason := committees.unteachable(parent)) is not None:
                return self._end(state="refused", reasons=[reason], numbers=None)
            snapshot = self._freeze_data(parent)
            if (refusal := self._check_labels(snapshot)) is not None:
                return self._end(**refusal)
            tier = self.run.options["tier"] or tiers.tier_for(snapshot, self.settings)
            material = self._hash_material(snapshot, parent, tier)
            if not self.run.options["again"] and (earlier := self._find_earlier(material)) is not None:
                return self._end(state="unchanged", reasons=[earlier], numbers={"material": material})
            self._note(tier=tier)
            training = self._prepare(parent, snapshot)
            made = candidate.train_candidate(training, tier, lambda: self._sample(training))
            self._note(tier=made.tier)
            path = self._write_bundle(training, made)
            result = self._ask_gate(training, made, path)
            numbers = self._numbers(training, result, made, material) | committees.trace(path)
            outcome = {"passed": result.passed, "reasons": list(result.reasons), "numbers": numbers, "path": str(path)}
            files.write_whole(self.folder / VERDICT, json.dumps(outcome, allow_nan=False))
        return self._decide(json.loads((self.folder / VERDICT).read_text(encoding="utf-8")))

    def _champion(self) -> BundleRecord:
        return bundle.read(self.context.registry.path(*str(self.run.parent).rsplit(":", 1)))

    def _freeze_data(self, parent: BundleRecord) -> Snapshot:
        context, manifest = self.context, self.folder / MANIFEST
        if manifest.exists():
            # Read again: the row that this run started with had no data set yet.
            data_id = context.db.read(run_rows.get, self.run.id).dataset_id
            if data_id is None:
                raise MarcodError(f"{manifest} is of no data set that the database knows; remove {self.folder}")
            return training_snapshot.read(manifest, context.db.read(run_rows.data, data_id).digest)
        taken = training_snapshot.take(
            context.db, modality=Modality(parent.modality), roots=context.roots, now=context.clock(),
            sources=self.run.options["sources"],
            done=lambda count, total: context.progress("reading labelled images", count, total),
        )  # fmt: skip
        # The row first: a manifest in the folder is always one that the database knows.
        self._note(dataset_id=training_snapshot.register(context.db, taken))
        training_snapshot.write(taken, manifest)
        for sentence in taken.away:
            log.warning("labelled images cannot be read", problem=sentence)
        return taken

    def _check_labels(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """Return how the run ends when there are no labels, or too few for the gate or for any candidate, else None."""
        if not snapshot.items:
            reasons = ["no labelled image can be read; label drops first", *snapshot.away]
            return {"state": "unchanged", "reasons": reasons}
        if not (check := assess.enough(snapshot, self.settings)).passed:
            numbers = {"gate": {"checks": [asdict(check)]}}
            return {"state": "refused", "reasons": [check.sentence, UNTRAINED], "numbers": numbers}
        if (missing := tiers.find_missing(snapshot)) is not None:
            return {"state": "refused", "reasons": [missing, UNTRAINED], "numbers": None}
        return None

    def _hash_material(self, snapshot: Snapshot, parent: BundleRecord, tier: str) -> str:
        """Hash all that decides a candidate: the same again would give the same model again."""
        rehearsal_set = rehearsal.about(self.settings, parent)
        rows = [(i.content_hash, i.label, i.shares, i.weight, i.side, i.source, i.plate_key) for i in snapshot.items]
        kept = {"folder", "schedule", "min_new_labels", "on_drift", "promotion", "shadow_images", "name", "pack"}
        options = {k: v for k, v in self.run.options["train"].items() if k not in kept}
        champion = self._champion()
        digests = [parent.digest] if champion == parent else [parent.digest, champion.digest]
        seeds = [self._seeds] if self._seeds else []
        text = json.dumps([sorted(map(str, rows)), *digests, tier, rehearsal_set, options, *seeds], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _find_earlier(self, material: str) -> str | None:
        """Return a sentence on the latest run with the same material, if there is one."""
        for run in self.context.db.read(run_rows.listed, 1000):
            same = (run.numbers or {}).get("material") == material
            if same and run.id != self.run.id and run.state in run_rows.JUDGED:
                return (
                    f"labels, base set and settings are those of training run {run.id}, which ended {run.state}; "
                    "nothing was trained"
                )
        return None

    def _load_rehearsal_set(self, parent: BundleRecord, snapshot: Snapshot) -> RehearsalSet:
        context = self.context
        return rehearsal.load(
            self.settings, parent, progress=context.progress, stopped=context.stop.is_set,
            processes=context.threads, known={item.content_hash for item in snapshot.items},
        )  # fmt: skip

    def _prepare(self, parent: BundleRecord, snapshot: Snapshot) -> TrainContext:
        rehearsal_set = self._load_rehearsal_set(parent, snapshot)
        context, folder = self.context, self.context.registry.path(parent.name, str(parent.version))
        _, weights = bundle.load_weights(folder)
        return TrainContext(
            settings=self.settings,
            snapshot=snapshot,
            rehearsal_set=rehearsal_set,
            folder=self.folder,
            roots=context.roots,
            parent=parent,
            parent_folder=folder,
            parent_weights=weights,
            threads=context.threads,
            stop=context.stop,
            progress=context.progress,
            tensorboard=self.folder / "tensorboard" if self.run.options["tensorboard"] else None,
            team=context.team,
            seeds=self._seeds,
        )

    def _sample(self, training: TrainContext) -> NDArray[np.uint8]:
        """Load random images of the lab, labelled or not, as uint8 [n, side, side, 3]."""
        context, kept = self.context, self.folder / "sample.npy"
        if kept.exists():
            return batches.kept_again(kept)
        stored = context.db.read(snapshot_rows.sample, Modality(training.parent.modality), SAMPLE, self.settings.seed)
        files = [context.roots.get(s.source, Path(s.root)) / s.path for s in stored]
        how = training.preprocessing
        if not files:
            return np.zeros((0, how.size, how.size, 3), np.uint8)
        batches.kept(
            files, how, kept, threads=context.threads,
            done=lambda count: context.progress("reading a sample", count, len(files)), stopped=context.stop.is_set,
        )  # fmt: skip
        return batches.kept_again(kept)

    def _write_bundle(self, training: TrainContext, made: Candidate) -> Path:
        """Write the candidate's bundle into the run's folder; it is installed when it has passed."""
        context, models = self.context, self.folder / "candidate"
        # One that is there was written before a kill, by weights that may differ in the last bit.
        shutil.rmtree(models, ignore_errors=True)
        runs = context.db.read(run_rows.listed, 1000)
        named = [name for run in runs for name in (run.candidate, (run.numbers or {}).get("member"))]
        taken = [name for name in named if name is not None]
        path = assess.write(models, training, made, context.registry.next_number(self.settings.name, taken))
        champion = self._load_champion()
        if isinstance(champion, CommitteePredictor):
            name = champion.record.name
            number = context.registry.next_number(name, [*taken, f"{path.parent.name}:{path.name}"])
            path = committees.rebuild(models, training, context.registry, champion, path, made, number)
        title = f"{path.parent.name}:{path.name}, {made.tier}"
        plots.write(self.folder, made.measured.get("curve", []), title, {"tier": made.tier, "title": title})
        return path

    def _ask_gate(self, training: TrainContext, made: Candidate, path: Path) -> GateResult:
        registry, db = self.context.registry, self.context.db
        tested = data.own_tested(training.snapshot)
        before = db.read(looks.count, self.run.id, str(training.parent.modality), tested)
        return assess.judge(
            training, self._load_champion(), lambda: registry.load_new(path, assess.BATCH), made, before
        )

    def _load_champion(self) -> Predictor:
        registry = self.context.registry
        return registry.load(registry.find(str(self.run.parent)), assess.BATCH)

    def _numbers(self, training: TrainContext, result: GateResult, made: Candidate, material: str) -> dict[str, Any]:
        """Return the numbers of the run's row. ``partly`` has the reasons to recommend only."""
        sources = self.run.options["sources"]
        chosen = [f"only labels of {', '.join(sources)} were used"] if sources else []
        return {
            "gate": result.numbers,
            "material": material,
            "model": assess.model_digest(made),
            "partly": [*training.snapshot.away, *chosen],
            "unreadable": list(made.unreadable),
            "base": training.rehearsal_set.about,
            "natural_shares": made.measured.get("natural_shares"),
            "mix": made.measured.get("mix"),
            "seeds": made.measured.get("seeds"),
            "label_noise": None if made.own_issues is None else made.own_issues.noise,
            "doubted_labels": None if made.label_issues is None else len(made.label_issues.suspects),
        }

    def _decide(self, outcome: dict[str, Any]) -> None:
        path = Path(outcome["path"])
        record = bundle.read(path)
        self._note(candidate=f"{record.name}:{record.version}", candidate_digest=record.digest)
        reasons, numbers = outcome["reasons"], outcome["numbers"]
        if not outcome["passed"]:
            return self._end(state="refused", reasons=reasons, numbers=numbers)
        if (why := self._find_rollback(record, numbers)) is not None:
            return self._end(state="refused", reasons=[why, *reasons], numbers=numbers)
        if (member := committees.new_member(path)) is not None:
            bundle.install(member, self.context.models)
        bundle.install(path, self.context.models)
        version = self.context.registry.register(record.name, str(record.version), self.context.clock())
        state, added = self._serve(version, numbers)
        return self._end(state=state, reasons=[*added, *reasons], numbers=numbers)

    def _serve(self, version: Version, numbers: dict[str, Any]) -> tuple[str, list[str]]:
        """Promote a candidate that passed, let it score in shadow, or only recommend it, and why."""
        context, settings = self.context, self.settings
        champion = str(context.db.read(versions.champion))
        if champion not in (self.run.parent, str(version)):
            return "recommended", [
                f"{champion} became champion meanwhile, and the gate compared with {self.run.parent}"
            ]
        if partly := numbers.get("partly"):
            return "recommended", partly
        if settings.promotion == "manual":
            return "recommended", ["train.promotion is manual"]
        if settings.shadow_images:
            context.registry.challenge(version, actor=TRAINER, now=context.clock())
            return "shadow", [
                f"it scores the next {count(settings.shadow_images, 'new image')} together with the champion first"
            ]
        try:
            left = context.registry.promote(version, actor=TRAINER, now=context.clock(), instead_of=self.run.parent)
        except StoreError as error:
            return "recommended", [str(error)]
        return "promoted", [] if left is None else [left.sentence]

    def _find_rollback(self, record: BundleRecord, numbers: dict[str, Any]) -> str | None:
        """Return a sentence if this model, under this name or another, was champion and was rolled back."""
        db = self.context.db
        same = [record.digest]
        for run in db.read(run_rows.listed, 1000):
            if run.candidate_digest and (run.numbers or {}).get("model") == numbers["model"]:
                same.append(run.candidate_digest)
        for digest in same:
            if (note := db.read(run_rows.rolled_back, digest)) is not None:
                return (
                    f"the same model was rolled back on {note.at:%Y-%m-%d} by {note.actor}; "
                    f"a person may make it champion all the same, from {self.folder / 'candidate'}"
                )
        return None

    def _note(self, **values: Any) -> None:
        self.context.db.write(run_rows.note, self.run.id, self.run.token, **values)

    def _end(self, **outcome: Any) -> None:
        _end(self.context, self.run, **outcome)

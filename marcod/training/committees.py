"""Retraining under a committee: one member learns, and the committee is built again with it.

The other members and their constants stay. The constants of the member that learned follow its logits, from where the
former ones were to where the new ones are on the validation side, so that its word keeps the weight that it had. Then
temperature and threshold of the committee are chosen on the validation side, as those of a network are.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, DropClass, Split
from marcod.errors import ConfigError
from marcod.evaluate import predictions
from marcod.model import bundle, combining, committee, probabilities
from marcod.model.bundle import BundleRecord
from marcod.model.combining import CommitteeMember
from marcod.model.committee import Committee, Member
from marcod.model.predictor import CommitteePredictor, NetworkPredictor
from marcod.model.preprocess import Preprocessing
from marcod.model.registry import Registry
from marcod.settings import TrainSettings
from marcod.training import calibrate, data
from marcod.training.calibrate import Calibrated
from marcod.training.candidate import Candidate, TrainContext
from marcod.training.data import TrainingSet

PRIOR: Final = 2.0
"""Standard deviation of the offsets before labels are looked at; 2 turns odds by a factor of 7."""

NEWTON: Final = 60
"""Steps to the offsets, which are at most 1 each."""

FEWEST: Final = 8
"""Validation images with which a member's constants follow its logits, and of a class for an offset; else they stay."""


def learner(champion: BundleRecord, registry: Registry, settings: TrainSettings) -> BundleRecord:
    """Return the record of the network that learns: the champion itself, or one member of a committee.

    ``train.member`` names it; else it is the one that learned from this lab before, else the smallest, which learns
    quickest. One that is :func:`unteachable` comes last. Raises ConfigError for a name that no member has, BundleError
    for a member that is not here.
    """
    if champion.committee is None:
        return champion
    members = champion.committee.members
    named = [m for m in members if m.name == settings.member]
    own = [m for m in members if m.name == settings.name]
    if settings.member is not None and not (named or own):
        names = ", ".join(m.name for m in members)
        raise ConfigError(f"train.member: {champion.name} has no member {settings.member}; its members are {names}")
    folders = {m: registry.member_folder(champion, m) for m in members}
    records = {m: bundle.read(folder) for m, folder in folders.items()}

    def order(member: Member) -> tuple[bool, int]:
        return unteachable(records[member]) is not None, (folders[member] / bundle.WEIGHTS_FILE).stat().st_size

    return records[min(named or own or members, key=order)]


def unteachable(record: BundleRecord) -> str | None:
    """Return why a network cannot learn; None if it can. Training sees central squares, and so do its thresholds."""
    if Preprocessing.from_dict(record.preprocessing).coverage == "centre":
        return None
    return (
        f"{record.name}:{record.version} looks at whole images, and training at central squares; promote its parent "
        f"{record.parent}, retrain, and derive a version for whole images from what comes of it "
        "(`marcod model convert NAME:VERSION --coverage whole`)"
    )


def rebuild(
    models: Path, context: TrainContext, registry: Registry, champion: CommitteePredictor, new: Path, made: Candidate,
    number: int,
) -> Path:  # fmt: skip
    """Write the champion's committee with the bundle in ``new`` for the member that learned, as version ``number``."""
    former = champion.record
    assert former.committee is not None
    index = [str(m) for m in former.committee.members].index(f"{context.parent.name}:{context.parent.version}")
    learned = bundle.load(new, champion.batch_size)
    assert isinstance(learned, NetworkPredictor)
    rows, scores = _validation(context, CommitteePredictor(former, [*champion.networks, learned], champion.batch_size))
    before = scores[:, :-1]
    after = before.copy()
    after[:, index] = scores[:, -1]
    rule, found = refit(former, index, learned.record, (before, after), rows, made, context.settings.recall)
    parts = [
        CommitteeMember(new, learned, m.weight)
        if i == index
        else CommitteeMember(registry.member_folder(former, m), network, m.weight)
        for i, (m, network) in enumerate(zip(former.committee.members, champion.networks, strict=True))
    ]
    record = combining.record(
        former.name, number, parts, rule, parent=f"{former.name}:{former.version}",
        temperature=found.temperature, threshold=found.threshold,
    )  # fmt: skip
    return combining.write(models, record, parts, {"tier": made.tier, **found.measured})


def refit(
    former: BundleRecord,
    index: int,
    learned: BundleRecord,
    scores: tuple[NDArray[np.float32], NDArray[np.float32]],
    rows: TrainingSet,
    made: Candidate,
    recall: float,
) -> tuple[Committee, Calibrated]:
    """Fit a committee's constants, temperature and threshold to the candidate that takes a member's place.

    ``scores`` are the members' probabilities [n, members, 4] of the validation rows, before and after.
    """
    assert former.committee is not None
    before, after = scores
    rule = moved(former.committee, index, learned, before, after)
    rule = rule.model_copy(update={"offsets": offsets(rule, after, rows)})
    alarms = None if made.tier == "recalibrate" else _false_alarms(former, before, rows)
    natural = made.measured.get("natural_shares")
    shares = None if natural is None else np.array(natural, np.float64)
    found = calibrate.calibrate(rule.logits(after), rows, shares, former, former.threshold, recall, alarms)
    return rule, found


def new_member(path: Path) -> Path | None:
    """Return the folder of the member that a rebuilt committee was written with; None for a network."""
    rule = bundle.read(path).committee
    beside = [path.parent.parent / m.name / str(m.version) for m in (() if rule is None else rule.members)]
    return next((folder for folder in beside if folder.is_dir()), None)


def trace(path: Path) -> dict[str, str]:
    """Return the numbers of a run that name the new member and what it learned from; none for a network."""
    folder = new_member(path)
    if folder is None:
        return {}
    record = bundle.read(folder)
    name, parent = f"{record.name}:{record.version}", record.parent or ""
    return {"member": name, "member_digest": record.digest, "member_parent": parent}


def _validation(context: TrainContext, predictor: CommitteePredictor) -> tuple[TrainingSet, NDArray[np.float32]]:
    """Return the readable rows of the validation side, and each network's probabilities float32 [n, networks, 4]."""
    rows = data.training_set(context.snapshot, context.rehearsal_set, Split.VALIDATION, context.roots)
    found: dict[int, NDArray[np.float32]] = {}
    done = 0
    for batch in predictions.prepared(rows.files, range(len(rows)), predictor, context.threads):
        inputs = {i: outcome for i, outcome in batch.items() if not isinstance(outcome, str)}
        if inputs:
            found.update(zip(inputs, predictor.scores(list(inputs.values())), strict=True))
        done += len(batch)
        context.report("asking the members", done, len(rows))
    kept = np.array(sorted(found), np.intp)
    none = np.zeros((0, len(predictor.networks), 4), np.float32)
    return rows.only(kept), np.stack([found[i] for i in kept]) if found else none


def moved(
    former: Committee, index: int, learned: BundleRecord, before: NDArray[np.float32], after: NDArray[np.float32]
) -> Committee:
    """Return the former rule with the new member, whose constants have moved as its logits have."""
    old = former.members[index]
    was, now = (
        np.clip(committee.member_logits(given)[:, index], -former.clip, former.clip) for given in (before, after)
    )
    mean, deviation = old.mean, old.deviation
    if len(was) >= FEWEST and was.std() > 0 and now.std() > 0:
        ratio = float(now.std() / was.std())
        mean, deviation = float(now.mean()) - (float(was.mean()) - old.mean) * ratio, old.deviation * ratio
    new = old.model_copy(
        update={
            "name": learned.name, "version": learned.version, "digest": learned.digest, "mean": round(mean, 6),
            "deviation": float(f"{deviation:.6g}"),
        }
    )  # fmt: skip
    members = (*former.members[:index], new, *former.members[index + 1 :])
    return former.model_copy(update={"members": members})


def offsets(rule: Committee, scores: NDArray[np.float32], rows: TrainingSet) -> dict[DropClass, float]:
    """Return the offsets of the classes other than crystals that the labels of these rows ask for; crystals stay.

    They maximize the likelihood of the labels, the rehearsal set's counting as much as the lab's, with a normal prior
    of deviation :data:`PRIOR` around the former ones. A label of the lab counts once. The former ones stay unless two
    of the classes have :data:`FEWEST` of the lab's images: fewer say nothing of how often a class comes.
    """
    chosen = np.flatnonzero(rows.labels != CRYSTALS)
    seen = np.bincount(rows.labels[chosen][rows.is_lab[chosen]], minlength=len(CLASSES))
    if (seen >= FEWEST).sum() < 2:
        return rule.offsets
    former = np.array([rule.offsets.get(CLASSES[i], 0.0) for i in committee.OTHERS])
    truth = (rows.labels[chosen, np.newaxis] == np.array(committee.OTHERS)).astype(np.float64)
    shares = rule.logits(scores[chosen]).astype(np.float64)[:, committee.OTHERS]
    lab = rows.is_lab[chosen]
    weights = np.where(lab, 1.0, lab.sum() / max(1, (~lab).sum()))
    prior = PRIOR**-2
    moved = np.zeros(len(former))
    for _ in range(NEWTON):
        found = probabilities.softmax(shares + moved).astype(np.float64)
        slope = (weights[:, np.newaxis] * (found - truth)).sum(axis=0) + prior * moved
        bend = np.einsum("n,ni,nj->ij", weights, found, found)
        step = np.linalg.solve(np.diag(weights @ found) - bend + prior * np.eye(len(moved)), slope)
        # Where every member is sure of another class the likelihood is flat, and a whole step would go much too far.
        moved = moved - np.clip(step, -1, 1)
    return {CLASSES[i]: round(float(o), 6) for i, o in zip(committee.OTHERS, former + moved, strict=True)}


def _false_alarms(champion: BundleRecord, scores: NDArray[np.float32], rows: TrainingSet) -> float | None:
    """Return the share of the lab's validation images without crystals that the champion flags; None without any."""
    others = np.flatnonzero(rows.is_lab & (rows.labels != CRYSTALS))
    if not len(others) or champion.committee is None:
        return None
    own = probabilities.softmax(champion.committee.logits(scores[others]) / champion.temperature)
    return float((own[:, CRYSTALS] >= champion.threshold.crystal).mean())

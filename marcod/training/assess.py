"""Assessment of a candidate: it becomes a bundle and is judged by the gate.

The bundle on disk is judged, on the test side of the run's own frozen snapshot, which no training has seen.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from marcod import text
from marcod.domain import DropClass, Split, TrainedOn
from marcod.errors import BundleError
from marcod.evaluate import calibration, gate
from marcod.evaluate.gate import GateCheck, GateResult, Rules
from marcod.evaluate.label_issues import LabelIssues
from marcod.evaluate.predictions import Predictions, predict
from marcod.model import bundle, network, probabilities
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.settings import TrainSettings
from marcod.training import data
from marcod.training.candidate import Candidate, TrainContext
from marcod.training.snapshot import Snapshot
from marcod.training.tiers import KEEPS_CRYSTALS

PARITY: Final = 1e-3
"""Largest difference of a probability between the network as it was trained and the bundle that serves."""

FEWEST_WORDS: Final = 20
"""Judged labels from which a person's swapped classes stop a promotion."""

MOST_UNREADABLE: Final = 0.01
BATCH: Final = 16


def write(models: Path, context: TrainContext, made: Candidate, version: int) -> Path:
    """Write the candidate as bundle ``NAME:version`` below ``models``. Raises BundleError."""
    from_scratch = made.tier == "scratch"
    record = bundle.new_record(
        name=context.settings.name,
        version=version,
        modality=context.parent.modality,
        classes=made.calibrated.classes,
        folding=made.calibrated.folding,
        temperature=made.calibrated.temperature,
        threshold=made.calibrated.threshold,
        training_data=_training_data(context, made),
        licence=context.parent.licence,
        licence_text=context.parent.licence_text,
        citation=None if from_scratch else context.parent.citation,
        trained_on=_trained_on(context, made),
        notice=_notice(context, made),
        parent=f"{context.parent.name}:{context.parent.version}",
        architecture=made.architecture.to_dict(),
        preprocessing=dict(context.parent.preprocessing),
    )
    predictor = NetworkPredictor(record, made.weights, BATCH)
    _, images = calibration.measured_and_golden(context.parent_folder)
    golden = calibration.expectations(predictor, images, record.temperature)
    return bundle.write(models, record, made.weights, _measured(context, made), golden)


def _trained_on(context: TrainContext, made: Candidate) -> tuple[TrainedOn, ...]:
    """List what the candidate's weights learned from. A new calibration leaves the weights as they were."""
    if made.tier == "recalibrate":
        return context.parent.trained_on
    kept = () if made.tier == "scratch" else context.parent.trained_on
    rendered = (TrainedOn.RENDERED,) if context.rehearsal_set.synthetic else ()
    return (*kept, *rendered, TrainedOn.LAB)


def _training_data(context: TrainContext, made: Candidate) -> str:
    snapshot = context.snapshot
    learned = len(snapshot.side(Split.TRAIN)) + len(snapshot.side(Split.VALIDATION))
    return (
        f"data set {snapshot.digest[:12]}: {text.count(learned, 'labelled image')}, "
        f"{len(snapshot.side(Split.TEST))} more for the test; beside them {context.rehearsal_set.about}; {made.tier}"
    )


def _notice(context: TrainContext, made: Candidate) -> str:
    if made.tier == "recalibrate":
        return context.parent.notice
    from_rendered = made.tier != "scratch" and TrainedOn.RENDERED in context.parent.trained_on
    kept = ["Its first weights come from rendered drops."] if from_rendered else []
    kept += ["Rendered drops were among what it learned from."] if context.rehearsal_set.synthetic else []
    return "\n".join(kept)


def _measured(context: TrainContext, made: Candidate) -> dict[str, Any]:
    snapshot = context.snapshot
    return {
        "tier": made.tier,
        "seed": context.settings.seed,
        "dataset": {"digest": snapshot.digest, "gate_digest": snapshot.gate_digest, "counts": snapshot.counts()},
        "base": context.rehearsal_set.about,
        **made.measured,
    }


def model_digest(made: Candidate) -> str:
    """Return the SHA-256 of weights, temperature and threshold, which finds a model again under another name."""
    fitted = (made.calibrated.temperature, made.calibrated.threshold.crystal)
    digest = hashlib.sha256(repr(fitted).encode())
    for name in sorted(made.weights):
        digest.update(name.encode() + b"\x00" + np.ascontiguousarray(made.weights[name], np.float32).tobytes())
    return digest.hexdigest()


def judge(
    context: TrainContext, champion: Predictor, load: Callable[[], Predictor], made: Candidate, looks: float
) -> GateResult:
    """Return the gate's verdict on the bundle that ``load`` loads from disk, a network or a committee with it.

    The test side has judged ``looks`` candidates before.
    """
    rules = rules_of(context.settings, made.tier, looks)
    images = data.tested(context.snapshot, context.rehearsal_set, context.roots)
    issues = made.own_issues or made.label_issues
    suspects, judged = (0, 0) if issues is None else (len(issues.suspects), issues.judged)
    extra = [gate.labels_trusted(suspects, judged, rules), *people_checks(made.label_issues)]
    try:
        candidate = load()
    except BundleError as error:
        return _refused(*extra, GateCheck("golden images", False, str(error), {}))
    extra += [GateCheck("golden images", True, "the bundle on disk scores its golden images as it must", {})]
    extra += [_parity(context, made, learned(champion, candidate))]
    if not images:
        none = GateCheck("enough drops", False, "no labelled plate is on the test side; label drops on more plates", {})
        return _refused(none, *extra)

    def predicted(predictor: Predictor, name: str) -> Predictions:
        return predict(
            images, predictor.record, lambda: predictor, threads=context.threads,
            done=lambda count: context.report(f"testing the {name}", count, len(images)),
        )  # fmt: skip

    before, after = predicted(champion, "champion"), predicted(candidate, "candidate")
    extra += [_readable(len(images), max(len(before.unreadable), len(after.unreadable)))]
    return gate.judge((champion.record, before), (candidate.record, after), rules, extra=extra)


def enough(snapshot: Snapshot, settings: TrainSettings) -> GateCheck:
    """Check before training that the test side is large enough for the gate."""
    tested = data.own_tested(snapshot)
    found = {
        "crystals": len({item.drop_id for item in tested if item.label is DropClass.CRYSTALS}),
        "drops": len({item.drop_id for item in tested}),
        "plates": len({(item.source, item.plate_key) for item in tested}),
    }
    return gate.enough(found, rules_of(settings, "head"))


def _readable(count: int, unreadable: int) -> GateCheck:
    """Check that the test side can be read; an imager whose share is offline would not be tested at all."""
    sentence = f"{unreadable} of {text.count(count, 'test image')} could not be read, {MOST_UNREADABLE:.0%} may be"
    passed = unreadable <= MOST_UNREADABLE * count
    return GateCheck("readable images", passed, sentence, {"pictures": count, "unreadable": unreadable})


def _refused(*checks: GateCheck) -> GateResult:
    return GateResult(False, checks, {"checks": [asdict(check) for check in checks]})


def rules_of(settings: TrainSettings, tier: str, looks: float = 0) -> Rules:
    """Return the gate's rules as configured. What keeps crystals as they are ranked cannot improve the ranking."""
    return Rules(
        recall_margin=settings.recall_margin,
        imager_margin=settings.imager_margin,
        min_crystals=settings.min_test_crystals,
        min_drops=settings.min_test_drops,
        min_plates=settings.min_test_plates,
        label_noise=settings.label_noise,
        recall=settings.recall,
        primary=gate.LOG_LOSS if tier in ("recalibrate", *KEEPS_CRYSTALS) else gate.AVERAGE_PRECISION,
        seed=settings.seed,
        looks=looks,
    )


def people_checks(issues: LabelIssues | None) -> list[GateCheck]:
    """Return a failed check for each person who seems to swap two classes."""
    found = []
    for person in issues.by_person if issues is not None else ():
        if person.confused is not None and person.swapped and person.judged >= FEWEST_WORDS:
            given, likely = person.confused
            sentence = (
                f"{person.person} seems to say {given} where it is {likely} and the other way round; "
                "`marcod label suspects` lists the labels"
            )
            name, numbers = f"labels of {person.person}", {"judged": person.judged, "share": person.share}
            found.append(GateCheck(name, False, sentence, numbers))
    return found


def learned(champion: Predictor, candidate: Predictor) -> NetworkPredictor:
    """Return the candidate's network that learned: the one that the champion does not have."""
    former = {one.record.digest for one in champion.networks}
    return next(one for one in candidate.networks if one.record.digest not in former)


def _parity(context: TrainContext, made: Candidate, trained: NetworkPredictor) -> GateCheck:
    """Check that the compiled bundle and the plain network give the same probabilities."""
    model = network.build(made.architecture)
    network.set_variables(model, made.weights)
    size = made.architecture.input_size
    rng = np.random.default_rng(context.settings.seed)
    images = rng.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32).repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)
    images = np.ascontiguousarray(images[:, :size, :size])
    plain, served = np.asarray(model(images, training=False)), trained.logits(images)
    difference = float(np.abs(probabilities.softmax(plain) - probabilities.softmax(served)).max())
    passed = bool(np.isfinite(served).all()) and difference <= PARITY
    sentence = f"probabilities of the bundle and of the network as trained differ by {difference:.1e} at most"
    return GateCheck(
        "parity", passed, f"{sentence}; allowed are {PARITY:g}", {"difference": difference, "limit": PARITY}
    )

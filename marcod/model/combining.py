"""Making of a committee: its constants, threshold, golden images and bundle.

The constants are fixed once, on rendered drops that no model learns from or on scores that a lab has already. They are
part of the bundle, so no image that is scored later changes another one's score.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import floor
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import synthetic
from marcod.domain import CLASSES
from marcod.errors import ConfigError, MarcodError
from marcod.model import bundle, committee
from marcod.model.bundle import BundleRecord, Golden, Threshold
from marcod.model.committee import Committee, Member
from marcod.model.predictor import CommitteePredictor, NetworkPredictor, Predictor
from marcod.text import count

FIRST_SEED: Final = 7_000_000
"""First seed of the rendered drops; those that models are trained, chosen and tested with have lower seeds."""

DROPS: Final = 400
FEWEST: Final = 8
"""Rendered drops, or images of a lab, that constants may be fixed on."""

_DECIMALS: Final = 6


@dataclass(frozen=True)
class CommitteeMember:
    """Bundle that becomes a member: its folder, its predictor, and the weight of its word."""

    folder: Path
    predictor: NetworkPredictor
    weight: float = 1.0

    @property
    def record(self) -> BundleRecord:
        return self.predictor.record

    def __str__(self) -> str:
        return f"{self.record.name}:{self.record.version}"


@dataclass(frozen=True)
class Evidence:
    """Members' probabilities float32 [n, members, 4] of images that constants are fixed on, and their name."""

    scores: NDArray[np.float32]
    about: str


def part(folder: Path, predictor: Predictor, weight: float = 1.0) -> CommitteeMember:
    """Check that a loaded bundle can be a member. Raises ConfigError for a committee and for a weight out of bounds."""
    record = predictor.record
    if not isinstance(predictor, NetworkPredictor):
        raise ConfigError(f"{record.name}:{record.version} is a committee; combine its members instead")
    least, greatest = committee.WEIGHTS
    if not least <= weight <= greatest:
        raise ConfigError(
            f"the weight of {record.name}:{record.version} is {weight:g}; give a number from {least:g} to {greatest:g}"
        )
    return CommitteeMember(folder, predictor, weight)


def check(parts: Sequence[CommitteeMember]) -> None:
    """Check that these bundles can be members of one committee. Raises ConfigError."""
    names = [str(one) for one in parts]
    if len(parts) < 2:
        raise ConfigError("a committee needs two members or more; name them as `marcod model list` shows them")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{double} is named twice; give it a greater weight instead (--weights)")
    if len({one.record.modality for one in parts}) > 1:
        lights = ", ".join(f"{one} for {one.record.modality}" for one in parts)
        raise ConfigError(f"the members are made for different light: {lights}")


def rendered(
    parts: Sequence[CommitteeMember], drops: int = DROPS, progress: Callable[[int], None] = lambda done: None
) -> Evidence:
    """Let the members score so many rendered drops, the same ones each time; ``progress`` gets how many are done."""
    size = min(one.predictor.batch_size for one in parts)
    numbers = iter(range(drops))
    scores: list[NDArray[np.float32]] = []
    while chosen := list(islice(numbers, size)):
        images = [synthetic.drop_jpeg(FIRST_SEED + n, CLASSES[n % len(CLASSES)])[0] for n in chosen]
        scores.append(np.stack([_scores(one.predictor, images) for one in parts], axis=1))
        progress(chosen[-1] + 1)
    return Evidence(np.concatenate(scores), about(drops))


def about(drops: int) -> str:
    """Return the name of so many rendered drops as evidence."""
    return f"{count(drops, 'rendered drop')}, seeds from {FIRST_SEED}"


def _scores(predictor: Predictor, images: Sequence[bytes]) -> NDArray[np.float32]:
    return predictor.fold(predictor.predict([predictor.prepare(data) for data in images]))


def fix(parts: Sequence[CommitteeMember], evidence: Evidence) -> Committee:
    """Fix the constants of a committee. Raises MarcodError where the evidence does not carry them."""
    if len(evidence.scores) < FEWEST:
        raise MarcodError(f"{count(len(evidence.scores), 'image')} are too few to fix a committee on; give {FEWEST}")
    logits = np.clip(committee.member_logits(evidence.scores), -committee.CLIP, committee.CLIP)
    means, deviations = logits.mean(axis=0), logits.std(axis=0)
    for one, deviation in zip(parts, deviations, strict=True):
        if not deviation > 0:
            raise MarcodError(f"{one} gives all of {evidence.about} the same score; it cannot be a member")
    members = tuple(
        Member(
            name=one.record.name,
            version=one.record.version,
            digest=one.record.digest,
            mean=round(float(mean), _DECIMALS),
            deviation=float(f"{deviation:.{_DECIMALS}g}"),
            weight=one.weight,
        )
        for one, mean, deviation in zip(parts, means, deviations, strict=True)
    )
    return _scaled(members, logits, evidence.about)


def _scaled(members: tuple[Member, ...], logits: NDArray[np.float64], about: str) -> Committee:
    """Give the committee's crystal logit the weighted mean and deviation of its members' on the evidence."""
    plain = Committee(members=members, clip=committee.CLIP, mean=0.0, deviation=1.0, fixed_on=about)
    spread = float(plain.crystal_logits(logits).std())
    mean, deviation = (
        sum(share * getattr(member, name) for share, member in zip(plain.shares, members, strict=True))
        for name in ("mean", "deviation")
    )
    scale = deviation / max(spread, 1e-3)
    return plain.model_copy(update={"mean": round(mean, _DECIMALS), "deviation": float(f"{scale:.{_DECIMALS}g}")})


def write(
    models: Path,
    record: BundleRecord,
    parts: Sequence[CommitteeMember],
    measured: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write a committee's bundle below ``models``, with its members' golden images. Raises BundleError."""
    predictor = CommitteePredictor(record, [one.predictor for one in parts], 1)
    return bundle.write(
        models, record, {}, {"members": list(map(str, parts)), **measured}, list(_golden(predictor, parts))
    )


def record(name: str, version: int, parts: Sequence[CommitteeMember], rule: Committee, **more: Any) -> BundleRecord:
    """Make the record of a committee from those of its members; ``more`` are fields that it has of its own."""
    members = [one.record for one in parts]
    given: dict[str, Any] = {
        "name": name,
        "version": version,
        "modality": members[0].modality,
        "classes": tuple(c.value for c in CLASSES),
        "folding": {c.value: c for c in CLASSES},
        "temperature": 1.0,
        "threshold": _threshold(members, rule),
        "training_data": "; ".join(f"{one}: {one.record.training_data}" for one in parts),
        "licence": " AND ".join(dict.fromkeys(member.licence for member in members)),
        "citation": "; ".join(dict.fromkeys(m.citation for m in members if m.citation)) or None,
        "trained_on": tuple({kind for member in members for kind in member.trained_on}),
        "notice": "\n".join(f"{one}: {line}" for one in parts for line in one.record.notice.splitlines()),
        "committee": rule,
    }
    return bundle.new_record(**(given | more))


def _threshold(members: Sequence[BundleRecord], rule: Committee) -> Threshold:
    crystal = rule.threshold([member.threshold.crystal for member in members])
    # Downwards, so that a drop that is just a hit for every member is one for the committee too.
    crystal = floor(crystal * 10**_DECIMALS) / 10**_DECIMALS
    return Threshold(crystal=crystal, measured_on="not measured; it is where each member is at its own threshold")


def _golden(predictor: CommitteePredictor, parts: Sequence[CommitteeMember]) -> Iterator[Golden]:
    """Yield the members' golden images with the committee's probabilities."""
    for one in parts:
        for image in bundle.read_golden(one.folder):
            scores = predictor.predict(predictor.prepare(image.data)[np.newaxis])[0]
            yield replace(
                image, name=f"{one.record.name}-{one.record.version}-{image.name}", probabilities=scores.tolist()
            )

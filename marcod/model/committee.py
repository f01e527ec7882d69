"""Committee: the rule that makes one score of the scores that several models gave an image.

The members' four probabilities are enough, so that stored scores serve as well as new ones. Each member's crystal logit
is standardized by constants of its own, and the weighted mean is brought back to a scale. The other classes share what
crystals leave, as the weighted geometric mean of the members' conditional probabilities (a logarithmic opinion pool).

Guarantees:

* An image's score follows from its members' scores and from constants in the bundle alone, whatever else is scored.
* Where every member's crystal probability rises, so does the committee's.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from marcod.domain import CLASSES, CRYSTALS, DropClass

STRICT: Final = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
"""Rules for the tables of ``bundle.toml``: they never change, and hold nothing unknown and no infinite number."""

CLIP: Final = 10.0
"""Largest crystal logit of a member that counts; without it one that is certain would decide alone."""

WEIGHTS: Final = (1e-3, 1e3)
"""Least and greatest weight of a member: beyond them one decides alone, and far beyond them their sum overflows."""

_LEAST: Final = 1e-30
OTHERS: Final = tuple(i for i in range(len(CLASSES)) if i != CRYSTALS)


class Member(BaseModel):
    """Member of a committee: its bundle, and the ``mean`` and ``deviation`` of its crystal logit."""

    model_config = STRICT

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    mean: float
    deviation: float = Field(gt=0)
    weight: float = Field(ge=WEIGHTS[0], le=WEIGHTS[1])

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Committee(BaseModel):
    """Members and the rule that combines them; ``fixed_on`` names the images that the constants were fixed on.

    ``mean`` and ``deviation`` are those of the committee's crystal logit there. ``offsets`` are added to the logarithm
    of a class's share of what crystals leave, where labels showed that all members favour another.
    """

    model_config = STRICT

    members: tuple[Member, ...] = Field(min_length=2)
    clip: float = Field(gt=0)
    mean: float
    deviation: float = Field(gt=0)
    offsets: dict[DropClass, float] = Field(default_factory=dict)
    fixed_on: str

    @model_validator(mode="after")
    def _members_differ(self) -> "Committee":
        if len({str(member) for member in self.members}) != len(self.members):
            raise ValueError("a committee has each member once")
        return self

    def logits(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Combine the members' probabilities [n, members, 4], columns as domain.CLASSES, to logits float32 [n, 4]."""
        others = _others(scores)
        offsets = np.array([self.offsets.get(CLASSES[i], 0.0) for i in OTHERS])
        # By deviation too, as crystals are: a member that is merely surer, at another temperature, says no more.
        weights = [member.weight / member.deviation for member in self.members]
        shares = np.exp(_mean(np.log(others / others.sum(axis=2, keepdims=True)), weights) + offsets)
        found = np.empty((len(others), len(CLASSES)))
        found[:, CRYSTALS] = self.crystal_logits(member_logits(scores))
        found[:, OTHERS] = np.log(shares / shares.sum(axis=1, keepdims=True))
        return found.astype(np.float32)

    def crystal_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine the members' crystal logits [n, members] to the committee's [n]."""
        means, deviations = (np.array([getattr(m, name) for m in self.members]) for name in ("mean", "deviation"))
        standard = (np.clip(logits, -self.clip, self.clip) - means) / deviations
        return self.mean + self.deviation * _mean(standard, self.shares)

    def threshold(self, thresholds: Sequence[float]) -> float:
        """Return the crystal probability of a drop that is just a hit for every member, by the members' thresholds."""
        at = np.clip(np.asarray(thresholds, np.float64), _LEAST, 1 - 1e-16)
        (logit,) = self.crystal_logits(np.log(at / (1 - at))[np.newaxis])
        return float(1 / (1 + np.exp(-logit)))

    @property
    def shares(self) -> tuple[float, ...]:
        """The members' weights as shares of 1."""
        total = sum(member.weight for member in self.members)
        return tuple(member.weight / total for member in self.members)


def _mean(values: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the weighted mean over axis 1, added member by member: a matrix product rounds by its shape."""
    total = np.zeros_like(values[:, 0])
    for index, weight in enumerate(weights):
        total = total + weight / sum(weights) * values[:, index]
    return total


def member_logits(scores: ArrayLike) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of the crystal probabilities, [n, members], of scores [n, members, 4]."""
    crystals = np.maximum(np.asarray(scores, np.float64)[:, :, CRYSTALS], _LEAST)
    logits: NDArray[np.float64] = np.log(crystals) - np.log(_others(scores).sum(axis=2))
    return logits


def _others(scores: ArrayLike) -> NDArray[np.float64]:
    return np.ascontiguousarray(np.maximum(np.asarray(scores, np.float64)[:, :, OTHERS], _LEAST))

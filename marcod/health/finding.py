"""Findings of the doctor."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Well, worth a person's attention, or so that marcod cannot work."""

    OK = "ok"
    ATTENTION = "attention"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """One thing looked at, and what to do about it unless it is well."""

    area: str
    subject: str
    verdict: Severity
    text: str
    advice: str = ""


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the pages that a library may add to it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def judged(
    area: str, subject: str, well: bool, text: str, advice: str, bad: Severity = Severity.ATTENTION
) -> HealthFinding:
    """Return a finding that is well, or needs the advice."""
    return HealthFinding(area, subject, Severity.OK, text) if well else HealthFinding(area, subject, bad, text, advice)

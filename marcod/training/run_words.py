"""Training runs in words: what a state means, and the gate's numbers, for every place that shows them."""

from collections.abc import Mapping
from typing import Any, Final

from marcod.text import in_words

MEANING: Final = {
    "running": "not over yet",
    "promoted": "the candidate passed the gate and became champion",
    "recommended": "the candidate passed the gate; `marcod model promote {candidate}` makes it champion",
    "refused": "the candidate did not pass the gate; the champion stays",
    "shadow": "the candidate passed the gate and scores new images as challenger before it is decided about",
    "unchanged": "there was nothing new to judge; the champion stays",
    "failed": "it ended with an error; the champion stays",
    "abandoned": "it was given up; the champion stays",
}
SIDES: Final = ("champion", "candidate")
HEADLINE: Final = {
    "threshold": "crystal threshold",
    "crystal_recall": "crystal recall",
    "crystal_precision": "crystal precision",
    "false_alarms": "called hits, of those without crystals",
    "flagged": "called hits, of all",
    "accuracy": "accuracy",
    "crystal_average_precision": "average precision of crystals",
    "log_loss": "log loss",
}
"""Numbers of the gate for each side, by their key, with the words for them."""

NEEDED: Final = "_needed"


def numbers(found: Mapping[str, Any]) -> str:
    """Write the numbers of a check: counts against what is needed, and nothing of what has no value."""
    parts = []
    for name, value in found.items():
        needed = found.get(f"{name}{NEEDED}")
        if needed is not None:
            parts.append(f"{number(value)} of {number(needed)} {name}")
        elif value is not None and not name.endswith(NEEDED):
            parts.append(f"{name.replace('_', ' ')} {in_words(value)}")
    return ", ".join(parts)


def number(value: object) -> str:
    """Write a number of the gate, or what else stands there; a dash for nothing."""
    return f"{value:.4g}" if isinstance(value, float) else in_words(value) or "-"

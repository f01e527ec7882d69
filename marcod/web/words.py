"""Words and numbers as the templates write them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time
from typing import Any, Final

from markupsafe import Markup, escape

from marcod.text import printable


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a moment was, such as ``3 h ago``; nothing for none."""
    if moment is None:
        return ""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"


def moment(at: datetime | None) -> str:
    """Write a moment to the minute, in UTC; midnight to the second is a day of which the hour is not known."""
    if at is None:
        return ""
    return f"{at:%Y-%m-%d}" if at.time() == time() else f"{at:%Y-%m-%d %H:%M} UTC"


def probability(value: float | None) -> str:
    """Write a probability with three digits; nothing for none."""
    return "" if value is None else f"{value:.3f}"


def sentence(text: str) -> str:
    """Write the first letter large and a full stop at the end."""
    return printable(text[:1].upper() + text[1:].rstrip(".")) + "."


_KEY_NAMES: Final = {
    "ArrowLeft": "\N{LEFTWARDS ARROW}",
    "ArrowRight": "\N{RIGHTWARDS ARROW}",
    "ArrowUp": "\N{UPWARDS ARROW}",
    "ArrowDown": "\N{DOWNWARDS ARROW}",
    "Ctrl+z": "Ctrl+Z",
    " ": "Space",
}


def key_name(key: str) -> str:
    """Write a browser's name of a key as it stands on a keyboard."""
    return _KEY_NAMES.get(key, key)


def day(at: str) -> str:
    """Write a moment of an answer in JSON to the minute, in UTC."""
    return moment(datetime.fromisoformat(at).astimezone(UTC))


def marked(text: str) -> Markup:
    """Write text with what stands in backticks as commands."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:
        return escape(printable(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


_UNSEEN: Final = {
    "absent": "no image at this inspection",
    "light": "in another light only",
    "audit": "a random audit asks for it",
}
_UNSCORED: Final = {"failed": "failed", "gone": "file gone"}


def verdict(said: Mapping[str, Any]) -> str:
    """Write a ``plate_cells.Said`` in words: the class that counts, the probability, and who said what."""
    state = said["state"]
    if state in _UNSEEN:
        return _UNSEEN[state]
    parts = [said["label"] or _UNSCORED.get(state, "not scored yet")]
    if said["hit"]:
        parts.append("hit")
    if said["p"] is not None:
        parts.append(f"crystals {probability(said['p'])}")
    if said["person"]:
        parts.append(f"said by {printable(said['person'])}")
    if said["disputed"]:
        parts.append("persons disagree")
    elif said["differs"]:
        parts.append(f"the model says {said['model_label']}")
    return ", ".join(parts)


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "ago": ago,
    "moment": moment,
    "probability": probability,
    "marked": marked,
    "verdict": verdict,
    "sentence": lambda text: marked(sentence(text)),
    "key_name": key_name,
    "day": day,
    "lines": lambda text: printable(text, keep="\n"),
    "printable": lambda text: "" if text is None else printable(str(text)),
}

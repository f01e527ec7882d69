"""Rendering of events: a sentence for people, a JSON document for programs.

Names in events come from file names and tables, so long names are cut and control characters are replaced. The same
message is rendered the same each time it is sent.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from marcod import text
from marcod.domain import hit_rule
from marcod.plates.plate_map import MARKS_OF_CLASS
from marcod.store.outbox import Event, Message
from marcod.store.versions import SYNTHETIC_NOTICE
from marcod.text import printable

LONGEST_NAME: Final = 200
BEST: Final = 8
"""Drops that a sentence names."""

_NOUNS: Final = {
    "hits": ("plate with new hits", "plates with new hits"),
    "complete": ("inspection complete", "inspections complete"),
    "quarantine": ("image not readable", "images not readable"),
    "drift": ("drift alarm", "drift alarms"),
    "test": ("test", "tests"),
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message as it is sent: subject line, plain sentences, and JSON document."""

    subject: str
    text: str
    document: bytes


def render(message: Message) -> Rendered:
    """Render a message."""
    sentences = [sentence(event) for event in message.events]
    more = [f"Besides: {_counted(m.kind, m.count)} of {_clean(m.source or 'marcod')}." for m in message.more]
    synthetic = any(event.detail.get("synthetic") for event in message.events)
    body = "\n".join([*sentences, *more, *([SYNTHETIC_NOTICE] if synthetic else [])])
    document = {
        "id": message.id,
        "text": body,
        "events": [_record(event, said) for event, said in zip(message.events, sentences, strict=True)],
        "more": [{"kind": m.kind, "source": m.source, "count": m.count} for m in message.more],
    }
    return Rendered(_summary(message), body + "\n", json.dumps(document).encode())


def _record(event: Event, said: str) -> dict[str, Any]:
    return event.detail | {"id": event.id, "kind": event.kind, "at": event.at.isoformat(), "text": said}


def _summary(message: Message) -> str:
    counts = Counter(event.kind for event in message.events)
    for more in message.more:
        counts[more.kind] += more.count
    return "marcod: " + ", ".join(_counted(kind, counts[kind]) for kind in sorted(counts, key=_order))


def _order(kind: str) -> int:
    return list(_NOUNS).index(kind) if kind in _NOUNS else len(_NOUNS)


def _counted(kind: str, count: int) -> str:
    one, many = _NOUNS.get(kind, (kind, kind))
    return text.count(count, one, many)


def sentence(event: Event) -> str:
    """Render an event as a sentence."""
    write = _SENTENCES.get(event.kind)
    return write(event.detail) if write is not None else f"marcod tells of {_clean(event.kind)}."


def _hits(detail: dict[str, Any]) -> str:
    count = detail["new_hits"]
    wells = _wells(detail["wells"], count)
    return f"{_place(detail)}: {text.count(count, 'new hit')}{_rule(detail)}: {wells}."


def _complete(detail: dict[str, Any]) -> str:
    failed = f", {detail['failed']} could not be" if detail["failed"] else ""
    classes = ", ".join(f"{detail[mark.lower()]} {mark}" for mark in MARKS_OF_CLASS)
    hits = [well for well in detail["best_wells"] if detail["hits"]][: detail["hits"]]
    best = f", best: {_wells(hits, len(hits))}" if hits else ""
    wanted = detail["expected"] or detail["seen"]
    return (
        f"{_place(detail)} is complete: {detail['scored']} of {wanted} drops are scored{failed}; "
        f"{text.count(detail['hits'], 'hit')}{_rule(detail)}{best}; by likeliest class: {classes}."
    )


def _quarantine(detail: dict[str, Any]) -> str:
    drop = f"{detail['well']}.{detail['drop']}"
    return f"{_place(detail)}, drop {drop}: {_clean(detail['path'])} cannot be scored: {_clean(detail['reason'])}."


def _drift(detail: dict[str, Any]) -> str:
    return f"{_clean(detail['source'])}: drift since {detail['day']}: {_clean(detail['reason'])}."


def _test(detail: dict[str, Any]) -> str:
    return f"This is a test of marcod's notifications to {_clean(detail['target'])}."


_SENTENCES: Final = {
    "hits": _hits, "complete": _complete, "quarantine": _quarantine, "drift": _drift, "test": _test
}  # fmt: skip


def _place(detail: dict[str, Any]) -> str:
    plate = _clean(detail["barcode"] or detail["plate"])
    project = f" of project {_clean(detail['project'])}" if detail["project"] else ""
    return f"{_clean(detail['source'])}: plate {plate}{project}, inspection {_clean(detail['inspection'])}"


def _wells(wells: Iterable[dict[str, Any]], count: int) -> str:
    named = [f"{well['well']}.{well['drop']} {well['p_crystals']:.2f}" for well in wells][:BEST]
    return ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")


def _rule(detail: dict[str, Any]) -> str:
    """Render the threshold of the hits; events of an older marcod do not have it."""
    threshold = detail.get("crystal_threshold")
    return "" if threshold is None else f" ({hit_rule(threshold)})"


def _clean(name: object) -> str:
    text = printable(str(name))
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"

"""Keys of everything that programs read: `--json` of every command, the data set's manifest, a training run's numbers.

``json_keys.txt`` holds them, and a test compares. After a key was added on purpose `make keys` writes it again; look at
the difference: a key that is there stays.

A key is written as a path: ``plates[].well`` is the key ``well`` of every element of the list ``plates``. Where a
document's keys are data, such as names of sources, ``*`` stands for them; :data:`NAMES` says where that is.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import json_labs
from json_labs import Lab
from lab import commands

from marcod.cli import cli

GOLDEN: Final = Path(__file__).resolve().parents[1] / "cli" / "json_keys.txt"

HEAD: Final = """\
# Keys of all JSON that programs read; they are promises. `make keys` writes them; see json_keys.py.
"""

_SIDES: Final = ("test", "train", "validation")
_BUNDLE: Final = ("files", "libraries", "folding", "architecture.depths", "architecture.limits", "committee.offsets")

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "counts of a data set": tuple(f"{side}.sources" for side in _SIDES),
    "image in a data set's manifest": ("persons",),
    "marcod config show": ("hosts", "sources", "sources.*.profiles", "notify"),
    "marcod explain": ("", "*.imagers[].counted[].drops", "*.imagers[].modalities"),
    "marcod label import": ("unmapped",),
    "marcod label suspects": ("suspects[].persons",),
    "marcod label vocabularies": ("", "*"),
    "marcod model fetch": ("[].files",),
    "marcod model show": tuple(f"record.{name}" for name in _BUNDLE),
    "marcod scan": ("", "*.ignored"),
    "marcod setup": ("configured", "surveys[].imagers[].counted[].drops", "surveys[].imagers[].modalities"),
    "marcod status": ("outbox", "quarantined"),
    "metrics of a trained bundle": (
        "mix.validation_loss",
        *(f"dataset.counts.{side}.sources" for side in _SIDES),
    ),
    "numbers of a training run with a candidate": ("mix.validation_loss",),
}
"""Objects whose keys are data: names of sources and persons, paths, targets, words. "" is the whole document."""

ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "marcod model fetch": ("report",),
    "marcod model import": ("report",),
    "marcod model show": ("metrics",),
    "marcod retrain": ("numbers", "options"),
    "marcod status": ("training.numbers", "training.options"),
    "marcod train list": ("[].numbers", "[].options"),
    "marcod train settle": ("[].numbers", "[].options"),
    "marcod train show": ("numbers", "options", "data.counts"),
}
"""Objects whose keys stand under a title of their own, such as the numbers of a training run."""

_TEXT: Final = "text or a list of texts, which has no keys"
_LEFT: Final = "reasons by the names of sources, where a host does not find them"
_NOTHING: Final = "nothing can be compared where no drop was judged"

UNSEEN: Final[Mapping[str, Mapping[str, str]]] = {
    "header of a data set's manifest": {"changed": _TEXT},
    "marcod config show": dict.fromkeys(("train.member", "web.public_url", "web.socket"), _TEXT)
    | dict.fromkeys(("web.cells", "web.keys", "web.trusted_proxies"), "what a lab sets by a name of its own")
    | {"sources.*.um_per_px": "a number, where a lab knows it", "hosts": "tables, where roots differ"},
    "marcod dataset pack": {"left_out": _TEXT},
    "marcod explain": {"*.cut": _TEXT, "*.imagers[].rivals": _TEXT, "*.unreadable": _TEXT}
    | {"*[].inferred": "a grid, where other wells of a plate told it; a path alone does not"},
    "marcod label suspects": {"people[].swaps": "two words, where a person swaps classes"},
    "marcod model calibrate": {"calibration.confidence": "a number, which --confidence gives"},
    "marcod model convert": {"conversion.refusal": "a sentence, where crystals are lost"}
    | {"threshold.recall": "a number, where it is measured"},
    "marcod model evaluate": dict.fromkeys(("own.deviation", "own.sources"), "only of the four classes"),
    "marcod model show": {"record.conversion": "a comparison, of a version that was converted"},
    "marcod rescore": {"campaign": "a number, while an archive is scored again"},
    "marcod rescore list": dict.fromkeys(("[].images_per_s", "[].left_s"), "numbers, once some were scored")
    | dict.fromkeys(("[].ended_at", "[].error", "[].since", "[].source"), "text or a time, where there is one"),
    "marcod retrain": {"error": _TEXT, "step": _TEXT},
    "marcod review export": {"problems": _TEXT},
    "marcod review next": dict.fromkeys(("answer", "answered_at"), "what is asked has no answer yet"),
    "marcod review queue": dict.fromkeys(("items[].answer", "items[].answered_at"), "what waits has no answer yet"),
    "marcod review recall": dict.fromkeys(("high", "low", "recall"), "numbers, once more is answered"),
    "marcod scan": {"*.findings[].updated_at": "a time, in what a database keeps", "*.folders_unreadable": _TEXT},
    "marcod score": {"queue.oldest_enqueued_at": "a time, while something waits"},
    "marcod setup": dict.fromkeys(
        ("sources[].notes", "surveys[].cut", "surveys[].imagers[].rivals", "surveys[].unreadable"), _TEXT
    ),
    "marcod queue status": {"workers[].left_to_others": _LEFT},
    "marcod status": {"training.reasons": _TEXT, "rescores[].images_per_s": "a number, once some were scored"}
    | {"workers[].left_to_others": _LEFT}
    | dict.fromkeys((f"rescores[].{name}" for name in ("ended_at", "error", "since", "source")), _TEXT),
    "marcod train settle": {"[].error": _TEXT, "[].step": _TEXT},
    "marcod web user list": {"[].seen_at": "a time, once somebody has logged in"},
    "metrics of a calibrated bundle": {"calibration.confidence": "a number, which --confidence gives"},
    "numbers of a training run with a candidate": dict.fromkeys(("gate.left_out", "partly", "unreadable"), _TEXT)
    | {"seeds": "seed, validation_loss and chosen of each, where --seeds is given"},
    "numbers of the gate that had no drop to judge": {"left_out": _TEXT}
    | dict.fromkeys(
        (
            f"checks[].numbers.{name}"
            for name in (
                "bound", "candidate", "champion", "champion_at_same_recall", "champion_at_wished_recall",
                "difference", "improvement",
            )
        ),
        _NOTHING,
    ),
    "numbers of the gate that passed a candidate": {"left_out": _TEXT},
    "numbers of the gate that refused a candidate": {"left_out": _TEXT},
    "options of a training run": dict.fromkeys(
        ("seeds", "sources", "tier", "train.base_folder", "train.member", "train.pack"), "text, where it is asked for"
    ),
}  # fmt: skip
"""Lists and values that are empty in every lab, each with the reason."""


@dataclass
class Keys:
    """Paths of the keys seen in documents, and of the lists, objects and values that were empty."""

    names: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    seen: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)

    def add(self, document: object, path: str = "") -> None:
        """Take the keys of a document in."""
        if path in self.elsewhere:
            self.seen.add(path)
        elif isinstance(document, dict) and document:
            for key, value in document.items():
                name = "*" if path in self.names else str(key)
                self.add(value, f"{path}.{name}" if path else name)
        elif isinstance(document, list) and document:
            for value in document:
                self.add(value, f"{path}[]")
        elif document is None or document in ({}, []):
            self.empty.add(path)
        else:
            self.seen.add(path)

    def unseen(self) -> set[str]:
        """What was empty in every document."""
        return {path for path in self.empty if not any(_is_at(path, key) for key in self.seen)}

    def paths(self) -> set[str]:
        """Every key once: nested ones where there are any, and the key itself where it never had a value."""
        return self.seen | self.unseen()


def _is_at(path: str, key: str) -> bool:
    """Tell if a key is the value at a path, or stands within it."""
    return not path or key == path or key.startswith((f"{path}.", f"{path}["))


def answers(folder: Path, labs: Iterable[Callable[[Path], Lab]]) -> dict[str, Keys]:
    """Keys of what commands say in these labs, which are built below ``folder``, by the title of the document."""
    found: dict[str, Keys] = {}
    for build in labs:
        place = folder / build.__name__
        place.mkdir()
        for title, document in build(place).documents:
            found.setdefault(title, Keys(NAMES.get(title, ()), ELSEWHERE.get(title, ()))).add(document)
    return found


def with_json() -> set[str]:
    """Every command that has ``--json``, by its full name."""
    return {
        f"marcod {name}"
        for name, command in commands(cli).items()
        if any("--json" in option.opts for option in command.params)
    }


def written(found: Mapping[str, Keys]) -> str:
    """The text of the golden file."""
    return HEAD + "".join(
        f"\n[{title}]\n" + "".join(f"{path}\n" for path in sorted(found[title].paths())) for title in sorted(found)
    )


def golden() -> dict[str, set[str]]:
    """The keys in the golden file by title."""
    parts = GOLDEN.read_text(encoding="utf-8").removeprefix(HEAD).strip("\n").split("\n\n")
    lines = (part.splitlines() for part in parts)
    return {title.removeprefix("[").removesuffix("]"): set(paths) for title, *paths in lines}


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        found = answers(Path(folder), (*json_labs.QUICK, *json_labs.SLOW))
    GOLDEN.write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main()

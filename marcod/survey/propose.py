"""Proposed settings of a source: what a survey is sure of is set, what it only suspects stands there as a comment."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from marcod import layouts
from marcod.domain import Modality, path_text
from marcod.errors import ConfigError
from marcod.settings.keys import as_toml
from marcod.survey.imager import SurveyedImager
from marcod.survey.mounts import NETWORKED

RESERVOIR: Final = 2
"""Subwell of the reservoir on Rigaku's three-lens plates."""

_PROFILED: Final = frozenset({"formulatrix", "oppf"})
_USUAL_NAMES: Final = {"formulatrix": "rock-imager", "rockmaker-export": "rock-maker", "rigaku": "minstrel"}
_NAMES_OF_NOTHING: Final = frozenset(
    {
        "archive", "data", "drive", "export", "exports", "image", "images", "imager", "imaging", "media", "mnt",
        "plates", "pub", "public", "rawimages", "rockmakerstorage", "rock-maker-storage", "share", "shares", "srv",
        "storage", "store", "subwellimages", "tmp", "volume1", "web", "wellimages",
    }
)  # fmt: skip
_LOCAL_ZONE: Final = Path("/etc/localtime")
_COMMENT_AT: Final = 34


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of a person about an imager; None and missing profiles stay unknown."""

    reservoir: bool | None = None
    profiles: Mapping[str, Modality] = field(default_factory=dict)
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One key of a source. It is only suggested, and written as a comment, unless it ``is_set``."""

    key: str
    value: object
    comment: str = ""
    is_set: bool = True

    def __str__(self) -> str:
        text = f"{'' if self.is_set else '# '}{self.key} = {toml(self.value)}"
        return f"{text:{_COMMENT_AT}}  # {self.comment}" if self.comment else text


@dataclass(frozen=True, slots=True)
class Proposal:
    """A source as it would stand in the configuration; ``seen`` is a comment above it, ``notes`` are for people."""

    name: str
    seen: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, object]:
        """The keys that are set."""
        return {line.key: line.value for line in self.lines if line.is_set}

    def text(self) -> str:
        """Return the table for the configuration file. Raises ConfigError for a root that TOML cannot hold."""
        return "\n".join([f"# {self.seen}", f"[sources.{self.name}]", *map(str, self.lines)]) + "\n"


def propose(imager: SurveyedImager, name: str, answers: Answers | None = None, *, sampled: bool = False) -> Proposal:
    """Make settings for an imager. ``sampled`` says that only a part of its files was seen."""
    known = answers or Answers()
    lines = [
        Line("root", imager.root),
        Line("layout", imager.layout, layouts.title(imager.layout)),
        *_observer(imager),
        *_wells(imager),
        *_profiles(imager, known),
        *_reservoir(imager, known),
        *_expected(imager, known),
        *_timezone(imager, known),
    ]
    return Proposal(name, _seen(imager, sampled=sampled), tuple(lines), tuple(_notes(imager)))


def name_for(imager: SurveyedImager, taken: Iterable[str]) -> str:
    """Return a source's name from the folders of its root, else from its layout; never one of those ``taken``."""
    words = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in reversed(imager.root.parts[-3:]))
    usual = _USUAL_NAMES.get(imager.layout, imager.layout)
    base = next((word for word in words if word and word not in _NAMES_OF_NOTHING), usual)
    used, name, number = set(taken), base, 1
    while name in used:
        number += 1
        name = f"{base}-{number}"
    return name


def unmapped(imager: SurveyedImager) -> list[str]:
    """Capture profiles whose light a person should tell, by number: more than one, or one that looks like UV."""
    if imager.layout not in _PROFILED:
        return []
    doubtful = len(imager.profiles) > 1 or any(p.modality is not Modality.VISIBLE for p in imager.profiles)
    return [profile.name for profile in imager.profiles] if doubtful else []


def may_have_reservoir(imager: SurveyedImager) -> bool:
    """Tell if images of the subwell were seen that is the reservoir on some plates."""
    return imager.layout == "rigaku" and RESERVOIR in imager.drops and len(imager.drops) > 1


def expected_drops(imager: SurveyedImager, reservoirs: Iterable[int] = ()) -> int | None:
    """Return the drops per inspection, where all agree; one alone must fill a plate, or it may still arrive."""
    left_out = set(reservoirs)
    counts = {sum(n for drop, n in one.drops.items() if drop not in left_out) for one in imager.counted}
    if len(counts) != 1 or not (count := counts.pop()):
        return None
    return count if len(imager.counted) > 1 or count % imager.sizes[-1] == 0 else None


def local_zone() -> str:
    """Return the name of this host's time zone, or an example of one."""
    try:
        _, found, name = str(_LOCAL_ZONE.resolve()).partition("/zoneinfo/")
    except OSError:
        found = ""
    return name if found and "/" in name and not name.startswith("Etc/") else "Europe/Berlin"


def toml(value: object) -> str:
    """Return a value as TOML. Raises ConfigError for text of undecodable bytes, which a TOML file cannot hold."""
    text = as_toml(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = path_text(str(value))
        raise ConfigError(f"{name!r} has bytes that are no UTF-8 text; rename or link the folder") from error
    return text


def _observer(imager: SurveyedImager) -> Iterable[Line]:
    if imager.file_system in NETWORKED:
        yield Line("observer", "polling", f"on {imager.file_system}; inotify misses what others write")


def _wells(imager: SurveyedImager) -> Iterable[Line]:
    size = imager.sizes[-1] if imager.sizes else 96
    if imager.numbered and len(imager.sizes) > 1:
        # A larger plate is told apart by its well numbers, a smaller one by nothing.
        size = 96 if 96 in imager.sizes else imager.sizes[0]
    if size != 96 and imager.layout != "hwi":
        yield Line("wells", size, f"the last well seen is {imager.last_well}")


def _profiles(imager: SurveyedImager, known: Answers) -> Iterable[Line]:
    if imager.layout not in _PROFILED or not imager.profiles:
        return
    lights = {p.name: str(known.profiles.get(p.name, p.modality)) for p in imager.profiles}
    seen = ", ".join(f"{p.name}: {' '.join(p.extensions)}" for p in imager.profiles)
    hint = "; .png suggests UV" if any(".png" in p.extensions for p in imager.profiles) else ""
    yield Line("profiles", lights, f"seen {seen}{hint}", is_set=bool(known.profiles))


def _reservoir(imager: SurveyedImager, known: Answers) -> Iterable[Line]:
    if may_have_reservoir(imager) and known.reservoir is not False:
        why = f"if subwell {RESERVOIR} is the reservoir" if known.reservoir is None else ""
        yield Line("reservoir_subwells", [RESERVOIR], why, is_set=known.reservoir is True)


def _expected(imager: SurveyedImager, known: Answers) -> Iterable[Line]:
    reservoirs = [RESERVOIR] if known.reservoir else []
    count, counted = expected_drops(imager, reservoirs), len(imager.counted)
    # While it is open what the reservoir is, a wrong number would keep inspections from ever being complete.
    if may_have_reservoir(imager) and known.reservoir is None:
        return
    if count is not None:
        each = "as the inspection has that was counted" if counted == 1 else f"as {counted} counted inspections have"
        yield Line("expected_drops", count, each)


def _timezone(imager: SurveyedImager, known: Answers) -> Iterable[Line]:
    if known.timezone is not None:
        yield Line("timezone", known.timezone, "of the imager's clock")
    elif imager.dated:
        yield Line("timezone", local_zone(), "of the imager's clock; UTC without it", is_set=False)


def _seen(imager: SurveyedImager, *, sampled: bool) -> str:
    parts = [f"{imager.plates:,} plates", f"{imager.inspections:,} inspections", f"{imager.images:,} images"]
    least = "at least " if sampled else ""
    return f"Seen: {least}{', '.join(one_or_many(part) for part in parts)}; wells to {imager.last_well}"


def _notes(imager: SurveyedImager) -> Iterable[str]:
    if imager.numbered and len(imager.sizes) > 1:
        sizes = " and ".join(map(str, imager.sizes))
        yield (
            f"plates of {sizes} wells lie here, and a well number is another well on each; give their formats with "
            "`marcod plate import`"
        )
    if imager.rivals:
        yield f"{' and '.join(imager.rivals)} would read the same paths; give --layout to `marcod scan` to choose"


def one_or_many(text: str) -> str:
    """Return a count and its plural as people write them: "1 plates" becomes "1 plate"."""
    return text[:-1] if text.startswith("1 ") else text

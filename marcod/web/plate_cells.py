"""One drop of a plate at one inspection, as the map and the gallery show it, and the choices of what they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypedDict, get_args

from marcod.domain import DropClass
from marcod.plates import plate_map
from marcod.plates.plate_map import LETTERS, Mark
from marcod.store import verdicts
from marcod.store.drops import Trend
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version
from marcod.web.access import User

By = Literal["now", "probability", "best", "disagreement", "trend"]
Sort = Literal["plate", "probability"]
Show = Literal[
    "all", "hit", "Crystals", "Precipitate", "Clear", "Other", "failed", "unscored", "labelled", "unlabelled", "new",
    "disagreement", "harvested", "followed", "noted",
]  # fmt: skip
BYS: Final[tuple[By, ...]] = get_args(By)
SORTS: Final[tuple[Sort, ...]] = get_args(Sort)
SHOWS: Final[tuple[Show, ...]] = get_args(Show)


@dataclass(frozen=True, slots=True)
class PlateChoice:
    """Choices on the page of a plate: the colours, the order of the gallery, the drops that are shown."""

    by: By = "now"
    sort: Sort = "plate"
    show: Show = "all"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "PlateChoice":
        """Read ``by``, ``sort`` and ``class`` of an address; what is unknown counts as not given."""
        found: dict[str, Any] = {}
        for field, name, known in (("by", "by", BYS), ("sort", "sort", SORTS), ("show", "class", SHOWS)):
            if query.get(name) in known:
                found[field] = query[name]
        return cls(**found)

    def query(self) -> dict[str, str]:
        """Return what :meth:`of` reads, without what is usual."""
        pairs = (("by", self.by, "now"), ("sort", self.sort, "plate"), ("class", self.show, "all"))
        return {name: value for name, value, usual in pairs if value != usual}


USUAL: Final = PlateChoice()


class Said(TypedDict):
    """Verdict of the model and of people on a drop at one inspection.

    ``state`` is scored, failed, gone, waiting, light (an image in another light alone), absent (no image at this
    inspection) or audit (a random audit asks this person, who is to see no score before). ``p`` is the probability of
    Crystals, ``model_label`` the model's class, ``label`` the class that counts, ``person`` who gave it, ``mine`` the
    class that the asking person gave, ``disputed`` that persons disagree, ``differs`` that people and the model do.
    ``mark`` is one of ``plate_map.Mark``.
    """

    state: str
    p: float | None
    model_label: str | None
    label: str | None
    person: str | None
    mine: str | None
    disputed: bool
    differs: bool
    hit: bool
    mark: str


class MapCell(Said):
    """One drop on the map and in the gallery.

    ``number`` is the imager's number of the drop; ``x`` and ``y`` are its cell inside the well, from 0. ``thumb`` and
    ``view`` are addresses of the image, ``best`` is the probability of Crystals at its best inspection, ``new`` that it
    became a hit at this inspection. ``letter`` and ``style`` show what was chosen; ``shown`` drops pass the filter.
    """

    drop: int
    well: str
    row: int
    column: int
    number: int
    x: int
    y: int
    image: int | None
    thumb: str | None
    view: str | None
    best: float | None
    trend: str | None
    new: bool
    harvested: bool
    followed: bool
    notes: int
    letter: str
    style: str
    shown: bool


def _without_scores(verdict: DropVerdict) -> DropVerdict:
    """Take from a verdict what the model says, for a person whom a random audit asks."""
    blank = verdict.image._replace(
        p_clear=None, p_crystals=None, p_other=None, p_precipitate=None, label=None, state=verdicts.ImageState.WAITING
    )
    return DropVerdict(blank, verdict.majority, False)


def said(verdict: DropVerdict | None, version: Version, user: User, *, hidden: bool = False) -> Said:
    """Say what the model and people say; ``hidden`` scores are left out."""
    if verdict is None:
        return {
            "state": "absent", "p": None, "model_label": None, "label": None, "person": None, "mine": None,
            "disputed": False, "differs": False, "hit": False, "mark": str(Mark.UNSCORED),
        }  # fmt: skip
    if hidden:
        verdict = _without_scores(verdict)
    majority = verdict.majority
    return {
        "state": "audit" if hidden else str(verdict.image.state),
        "p": verdict.image.p_crystals,
        "model_label": verdict.image.label,
        "label": verdict.label,
        "person": None if majority is None else majority.person,
        "mine": None if majority is None else _text(majority.persons.get(user.name)),
        "disputed": majority is not None and majority.disputed,
        "differs": differs(verdict),
        "hit": verdict.hit,
        "mark": str(plate_map.mark_of(verdict, version)),
    }


def _text(label: DropClass | None) -> str | None:
    return None if label is None else str(label)


def differs(verdict: DropVerdict) -> bool:
    """Tell if people and the model disagree: on whether it is a hit, else on the class."""
    if verdict.majority is None or verdict.image.label is None:
        return False
    if verdict.hit != verdict.model_hit:
        return True
    return not verdict.hit and verdict.label != verdict.image.label


_STYLES: Final = {
    Mark.HIT: "hit",
    Mark.PRECIPITATE: "precipitate",
    Mark.CLEAR: "clear",
    Mark.OTHER: "other",
    Mark.CRYSTALS: "crystals",
    Mark.FAILED: "failed",
    Mark.UNSCORED: "waiting",
}
_MARKS: Final = {mark: (LETTERS[mark], style) for mark, style in _STYLES.items()}
LOOKS_OF_CLASS: Final[dict[str, tuple[str, str]]] = {
    str(each): _MARKS[Mark.HIT if each == DropClass.CRYSTALS else Mark(str(each))] for each in DropClass
}
"""Letter and style of a drop that a person gave a class."""

_TRENDS: Final = {
    Trend.NONE: ("\N{MIDDLE DOT}", "trend-none"),
    Trend.STEADY: ("=", "trend-steady"),
    Trend.APPEARING: ("+", "trend-appearing"),
    Trend.DISSOLVING: ("\N{MINUS SIGN}", "trend-dissolving"),
}
_DISAGREEMENTS: Final = {
    "differs": "!",
    "disputed": "?",
    "agrees": "=",
    "unlabelled": "",
}
_NOTHING: Final = {"absent": ("", "absent"), "light": ("", "light"), "gone": ("!", "failed"), "audit": ("?", "waiting")}


def _now(cell: Said) -> tuple[str, str]:
    look = _MARKS[Mark(cell["mark"])]
    return look if cell["label"] else _NOTHING.get(cell["state"], look)


def _ten(value: float | None, cell: MapCell) -> tuple[str, str]:
    """Show a probability by its first digit, 0 to 9, and a shade of ten."""
    if value is None:
        return _NOTHING.get(cell["state"], ("?", "waiting"))
    digit = min(9, int(value * 10))
    return str(digit), f"p{digit}"


def _disagreement(cell: Said) -> tuple[str, str]:
    style = "disputed" if cell["disputed"] else "differs" if cell["differs"] else "agrees"
    style = "unlabelled" if cell["person"] is None else style
    return _DISAGREEMENTS[style], style


def _trend(cell: MapCell) -> tuple[str, str]:
    return _NOTHING.get(cell["state"], ("?", "waiting")) if cell["trend"] is None else _TRENDS[Trend(cell["trend"])]


LOOKS: Final[dict[By, Callable[[MapCell], tuple[str, str]]]] = {
    "now": _now,
    "probability": lambda cell: _ten(cell["p"], cell),
    "best": lambda cell: _ten(cell["best"], cell),
    "disagreement": _disagreement,
    "trend": _trend,
}
"""The letter and the style of a cell, by what the map shows."""


class LegendEntry(NamedTuple):
    """One entry of the legend: letter, style and words."""

    letter: str
    style: str
    words: str


def legend(by: By, rule: str) -> list[LegendEntry]:
    """Explain what the map shows; ``rule`` says when a drop is a hit."""
    if by == "disagreement":
        words = {"differs": "person and model differ", "disputed": "persons differ", "agrees": "they agree"}
        said = words | {"unlabelled": "not labelled"}
        return [LegendEntry(_DISAGREEMENTS[style], style, said[style]) for style in _DISAGREEMENTS]
    if by == "trend":
        of_trend = {Trend.APPEARING: "crystals appear", Trend.DISSOLVING: "dissolve", Trend.STEADY: "stay"}
        return [LegendEntry(*_TRENDS[trend], words) for trend, words in (of_trend | {Trend.NONE: "none"}).items()]
    if by != "now":
        most = " at every inspection" if by == "best" else ""
        tens = {0: f"below 0.1{most}", 5: "0.5", 9: "0.9 and above" + (" at one" if most else "")}
        return [LegendEntry(str(digit), f"p{digit}", words) for digit, words in tens.items()]
    of_mark = {
        Mark.HIT: f"hit: {rule}",
        Mark.CRYSTALS: "crystals, no hit",
        Mark.PRECIPITATE: "precipitate",
        Mark.CLEAR: "clear",
        Mark.OTHER: "other",
        Mark.UNSCORED: "not scored yet",
        Mark.FAILED: "failed or gone",
    }
    return [LegendEntry(*_MARKS[mark], words) for mark, words in of_mark.items()]


def look_of(now: Said, by: Literal["now", "disagreement"]) -> tuple[str, str]:
    """Return letter and style of a drop, where labels and scores alone decide them."""
    return _now(now) if by == "now" else _disagreement(now)


_SHOWN: Final[dict[Show, Callable[[MapCell], bool]]] = {
    "all": lambda cell: True,
    "hit": lambda cell: cell["hit"],
    "Crystals": lambda cell: cell["label"] == "Crystals",
    "Precipitate": lambda cell: cell["label"] == "Precipitate",
    "Clear": lambda cell: cell["label"] == "Clear",
    "Other": lambda cell: cell["label"] == "Other",
    "failed": lambda cell: cell["state"] in ("failed", "gone"),
    "unscored": lambda cell: cell["state"] == "waiting",
    "labelled": lambda cell: cell["person"] is not None,
    "unlabelled": lambda cell: cell["person"] is None and cell["state"] != "absent",
    "new": lambda cell: cell["new"],
    "disagreement": lambda cell: cell["differs"] or cell["disputed"],
    "harvested": lambda cell: cell["harvested"],
    "followed": lambda cell: cell["followed"],
    "noted": lambda cell: cell["notes"] > 0,
}


def shows(cell: MapCell, show: Show) -> bool:
    """Tell if a filter leaves a drop in."""
    return _SHOWN[show](cell)


def ordered(cells: Sequence[MapCell], sort: Sort) -> list[MapCell]:
    """Put cells, which are in plate order, into the chosen order; no label changes it."""
    if sort == "plate":
        return list(cells)
    return sorted(cells, key=lambda cell: 0.0 if cell["p"] is None else -1 - cell["p"])

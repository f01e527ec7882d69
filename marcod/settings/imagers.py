"""Tables of the imagers' export folders, and of hosts that find them elsewhere."""

import re
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from marcod.domain import NOT_UNDERSTOOD, PLATE_FORMATS, Modality, PlateFormat, WarningKind, grid_of
from marcod.settings.sections import FolderPath, Section

_ANY_GRID: Final = frozenset(
    {"formulatrix", "rockmaker-export", "oppf", "xchem", "crims", "rigaku", "rhombix", "ami", "regex"}
)
USED_BY: Final = {
    "wells": _ANY_GRID,
    "grid": _ANY_GRID,
    "profiles": frozenset({"formulatrix", "oppf", "rockmaker-export", "rigaku", "rhombix", "regex"}),
    "light": frozenset({"rigaku", "hwi", "xchem", "ami", "regex"}),
    "reservoir_subwells": frozenset({"rigaku"}),
    "pattern": frozenset({"regex"}),
    "date_format": frozenset({"regex"}),
}
"""Layouts that use a setting of a source; every layout uses those that are not here."""


def _plain_number(name: object) -> object:
    """Return the number that a profile's name is; 00 is a name."""
    return int(name) if isinstance(name, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", name) else name


ProfileName = Annotated[int | str, BeforeValidator(_plain_number)]


class SourceSettings(Section):
    """One imager's export folder."""

    root: FolderPath = Field(examples=["/mnt/minstrel3/images"], description="Folder that the imager writes to")
    layout: str = Field(examples=["rigaku"], description="Path grammar, one of those `marcod explain` knows")
    observer: Literal["inotify", "polling"] = Field(
        "inotify", description="inotify for local disks; polling for SMB and NFS shares"
    )
    poll_s: float = Field(30.0, gt=0, description="Pause between two polls of a polling observer")
    wells: Literal[24, 48, 96, 384, 1536] = Field(
        96, description="Wells of a plate, to read well numbers; a plate's own format wins"
    )
    grid: str | None = Field(
        None,
        examples=["8x6"],
        description="Rows x columns of a plate in place of wells, up to 48x48; a plate's own format wins",
    )
    profiles: dict[ProfileName, Modality] = Field(
        default_factory=dict,
        examples=[{1: "visible", 2: "uv"}],
        description="Capture profile (number or name; Rigaku: image type) to visible, uv, shg or unknown",
    )
    light: Modality | None = Field(
        None,
        examples=["uv"],
        description="Light of images whose path names none; without it visible, of HWI images unknown",
    )
    reservoir_subwells: list[int] = Field(
        default_factory=list,
        examples=[[2]],
        description="Rigaku subwells that hold no drop, such as [2] on three-lens plates; a plate's own reservoir wins",
    )
    pattern: str | None = Field(
        None,
        examples=[r"(?P<plate>\w+)/(?P<well>[A-H]\d+)\.jpg"],
        description="Regular expression with named groups, for layout regex",
    )
    date_format: str | None = Field(
        None, examples=["%Y%m%d"], description="strptime format of the group `date`, for layout regex"
    )
    timezone: str = Field(
        "UTC", examples=["Europe/Berlin"], description="Zone of the imager's clock, such as Europe/Berlin"
    )
    um_per_px: float | None = Field(
        None, gt=0, examples=[1.5], description="Size of a pixel of its images in micrometres, for the page's scale bar"
    )
    expected_drops: int | None = Field(
        None,
        ge=1,
        examples=[288],
        description="Drops in one inspection of a plate; without it the quiet period decides",
    )
    accept: list[str] = Field(
        default_factory=list,
        examples=[["drop_number_lost"]],
        description="Reasons and warnings of its files that the lab knows of, which are counted and need no person",
    )

    @field_validator("accept")
    @classmethod
    def _known_causes(cls, words: list[str]) -> list[str]:
        known = sorted((*NOT_UNDERSTOOD, *WarningKind))
        if unknown := [word for word in words if word not in known]:
            raise ValueError(
                f"{unknown[0]!r} is no reason or warning that can be accepted; there are {', '.join(known)}"
            )
        return words

    @field_validator("grid")
    @classmethod
    def _possible_grid(cls, text: str | None) -> str | None:
        if text is not None:
            grid_of(text)
        return text

    @property
    def plate_format(self) -> PlateFormat:
        """The grid of the source's plates."""
        return PLATE_FORMATS[self.wells] if self.grid is None else grid_of(self.grid)

    @model_validator(mode="after")
    def _used_by_the_layout(self) -> "SourceSettings":
        known = frozenset().union(*USED_BY.values())
        for name in sorted(self.model_fields_set & USED_BY.keys()):
            if self.layout in known and self.layout not in USED_BY[name]:
                text = f"layout {self.layout} does not use it; remove it"
                raise PydanticCustomError("unused", "{text}", {"text": text, "key": (name,)})
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{name!r} is not a time zone name such as Europe/Berlin") from error
        return name


class HostSourceSettings(Section):
    """A source as some hosts find it."""

    root: FolderPath = Field(description="Folder of the source on these hosts")


class HostSettings(Section):
    """Hosts on which something is elsewhere; the table's name stands for them."""

    sources: dict[str, HostSourceSettings] = Field(
        default_factory=dict,
        examples=[{"minstrel": {"root": "/scratch/minstrel3"}}],
        description="Sources whose root differs on these hosts, such as gpu* or node[01-16]: `.sources.NAME.root`",
    )

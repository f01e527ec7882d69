"""Findings of a source: files that its layout does not read, or reads with a warning.

One rule says which of them need a person, and one place puts them into words, so that scan, status, doctor, metrics
and the log agree. A file is counted under its :data:`Cause`.
"""

import shlex
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from marcod.domain import NOT_UNDERSTOOD, DropImage, IgnoreReason, NotADrop, WarningKind, why_not_scored
from marcod.layouts.paths import has_image_extension

Cause = IgnoreReason | WarningKind

CAUSES: Final = tuple(sorted((*NOT_UNDERSTOOD, *WarningKind)))
"""Every cause that a file can be counted under."""

HANDFUL: Final = 20
"""Files of one cause beyond which a source needs a person; a plate that is not read has more."""

SHARE: Final = 0.05
"""Share of the source's images from which fewer files need a person, too."""

ALWAYS: Final = frozenset(
    {
        WarningKind.UNMAPPED_PROFILE, WarningKind.LIGHT_LOST, WarningKind.UNKNOWN_LIGHT,
        WarningKind.FORMAT_INFERRED, WarningKind.BARCODE_REUSED,
    }
)  # fmt: skip
"""Causes of which one is enough.

The light decides whether an image is scored, the grid which well it shows, and the barcode of which plate.
"""

_WHY: Final = {
    IgnoreReason.NOT_THIS_LAYOUT: "their paths are not those of layout {layout}",
    IgnoreReason.UNREADABLE_NAME: "paths of layout {layout} that cannot be read",
    IgnoreReason.OUT_OF_RANGE: "a well, drop or date that cannot be",
    IgnoreReason.NO_REPORT: "no row for them in report.csv",
    IgnoreReason.UNKNOWN_KIND: "an image type that is not known",
    WarningKind.BARCODE_DIFFERS: "folder and name give different barcodes",
    WarningKind.INSPECTION_DIFFERS: "folder and name give different inspections",
    WarningKind.UNMAPPED_PROFILE: "a .png of a capture profile that is not mapped, taken as UV and not scored",
    WarningKind.LIGHT_LOST: "no folder that says how the drop was lit, not scored",
    WarningKind.UNKNOWN_LIGHT: "the path names a light that is not known, not scored",
    WarningKind.DROP_NUMBER_LOST: "report.csv has no drop number, taken as drop 1",
    WarningKind.REPORT_MISSING: "no row for them in report.csv, so their date is not known",
    WarningKind.DATE_UNREADABLE: "report.csv gives a date that cannot be read",
    WarningKind.FORMAT_INFERRED: "wells beyond the source's plates, so the plate is taken for a larger one",
    WarningKind.SIDECAR_DIFFERS: "the XML file contradicts the name",
    WarningKind.SIDECAR_UNREADABLE: "the XML file cannot be read",
    WarningKind.BARCODE_REUSED: "years after the inspection before, so the plate may be another one of that barcode",
    WarningKind.BLANK: "uniformly black, white or grey, so nothing of the drop is seen",
    WarningKind.NO_END_MARKER: "JPEGs without their end marker, complete otherwise",
}
_MEND: Final = {
    IgnoreReason.OUT_OF_RANGE: "give the plate's format with `marcod plate import`, or `wells` or `grid` of the source",
    IgnoreReason.NO_REPORT: "copy report.csv into the folder of the barcode",
    WarningKind.UNMAPPED_PROFILE: "add the profile to `profiles` of the source",
    WarningKind.LIGHT_LOST: "keep the dated folders, or set `light` of the source",
    WarningKind.UNKNOWN_LIGHT: "add the light to `profiles` of the source",
    WarningKind.REPORT_MISSING: "copy report.csv into the folder of the barcode",
    WarningKind.FORMAT_INFERRED: "give the plates' formats with `marcod plate import`, or set `wells` of the source",
    WarningKind.BARCODE_REUSED: "look at the plate; its history is of two plates if the barcode was used again",
    WarningKind.BLANK: "look at lamp and shutter of the imager",
    WarningKind.NO_END_MARKER: "look at how the images are copied",
}


@dataclass(frozen=True, slots=True)
class SourceFinding:
    """Files of one source and cause, counted at its last scan.

    ``of_files`` is how many images the source has, read or not. ``example`` is one path in stored form. ``hint`` names
    the family that reads ``hint_files`` of the ``asked`` files of a sample. ``accepted`` findings are known to the lab
    and need nobody. ``attention`` follows from the others.
    """

    source: str
    layout: str
    kind: Literal["ignored", "warning"]
    reason: str
    files: int
    of_files: int
    example: str
    hint: str | None = None
    hint_files: int = 0
    asked: int = 0
    accepted: bool = False
    updated_at: datetime | None = None
    attention: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", _needs_a_person(self))

    @property
    def text(self) -> str:
        """The finding in one clause, without the source's name."""
        verb = "not read" if self.kind == "ignored" else "read with a warning"
        why = _WHY.get(self.reason, self.reason).format(layout=self.layout)  # type: ignore[call-overload]
        said = f"{self.files:,} of {self.of_files:,} image{'' if self.of_files == 1 else 's'} {verb} ({why})"
        known = ", accepted by the configuration" if self.accepted else ""
        return f"{said}{known}; {self._resemblance}" if self.hint else f"{said}{known}"

    @property
    def advice(self) -> str:
        """The next step for a person, with the example."""
        if self.hint:
            return f'set layout = "{self.hint}"; an example: {self.example}'
        if self.reason in _MEND:
            return f"{_MEND[self.reason]}; an example: {self.example}"  # type: ignore[index]
        if self.layout == "regex":
            return f"correct `pattern` of the source; an example: {self.example}"
        return f"see `marcod explain --layout {self.layout} {shlex.quote(self.example)}` in the folder of its source"

    @property
    def _resemblance(self) -> str:
        sample = "" if self.asked == self.files else f" of {self.asked:,} looked at"
        return f"{self.hint_files:,}{sample} look like {self.hint}"


def causes(path: str, verdict: DropImage | NotADrop) -> tuple[Cause | None, ...]:
    """Return the causes to count a file under.

    None stands for an image that is read, next to its kinds of warning. A file that is expected in an imager's folder
    and not scored, such as a thumbnail or an XML file, has none.
    """
    if isinstance(verdict, DropImage):
        if why_not_scored(verdict) is not None:
            return ()
        return (None, *dict.fromkeys(warning.kind for warning in verdict.warnings)) if verdict.warnings else (None,)
    return (verdict.reason,) if verdict.reason in NOT_UNDERSTOOD and has_image_extension(path) else ()


def _needs_a_person(found: SourceFinding) -> bool:
    if found.accepted or not found.files:
        return False
    return found.reason in ALWAYS or found.files > HANDFUL or found.files >= SHARE * found.of_files

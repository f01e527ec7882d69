"""Findings of a source: what is counted, when it needs a person, and in which words."""

import pytest

from marcod.domain import IgnoreReason, WarningKind
from marcod.layouts import make, readers
from marcod.layouts.findings import CAUSES, Cause, SourceFinding, causes

MINSTREL = "CI022987/3/RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_01_02_03_HF_99_030_001_RDI.jpg"
STORE = "WellImages/70/plateID_1070/batchID_5/wellNum_{}/profileID_{}/d1_r1_{}"


def finding(files: int, of_files: int, cause: Cause = IgnoreReason.NOT_THIS_LAYOUT, **more: object) -> SourceFinding:
    kind = "ignored" if isinstance(cause, IgnoreReason) else "warning"
    values: dict[str, object] = {"example": "a b.jpg", "asked": files} | more
    return SourceFinding("minstrel", "xchem", kind, str(cause), files, of_files, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "of_files", "cause", "attention"),
    [
        (288, 288, IgnoreReason.NOT_THIS_LAYOUT, True),
        (1, 1, IgnoreReason.UNREADABLE_NAME, True),
        (20, 100_000, IgnoreReason.UNREADABLE_NAME, False),
        (21, 100_000, IgnoreReason.UNREADABLE_NAME, True),
        (4, 96, IgnoreReason.OUT_OF_RANGE, False),
        (5, 96, IgnoreReason.OUT_OF_RANGE, True),
        (3, 100_000, WarningKind.BARCODE_DIFFERS, False),
        (1, 100_000, WarningKind.UNMAPPED_PROFILE, True),
        (1, 100_000, WarningKind.LIGHT_LOST, True),
    ],
)
def test_a_few_strays_are_shown_and_need_nobody(files: int, of_files: int, cause: Cause, attention: bool) -> None:
    assert finding(files, of_files, cause).attention is attention
    assert finding(files, of_files, cause, accepted=True).attention is False


def test_the_words_name_the_family_that_reads_them() -> None:
    whole = finding(288, 288, hint="rigaku", hint_files=288)
    assert whole.text == (
        "288 of 288 images not read (their paths are not those of layout xchem); 288 look like rigaku"
    )
    assert whole.advice == 'set layout = "rigaku"; an example: a b.jpg'
    sampled = finding(4000, 4000, hint="rigaku", hint_files=990, asked=1000)
    assert sampled.text.endswith("; 990 of 1,000 looked at look like rigaku")


def test_the_words_without_a_family_lead_to_explain() -> None:
    assert finding(3, 9).advice == "see `marcod explain --layout xchem 'a b.jpg'` in the folder of its source"
    unmapped = finding(1, 1, WarningKind.UNMAPPED_PROFILE)
    assert unmapped.text.startswith("1 of 1 image read with a warning (a .png of a capture profile that is not mapped")
    assert unmapped.advice == "add the profile to `profiles` of the source; an example: a b.jpg"
    own = SourceFinding("bench", "regex", "ignored", "not_this_layout", 3, 9, "x.jpg")
    assert own.advice == "correct `pattern` of the source; an example: x.jpg"
    # A row that a newer marcod wrote.
    assert finding(1, 1, "from_the_future").text == "1 of 1 image read with a warning (from_the_future)"  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_words(cause: Cause) -> None:
    assert f"({cause})" not in finding(1, 1, cause).text


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        (STORE.format(1, 1, "ef.jpg"), (None,)),
        (STORE.format(1, 1, "ef.png"), (None, WarningKind.UNMAPPED_PROFILE)),
        (STORE.format(1, 1, "th.png"), ()),
        (STORE.format(1, 1, "zz.jpg"), (IgnoreReason.UNKNOWN_KIND,)),
        (STORE.format(97, 1, "ef.jpg"), (IgnoreReason.OUT_OF_RANGE,)),
        (STORE.format(1537, 1, "ef.jpg"), (IgnoreReason.OUT_OF_RANGE,)),
        (STORE.format(1, 1, "ef.JPEG").replace("d1_r1", "d1"), (IgnoreReason.UNREADABLE_NAME,)),
        (STORE.format(1, 1, "drop.dat"), ()),
        ("holiday.jpg", (IgnoreReason.NOT_THIS_LAYOUT,)),
        ("notes.txt", ()),
        ("holiday", ()),
        (".hidden.jpg", ()),
    ],
)
def test_only_images_that_are_not_understood_are_counted(path: str, counted: tuple[Cause | None, ...]) -> None:
    assert causes(path, make("formulatrix").parse(path)) == counted


def test_the_families_that_read_a_path() -> None:
    assert readers(MINSTREL) == ("rigaku",)
    assert readers(STORE.format(1536, 7, "th.png")) == ("formulatrix",)
    # It waits for its report; whose it is can be told all the same.
    assert readers("90j8/Crystals/90j8_D12_Visible_9_3552.jpg") == ("rockmaker-export",)
    assert readers("holiday.jpg") == ()

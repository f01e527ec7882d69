"""Why a path is not scored: each reason, hostile names, and the contract of make and explain."""

from datetime import UTC, datetime

import pytest

from marcod.domain import PLATE_FORMATS, DropImage, IgnoreReason, ImageKind, Modality, NotADrop, PlateSetup
from marcod.errors import LayoutError
from marcod.layouts import NAMES, LayoutOptions, explain, make

NATIVE = "plateID_1/batchID_2/wellNum_1/profileID_1"
MINSTREL = "RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_{}_HF_99_030_001_RDI{}.jpg"
XCHEM = "90j8_2018-04-11_RI1000-0081-2drop"
RUN = "X000015804202004011136-jpg"

CASES = [
    ("formulatrix", f"{NATIVE}/notes.xml", IgnoreReason.SIDECAR),
    ("formulatrix", "Thumbs.db", IgnoreReason.SIDECAR),
    ("hwi", f"{RUN}/X000015804.mso", IgnoreReason.SIDECAR),
    ("hwi", "X000015804platedef.xml", IgnoreReason.SIDECAR),
    ("xchem", "transfers/90j8_2018-04-11_RI1000-0081_2drop.done", IgnoreReason.SIDECAR),
    ("oppf", "441300245195_441300245195-20100415-063644_1_1_0.done", IgnoreReason.SIDECAR),
    ("rockmaker-export", "90j8/report.csv", IgnoreReason.SIDECAR),
    ("ami", "target/plate7/prep_date.txt", IgnoreReason.SIDECAR),
    ("hwi", f"{RUN}.rar", IgnoreReason.ARCHIVE),
    ("hwi", f"{RUN}.ZIP", IgnoreReason.ARCHIVE),
    ("formulatrix", f"{NATIVE}/d1_r1_ef.jpg.part", IgnoreReason.TEMPORARY),
    ("formulatrix", f"{NATIVE}/d1_r1_ef.jpg~", IgnoreReason.TEMPORARY),
    ("formulatrix", f"{NATIVE}/.d1_r1_ef.jpg.x7Fq", IgnoreReason.TEMPORARY),
    ("formulatrix", f"{NATIVE}/._d1_r1_ef.jpg", IgnoreReason.TEMPORARY),
    ("formulatrix", f"{NATIVE}/~d1_r1_ef.jpg", IgnoreReason.TEMPORARY),
    ("formulatrix", f".snapshot/{NATIVE}/d1_r1_ef.jpg", IgnoreReason.TEMPORARY),
    ("oppf", "writing.lock", IgnoreReason.TEMPORARY),
    ("oppf", "copy.TMP", IgnoreReason.TEMPORARY),
    ("oppf", "Processed/441312000010-A01-2-R0DRP1-EF-z20-20100316-083621.jpg", IgnoreReason.WORKING_COPY),
    ("oppf", "a\\QUARANTINE\\441312000010-A01-2-R0DRP1-EF-z20-20100316-083621.jpg", IgnoreReason.WORKING_COPY),
    ("ami", "plate7/20240131_093000/rawimages/A1a_1.jpg", IgnoreReason.WORKING_COPY),
    ("ami", "plate7/20240131_093000/cropped/A1a.jpg", IgnoreReason.WORKING_COPY),
    ("rigaku", f"RigakuMontage/{MINSTREL.format('121121_01_01_01', '')[:20]}_thumb.jpg", IgnoreReason.THUMBNAIL),
    ("formulatrix", f"{NATIVE}/d1_r1_mrv.jpg", IgnoreReason.UNKNOWN_KIND),
    ("formulatrix", f"{NATIVE}/d1_r1_.jpg", IgnoreReason.UNREADABLE_NAME),
    ("formulatrix", f"{NATIVE}/plane_13.png", IgnoreReason.UNREADABLE_NAME),
    ("formulatrix", "batchID_2/wellNum_1/profileID_1/d1_r1_ef.jpg", IgnoreReason.UNREADABLE_NAME),
    (
        "formulatrix",
        "\\\\cs04r\\RockMakerStorage\\WellImages\\539\\plateID_14539\\batchID_72673",
        IgnoreReason.UNREADABLE_NAME,
    ),
    ("formulatrix", f"{NATIVE}/d1_r1_ef.jxr", IgnoreReason.UNREADABLE_NAME),
    ("rigaku", f"CI022987/3/{MINSTREL.format('121121_1_01_01', '')}", IgnoreReason.UNREADABLE_NAME),
    ("xchem", f"{XCHEM}/90j8_A01_1.jpg", IgnoreReason.UNREADABLE_NAME),
    ("crims", "FORMULATRIX_CD1_6_2021-09-08_05_02_01_00_99_Vis.jpg", IgnoreReason.UNREADABLE_NAME),
    ("hwi", f"{RUN}/A01.jpg", IgnoreReason.UNREADABLE_NAME),
    ("oppf", "44131-A01-2-R0DRP1-XX-z20-20100316-083621.jpg", IgnoreReason.UNREADABLE_NAME),
    ("rhombix", "Images/2006/ZZAA00123/ZZA00123_A01-1_BRITE_110.jpg", IgnoreReason.UNREADABLE_NAME),
    ("ami", "plate7/20240131_093000/overview.jpg", IgnoreReason.UNREADABLE_NAME),
    ("formulatrix", "plateID_1/batchID_2/wellNum_0/profileID_1/d1_r1_ef.jpg", IgnoreReason.OUT_OF_RANGE),
    ("formulatrix", "plateID_1/batchID_2/wellNum_97/profileID_1/d1_r1_ef.jpg", IgnoreReason.OUT_OF_RANGE),
    ("formulatrix", "plateID_1/batchID_2/wellNum_1/profileID_1/d0_r1_ef.jpg", IgnoreReason.OUT_OF_RANGE),
    ("rigaku", MINSTREL.format("121121_13_01_01", ""), IgnoreReason.OUT_OF_RANGE),
    ("rigaku", MINSTREL.format("121121_01_09_01", ""), IgnoreReason.OUT_OF_RANGE),
    ("rigaku", MINSTREL.format("121121_00_01_01", ""), IgnoreReason.OUT_OF_RANGE),
    ("rigaku", MINSTREL.format("121121_01_01_00", ""), IgnoreReason.OUT_OF_RANGE),
    ("rigaku", MINSTREL.format("121131_01_01_01", ""), IgnoreReason.OUT_OF_RANGE),
    ("xchem", f"{XCHEM}/90j8_13A_1.jpg", IgnoreReason.OUT_OF_RANGE),
    ("xchem", f"{XCHEM}/90j8_01A_3.jpg", IgnoreReason.OUT_OF_RANGE),
    ("xchem", "90j8_2018-02-30_RI1000-0081-2drop/90j8_01A_1.jpg", IgnoreReason.OUT_OF_RANGE),
    ("crims", "FORMULATRIX_CD1_6_31-06-2021_05_02_01_00_99_Vis.jpg", IgnoreReason.OUT_OF_RANGE),
    ("crims", "FORMULATRIX_CD1_6_08-09-2021_13_02_01_00_99_Vis.jpg", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "X0000051270000200506241635.png", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "X0000051271537200506241635.png", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "X0000051270001200513241635.png", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "X0000051270001000001010000.png", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "X0000051270001197006241635.png", IgnoreReason.OUT_OF_RANGE),
    ("oppf", "441312000010-A13-2-R0DRP1-EF-z20-20100316-083621.jpg", IgnoreReason.OUT_OF_RANGE),
    ("oppf", "441312000010-A01-2-R0DRP1-EF-z20-20100316-250000.jpg", IgnoreReason.OUT_OF_RANGE),
    ("rhombix", "TG_A01-1_BRITE_110631_200901_1.jpg", IgnoreReason.OUT_OF_RANGE),
    ("ami", "plate7/20240131_093000/H13.jpg", IgnoreReason.OUT_OF_RANGE),
    ("rockmaker-export", "002s/Clear/002s_C6_ImagerDefaults_9.jpg", IgnoreReason.NO_REPORT),
    ("rockmaker-export", "90j8/Crystals/90j8_I12_Visible_9_3552.jpg", IgnoreReason.OUT_OF_RANGE),
    ("hwi", "../X0000051270868200506241635.png", IgnoreReason.NOT_THIS_LAYOUT),
    ("xchem", "somewhere/90j8_01A_1.jpg", IgnoreReason.NOT_THIS_LAYOUT),
    ("hwi", "", IgnoreReason.NOT_THIS_LAYOUT),
    *((name, "holiday/beach.jpg", IgnoreReason.NOT_THIS_LAYOUT) for name in NAMES if name != "regex"),
]


@pytest.mark.parametrize(("layout", "path", "reason"), CASES)
def test_reason(layout: str, path: str, reason: IgnoreReason) -> None:
    verdict = make(layout, LayoutOptions(plates=lambda key: PlateSetup(PLATE_FORMATS[96]))).parse(path)
    assert isinstance(verdict, NotADrop)
    assert (verdict.layout, verdict.reason) == (layout, reason)
    assert verdict.detail
    assert verdict.may_change is (reason is IgnoreReason.NO_REPORT)


@pytest.mark.parametrize(
    ("layout", "path", "kind"),
    [
        ("formulatrix", f"{NATIVE}/d1_r1_th.jpg", ImageKind.THUMBNAIL),
        ("formulatrix", f"{NATIVE}/d1_r1_F000.jpg", ImageKind.SLICE),
        ("formulatrix", f"{NATIVE}/d1_r1_DL.jpg", ImageKind.DROP_LOCATION),
        ("rigaku", MINSTREL.format("121121_01_01_01", "_thumb"), ImageKind.THUMBNAIL),
        ("oppf", "441312000010-A01-2-R0OVP1-EF-zN-20100316-083621.jpg", ImageKind.OVERVIEW),
        ("ami", "plate7/20240131_093000/A1_2.jpg", ImageKind.SLICE),
    ],
)
def test_other_images_of_a_drop_are_read_with_their_kind(layout: str, path: str, kind: ImageKind) -> None:
    image = make(layout).parse(path)
    assert isinstance(image, DropImage)
    assert image.kind is kind


@pytest.mark.parametrize(
    "name",
    [
        "plate\udcff1",
        "plate\x00",
        "pla\x1bte",
        "plate\n",
        "\u202eplate",
        "  ",
    ],
)
def test_bytes_that_are_no_text_cannot_become_a_plate(name: str) -> None:
    verdict = make("ami").parse(f"{name}/20240131_093000/A1.jpg")
    assert isinstance(verdict, NotADrop)
    assert verdict.reason is IgnoreReason.UNREADABLE_NAME
    assert verdict.detail.isprintable()


def test_only_a_whole_folder_name_marks_a_working_copy() -> None:
    assert isinstance(make("formulatrix").parse(f"unprocessed/{NATIVE}/d1_r1_ef.jpg"), DropImage)


def test_a_path_beyond_every_file_system_is_refused_before_any_grammar_reads_it() -> None:
    verdict = make("rigaku").parse("0" * 100_000 + ".jpg")
    assert isinstance(verdict, NotADrop)
    assert verdict.reason is IgnoreReason.UNREADABLE_NAME
    assert len(verdict.detail) < 300


def test_digits_of_other_scripts_are_not_digits() -> None:
    verdict = make("formulatrix").parse("plateID_\u0661/batchID_2/wellNum_1/profileID_1/d1_r1_ef.jpg")
    assert isinstance(verdict, NotADrop)


def test_unknown_layout_is_refused_with_the_known_ones_nearest_first() -> None:
    with pytest.raises(LayoutError, match="rockmaker-export, formulatrix, oppf"):
        make("rockimager")


@pytest.mark.parametrize(
    ("layout", "changed", "about"),
    [
        ("formulatrix", {"plate_key": "CD1"}, "plate"),
        ("formulatrix", {"kind": ImageKind.OVERVIEW}, "overview"),
        ("formulatrix", {"barcode": "CD1"}, "barcode"),
        ("formulatrix", {"column": 13}, "row"),
        ("crims", {"modality": Modality.SHG}, "shg"),
        ("crims", {"inspection_key": "first"}, "barcode, inspection|CRIMS name"),
        ("crims", {"captured_at": None}, "captured_at"),
        ("rigaku", {"inspection_key": "2018-04-11"}, "number"),
        ("rigaku", {"drop": 100}, "drop|fields"),
        ("xchem", {"drop": 10}, "drop"),
        ("xchem", {"inspection_key": "3"}, "dated folder"),
        ("hwi", {"drop": 2, "inspection_key": "202004011136", "plate_key": "X000005127"}, "drop"),
        ("hwi", {"captured_at": None}, "date"),
        ("oppf", {"kind": ImageKind.THUMBNAIL}, "thumbnail"),
        ("ami", {"drop": 4, "inspection_key": "20240131_093000"}, "drop"),
        ("rockmaker-export", {"kind": ImageKind.SLICE}, "kind"),
        ("rockmaker-export", {"captured_at": None}, "captured_at"),
        ("regex", {}, "regular expression"),
    ],
)
def test_what_a_family_cannot_express_is_refused(layout: str, changed: dict[str, object], about: str) -> None:
    options = LayoutOptions(pattern="(?P<plate>x)(?P<well>y)" if layout == "regex" else None)
    fields = {
        "layout": layout,
        "plate_key": "1234",
        "inspection_key": "2",
        "row": 1,
        "column": 1,
        "drop": 1,
        "modality": Modality.VISIBLE,
        "captured_at": datetime(2024, 1, 31, 9, 30, tzinfo=UTC),
    }
    with pytest.raises(LayoutError, match=about):
        make(layout, options).format(DropImage(**(fields | changed)))


def test_explain_puts_matches_before_near_misses_before_the_rest() -> None:
    layouts = [make(name) for name in ("ami", "xchem", "hwi", "formulatrix")]
    readable = explain("X0000051270868200506241635.png", layouts)
    assert [layout.name for layout, _ in readable] == ["hwi", "ami", "xchem", "formulatrix"]
    missed = explain(f"{XCHEM}/90j8_A01_1.jpg", layouts)
    assert [layout.name for layout, _ in missed] == ["xchem", "ami", "hwi", "formulatrix"]

"""Every name that public programs, manuals and data sets show, with what it says."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from marcod.domain import (
    PLATE_FORMATS,
    DropImage,
    IgnoreReason,
    ImageKind,
    LayoutWarning,
    Modality,
    NotADrop,
    PlateFormat,
    PlateSetup,
    WarningKind,
)
from marcod.layouts import LayoutOptions, explain, is_entered, make
from marcod.layouts.paths import KEPT_BACK

VISIBLE, UV, SHG, UNKNOWN = Modality.VISIBLE, Modality.UV, Modality.SHG, Modality.UNKNOWN
MINSTREL = "RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_{}_HF_99_030_001_RDI.jpg"
C3 = "RMM3_01_328_ROBO_Test1_Clon1_MC_0000MC100341_004_100716_01_06_01_00_99_030_001_RDI.jpg"
BARE = LayoutWarning(
    WarningKind.LIGHT_LOST, "no dated folder above the file, and only that says how it was lit; not scored"
)


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def formulatrix(plate: str, batch: str, drop: int, region: int, **more: object) -> DropImage:
    known = {"row": 1, "column": 1, "modality": VISIBLE, "profile": "1"} | more
    return DropImage("formulatrix", plate, batch, drop=drop, region=region, **known)


def numbered(
    layout: str, barcode: str, inspection: int, well: tuple[int, int], drop: int, date: str, **more: object
) -> DropImage:
    known = {"modality": VISIBLE} | more
    return DropImage(
        layout,
        barcode,
        str(inspection),
        *well,
        drop,
        barcode=barcode,
        inspection_ordinal=inspection,
        captured_at=day(date),
        **known,
    )


def hwi(plate: str, key: str, well: tuple[int, int], taken: str, **more: object) -> DropImage:
    known = {"modality": VISIBLE} | more
    return DropImage("hwi", plate, key, *well, 1, barcode=plate, captured_at=day(taken), **known)


def xchem(barcode: str, date: str, well: tuple[int, int], drop: int) -> DropImage:
    return DropImage("xchem", barcode, date, *well, drop, VISIBLE, barcode=barcode, captured_at=day(date))


def oppf(**more: object) -> DropImage:
    known = {"drop": 2, "modality": VISIBLE, "region": 0} | more
    return DropImage(
        "oppf",
        "441312000010",
        "20100316-083621",
        1,
        1,
        barcode="441312000010",
        captured_at=day("2010-03-16 08:36:21"),
        profile="1",
        **known,
    )


EXAMPLES = [
    # Formulatrix native: PiMS ImporterTest.java, xtalfairy/XtalFlow, Merck/polo
    (
        "//SQLPLAYGROUND/RockMakerStorage/WellImages/209/plateID_209/batchID_11/wellNum_1/profileID_1/d1_r498_ef.jpg",
        formulatrix("209", "11", 1, 498),
    ),
    (
        "/smbmount/rmserver/RockMakerStorage/WellImages/700/plateID_700/batchID_3553/wellNum_1/profileID_1/d1_r70821_ef.jpg",
        formulatrix("700", "3553", 1, 70821),
    ),
    (
        ".../690/plateID_690/batchID_3552/wellNum_1/profileID_1/d3_r69383_ef.jpg",
        formulatrix("690", "3552", 3, 69383),
    ),
    (
        "plateID_1535/batchID_9727/wellNum_1/profileID_1/d1_r208903_ef.jpg",
        formulatrix("1535", "9727", 1, 208903),
    ),
    (
        "WellImages\\70\\plateID1070\\batchID_5\\wellNum_13\\profileID_1\\d2_r7_ef.jpg",
        formulatrix("1070", "5", 2, 7, row=2),
    ),
    (
        "WellImages/539/plateID_14539/batchID_72673/wellNum_12/profileID_1/d1_r1_th.jpg",
        formulatrix("14539", "72673", 1, 1, column=12, kind=ImageKind.THUMBNAIL),
    ),
    (
        "WellImages/539/plateID_14539/batchID_72673/wellNum_96/profileID_8/d1_r1_th_low.jpg",
        formulatrix("14539", "72673", 1, 1, row=8, column=12, profile="8", kind=ImageKind.THUMBNAIL),
    ),
    (
        "plateID_1/batchID_2/wellNum_1/profileID_1/d1_r9_dl.jpg",
        formulatrix("1", "2", 1, 9, kind=ImageKind.DROP_LOCATION),
    ),
    (
        "plateID_1/batchID_2/wellNum_1/profileID_1/d1_r9_f013.jpg",
        formulatrix("1", "2", 1, 9, kind=ImageKind.SLICE),
    ),
    # Rigaku: CMD-Oxford/TeXRank (SGC Oxford) and CSIRO C3
    (
        f"minstrel3/pub/images/CI022987/3/{MINSTREL.format('01_01_01')}",
        numbered("rigaku", "CI022987", 3, (1, 1), 1, "2012-11-21", profile="HF"),
    ),
    (
        f"CI022987/3/{MINSTREL.format('05_02_01')}",
        numbered("rigaku", "CI022987", 3, (2, 5), 1, "2012-11-21", profile="HF"),
    ),
    (
        f"CI022987/3/{MINSTREL.format('12_08_04')}",
        numbered("rigaku", "CI022987", 3, (8, 12), 4, "2012-11-21", profile="HF"),
    ),
    (
        f"images\\Janet Newman\\MC100341\\4\\{C3}",
        numbered("rigaku", "MC100341", 4, (6, 1), 1, "2010-07-16", profile="00"),
    ),
    (C3, numbered("rigaku", "MC100341", 4, (6, 1), 1, "2010-07-16", profile="00")),
    (
        f"Viewer/SubwellImages/CI022987/{MINSTREL.format('03_01_03')}",
        numbered("rigaku", "CI022987", 3, (1, 3), 3, "2012-11-21", profile="HF"),
    ),
    # Diamond XChem: xchem/formulatrix_pipe, xchembku
    ("SubwellImages/90j8_2018-04-11_RI1000-0081-2drop/90j8_01A_1.jpg", xchem("90j8", "2018-04-11", (1, 1), 1)),
    ("SubwellImages/97wo_2021-09-14_RI1000-0276-3drop/97wo_12H_3.jpg", xchem("97wo", "2021-09-14", (8, 12), 3)),
    ("9b5j_2023-03-23_RI1000-0276-3drop/9b5j_02C_2.jpg", xchem("9b5j", "2023-03-23", (3, 2), 2)),
    ("90j8_RI1000-0081_2018-04-11_2drop/90j8_04A_2.jpg", xchem("90j8", "2018-04-11", (1, 4), 2)),
    ("98ab_2018-04-11_RI1000-0081-mitegen/98ab_04A_1.jpg", xchem("98ab", "2018-04-11", (1, 4), 1)),
    # OPPF and VMXi: DiamondLightSource/VMXiImagerLink FileUtils.cs, new and older names
    ("441312000010-A01-2-R0DRP1-EF-z20-20100316-083621", oppf()),
    ("441312000010-A01-2-R0DRP1-FL1-z20-20100316-083621", oppf(kind=ImageKind.SLICE)),
    ("Web/441312000010/441312000010-A01-2-R0DRP1-EF-z-20-20100316-083621.jpg", oppf()),
    ("Web/441312000010/441312000010-A01-2-R4RIP1-EF-zN-20100316-083621.jpg", oppf(region=4)),
    ("441312000010-A01-2-R0OVP1-EF-zN-20100316-083621.jpg", oppf(kind=ImageKind.OVERVIEW)),
    ("Archive/20100316/441312000010/441312000010-A01-2-R0DRP1-BF-z3-20100316-083621.tif", oppf(kind=ImageKind.SLICE)),
    ("441312000010-A01-2-R0DRP1-DL-zN-20100316-083621.jpg", oppf(kind=ImageKind.DROP_LOCATION)),
    ("441312000010-A01-2-z20.5-0-Drop-1-ExtendedFocus-20100316-083621.jpeg", oppf()),
    ("441312000010-A01-2-z-3-0-Drop-1-FocusLevel-20100316-083621.jpeg", oppf(kind=ImageKind.SLICE)),
    ("441312000010-A01-2-z0-0-Overview-1-ExtendedFocus-20100316-083621.jpeg", oppf(kind=ImageKind.OVERVIEW)),
    # EMBL CRIMS: marquez-group-embl/AXIS, MXCuBE
    (
        "https://htxlab.embl.org//rawimages/2025/CD044931/3/FORMULATRIX_CD044931_3_04-12-2025_02_03_03_00_99_UV.jpg",
        numbered("crims", "CD044931", 3, (3, 2), 3, "2025-12-04", modality=UV),
    ),
    (
        "rawimages/2021//CD032401/6/FORMULATRIX_CD032401_6_08-09-2021_05_02_01_00_99_Vis.jpg",
        numbered("crims", "CD032401", 6, (2, 5), 1, "2021-09-08"),
    ),
    (
        "rawimages/2023//CD037770/6/FORMULATRIX_CD037770_6_04-05-2023_12_01_03_00_99_Vis.jpg",
        numbered("crims", "CD037770", 6, (1, 12), 3, "2023-05-04"),
    ),
    (
        "FORMULATRIX_SD30010705_2_01-10-2025_03_03_01_00_99_Vis.jpg",
        numbered("crims", "SD30010705", 2, (3, 3), 1, "2025-10-01"),
    ),
    # HWI: ubccr/besra and ubccr/terf READMEs, Marco_Polo's folders
    (
        "X0000051270868200506241635.png",
        hwi("X000005127", "20050624", (19, 4), "2005-06-24 16:35", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000049750501200505270943.png",
        hwi("X000004975", "20050527", (11, 21), "2005-05-27 09:43", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000049151305200506061345.png",
        hwi("X000004915", "20050606", (28, 9), "2005-06-06 13:45", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000050511419200507041505.png",
        hwi("X000005051", "20050704", (30, 27), "2005-07-04 15:05", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000051830553200507012227.png",
        hwi("X000005183", "20050701", (12, 25), "2005-07-01 22:27", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000050611108200507051159.png",
        hwi("X000005061", "20050705", (24, 4), "2005-07-05 11:59", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X0000056450155200509052032.png",
        hwi("X000005645", "20050905", (4, 11), "2005-09-05 20:32", modality=UNKNOWN, warnings=(BARE,)),
    ),
    (
        "X000015804202004011136-jpg/X0000158041536202004011140.jpg",
        hwi("X000015804", "202004011136", (32, 48), "2020-04-01 11:40"),
    ),
    (
        "X000015862202008111512-uvt/X0000158620001202008111513.png",
        hwi("X000015862", "202008111512-uvt", (1, 1), "2020-08-11 15:13", modality=UV),
    ),
    (
        "X000015862202008121112-SHG/X0000158620049202008121113.png",
        hwi("X000015862", "202008121112-shg", (2, 1), "2020-08-12 11:13", modality=SHG),
    ),
    # Rhombix: chrishmorris/PiMS ImporterTest.java; AMi: its README
    (
        "\\\\cdbmaster\\DCA\\TG-CQ-MG-20\\110629\\TG-CQ-MG-20_A01-1_BRITE_110629_200901_1.jpg",
        DropImage(
            "rhombix",
            "TG-CQ-MG-20",
            "110629",
            1,
            1,
            1,
            VISIBLE,
            barcode="TG-CQ-MG-20",
            captured_at=day("2011-06-29 20:09:01"),
            profile="BRITE",
        ),
    ),
    (
        "images/lysozyme/plate7/20240131_093000/B2c.jpg",
        DropImage(
            "ami",
            "lysozyme/plate7",
            "20240131_093000",
            2,
            2,
            3,
            VISIBLE,
            captured_at=day("2024-01-31 09:30:00"),
        ),
    ),
]


@pytest.mark.parametrize(("path", "expected"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_published_name(path: str, expected: DropImage) -> None:
    assert make(expected.layout).parse(path) == expected


PATTERNLESS = [
    make(name)
    for name in ("formulatrix", "rockmaker-export", "oppf", "xchem", "crims", "rigaku", "hwi", "rhombix", "ami")
]


@pytest.mark.parametrize(("path", "expected"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_published_name_belongs_to_one_family(path: str, expected: DropImage) -> None:
    (first, verdict), *others = explain(path, PATTERNLESS)
    assert (first.name, verdict) == (expected.layout, expected)
    assert all(isinstance(other, NotADrop) for _, other in others)


def test_well_numbers_need_the_plate_format() -> None:
    path = "plateID_1/batchID_2/wellNum_25/profileID_1/d1_r1_ef.jpg"
    wells = {
        number: make("formulatrix", LayoutOptions(plate_format=plate)).parse(path)
        for number, plate in PLATE_FORMATS.items()
    }
    assert [image.well for image in wells.values() if isinstance(image, DropImage)] == [
        "D01",
        "C01",
        "B01",
        "A25",
    ]
    assert isinstance(wells[24], NotADrop)
    assert wells[24].reason is IgnoreReason.OUT_OF_RANGE


def test_two_regions_of_one_drop_differ_in_region_alone() -> None:
    folder = "plateID_1/batchID_2/wellNum_1/profileID_1"
    zoom, overview = (make("formulatrix").parse(f"{folder}/d1_r{region}_ef.jpg") for region in (5, 6))
    assert isinstance(zoom, DropImage)
    assert isinstance(overview, DropImage)
    assert (zoom.region, overview.region) == (5, 6)
    assert (zoom.well, zoom.drop, zoom.kind) == (overview.well, overview.drop, overview.kind)


@pytest.mark.parametrize(
    ("profiles", "extension", "modality", "warned"),
    [
        ({}, "jpg", VISIBLE, False),
        ({}, "PNG", UV, True),
        ({1: UV}, "png", UV, True),
        ({2: VISIBLE}, "png", VISIBLE, False),
        ({2: SHG}, "jpg", SHG, False),
        ({2: Modality.UNKNOWN}, "png", Modality.UNKNOWN, False),
    ],
)
def test_profile_map_wins_over_the_extension(
    profiles: dict[int, Modality], extension: str, modality: Modality, warned: bool
) -> None:
    layout = make("formulatrix", LayoutOptions(profiles=profiles))
    image = layout.parse(f"plateID_1/batchID_2/wellNum_1/profileID_2/d1_r1_ef.{extension}")
    assert isinstance(image, DropImage)
    assert image.modality is modality
    assert bool(image.warnings) is warned
    assert all(
        warning.kind is WarningKind.UNMAPPED_PROFILE and "profile 2" in warning.text for warning in image.warnings
    )


@pytest.mark.parametrize(
    ("path", "plate", "inspection", "about"),
    [
        (f"CI022988/3/{MINSTREL.format('01_01_01')}", "CI022988", "3", ["barcode"]),
        (f"CI022987/4/{MINSTREL.format('01_01_01')}", "CI022987", "4", ["inspection"]),
        (f"CI022988/4/{MINSTREL.format('01_01_01')}", "CI022988", "4", ["inspection", "barcode"]),
        (f"Plates/3/{MINSTREL.format('01_01_01')}", "CI022987", "3", ["barcode"]),
        (f"ci022987/3/{MINSTREL.format('01_01_01')}", "CI022987", "3", []),
        (f"3/{MINSTREL.format('01_01_01')}", "CI022987", "3", []),
        (f"7/{MINSTREL.format('01_01_01').replace('0000CI022987', '000000000007')}", "7", "3", []),
        (f"0012/3/{MINSTREL.format('01_01_01').replace('0000CI022987', '000000000012')}", "0012", "3", []),
        (f"CI12/3/{MINSTREL.format('01_01_01').replace('0000CI022987', '000000000012')}", "CI12", "3", []),
        (f"CI022987/3/{MINSTREL.format('01_01_01').replace('Test1', 'my_own_text')}", "CI022987", "3", []),
    ],
)
def test_minstrel_folders_and_names(path: str, plate: str, inspection: str, about: list[str]) -> None:
    image = make("rigaku").parse(path)
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.barcode, image.inspection_key) == (plate, plate, inspection)
    assert [warning.text.partition(":")[0] for warning in image.warnings] == about


def test_minstrel_reservoir_is_only_known_from_the_configuration() -> None:
    path = f"CI022987/3/{MINSTREL.format('01_01_02')}"
    told = make("rigaku", LayoutOptions(reservoir_subwells=frozenset({2}))).parse(path)
    untold = make("rigaku").parse(path)
    assert isinstance(told, NotADrop)
    assert told.reason is IgnoreReason.RESERVOIR
    assert isinstance(untold, DropImage)
    assert untold.drop == 2


@pytest.mark.parametrize(
    ("layout", "path", "about"),
    [
        ("xchem", "90j9_2018-04-11_RI1000-0081-2drop/90j8_01A_1.jpg", ["barcode"]),
        ("hwi", "X000015805202004011136-jpg/X0000158040001202004011140.jpg", ["plate"]),
        (
            "crims",
            "rawimages/2021/CD1/7/FORMULATRIX_CD2_6_08-09-2021_05_02_01_00_99_Vis.jpg",
            ["inspection", "barcode"],
        ),
        ("rhombix", "TG-1/110629/TG-2_A01-1_BRITE_110629_200901_1.jpg", ["barcode"]),
    ],
)
def test_elsewhere_the_name_is_believed(layout: str, path: str, about: list[str]) -> None:
    image = make(layout).parse(path)
    assert isinstance(image, DropImage)
    assert image.plate_key in path.rpartition("/")[2]
    assert [warning.text.partition(":")[0] for warning in image.warnings] == about


def test_a_rhombix_image_outside_its_dated_folder_is_of_its_names_date() -> None:
    image = make("rhombix").parse("TG-1_A01-1_BRITE_110629_200901_1.jpg")
    assert isinstance(image, DropImage)
    assert image.inspection_key == "110629"


def test_an_unknown_light_of_an_hwi_folder_is_not_scored_as_visible() -> None:
    image = make("hwi").parse("X000015804202004011136-abc/X0000158040001202004011140.jpg")
    assert isinstance(image, DropImage)
    assert (image.modality, image.inspection_key) == (Modality.UNKNOWN, "202004011136-abc")
    assert image.warnings


def _real_images() -> list[tuple[str, str]]:
    """Images below ``{layout name}/`` of the folder that MARCOD_REAL_PLATES names, if it is set."""
    root = Path(os.environ.get("MARCOD_REAL_PLATES") or os.devnull)
    return [
        (layout.name, file.relative_to(root / layout.name).as_posix())
        for layout in PATTERNLESS
        for file in sorted((root / layout.name).rglob("*.jpg"))
    ]


def test_real_plates_are_read_without_a_warning() -> None:
    layouts = {layout.name: layout for layout in PATTERNLESS}
    images = [
        *_real_images(),
        ("rigaku", f"CI022987/3/{MINSTREL.format('01_01_01')}"),
        ("xchem", "90j8_2018-04-11_RI1000-0081-2drop/90j8_01A_1.jpg"),
    ]
    verdicts = [layouts[name].parse(path) for name, path in images]
    assert [v for v in verdicts if not isinstance(v, DropImage) or v.warnings] == []


@pytest.mark.parametrize(
    ("path", "plate", "well", "inspection"),
    [
        # The name alone could be read in several ways; the folder of the barcode tells.
        ("TRY_12/Crystals/TRY_12_C3_Visible_9_502.jpg", "TRY_12", "C03", "502"),
        ("7jk1/Clear/7jk1_C3_Vis_HR_1_503.jpg", "7jk1", "C03", "503"),
        ("AB_C4/Clear/AB_C4_E8_Zoom_1_77.jpg", "AB_C4", "E08", "77"),
        ("AB/Clear/AB_C4_E8_Zoom_1_77.jpg", "AB", "C04", "77"),
        ("AB/Clear/AB_C4_E8_1_77.jpg", "AB", "C04", "77"),
        ("ab_c4/Crystal/Micro/AB_C4_E8_Zoom_A1_1_77.jpg", "AB_C4", "E08", "77"),
        ("loose/TRY_12_C3_Visible_9_502.jpg", "TRY_12", "C03", "502"),
    ],
)
def test_names_of_the_export_tool_are_read_from_both_ends(path: str, plate: str, well: str, inspection: str) -> None:
    image = make("rockmaker-export").parse(path)
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.well, image.inspection_key) == (plate, well, inspection)


def test_an_older_name_whose_barcode_ends_like_a_well_is_not_a_batch() -> None:
    path = "AB_C4/Clear/AB_C4_E8_ImagerDefaults_1.jpg"
    report = f'x\n"{path}","Clear",Drop,05/14/23 09:12:44\n'.encode()
    image = make("rockmaker-export").parse(path, {"AB_C4/report.csv": report}.get)
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.well, image.inspection_key) == ("AB_C4", "E08", "2023-05-14")


@pytest.mark.parametrize("path", ["loose/AB_C4_E8_Zoom_1_77.jpg", "AB_C4_E8_ImagerDefaults_1.jpg"])
def test_a_name_that_two_plates_could_bear_is_not_guessed(path: str) -> None:
    verdict = make("rockmaker-export").parse(path)
    assert isinstance(verdict, NotADrop)
    assert verdict.reason is IgnoreReason.UNREADABLE_NAME
    assert "'AB' or 'AB_C4'" in verdict.detail


@pytest.mark.parametrize(
    ("layout", "path", "plate", "well"),
    [
        ("crims", "CD_1/3/FORMULATRIX_CD_1_3_04-12-2025_02_03_01_00_99_Vis.jpg", "CD_1", "C02"),
        ("xchem", "TRY_12_2021-09-14_RI1000-0276-3drop/TRY_12_02C_1.jpg", "TRY_12", "C02"),
        ("xchem", "TRY_12_RI1000-0276_2021-09-14_3drop/TRY_12_02C_1.jpg", "TRY_12", "C02"),
        (
            "rigaku",
            f"TRY_12/3/{MINSTREL.format('02_03_01').replace('CI_0000CI022987', 'T_000000TRY_12')}",
            "TRY_12",
            "C02",
        ),
        ("rhombix", "TRY_12/110629/TRY_12_C02-1_BRITE_110629_200901_1.jpg", "TRY_12", "C02"),
    ],
)
def test_a_barcode_may_hold_an_underscore(layout: str, path: str, plate: str, well: str) -> None:
    image = make(layout).parse(path)
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.well, image.warnings) == (plate, well, ())


@pytest.mark.parametrize(
    ("path", "plate"),
    [
        ("images/kinase/hit2/tray1/20240131_093000/A1.jpg", "kinase/hit2/tray1"),
        ("images/hit2/tray1/20240131_093000/A1.jpg", "hit2/tray1"),
        ("kinase/hit2/tray1/20240131_093000/A1.jpg", "kinase/hit2/tray1"),
        ("data/images/kinase/hit2/tray1/20240131_093000/A1.jpg", "kinase/hit2/tray1"),
        ("tray1/20240131_093000/A1.jpg", "tray1"),
        ("images/20240131_093000/A1.jpg", "images"),
    ],
)
def test_a_plate_of_ami_is_one_of_its_project_and_target(path: str, plate: str) -> None:
    image = make("ami").parse(path)
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.barcode) == (plate, None if "/" in plate else plate)
    assert make("ami").format(image).startswith(plate)


@pytest.mark.parametrize("folder", ["X000015862202008111512-uvt (2)", "Copy of X000015862202008111512-uvt", "uv", ""])
def test_light_that_only_a_folder_named_is_unknown_once_it_is_renamed(folder: str) -> None:
    image = make("hwi").parse(f"{folder}/X0000158620868202008111635.png")
    assert isinstance(image, DropImage)
    assert (image.modality, image.warnings) == (Modality.UNKNOWN, (BARE,))
    told = make("hwi", LayoutOptions(light=UV)).parse(f"{folder}/X0000158620868202008111635.png")
    assert isinstance(told, DropImage)
    assert (told.modality, told.warnings) == (UV, ())


def test_a_folder_in_the_dated_folder_keeps_the_light() -> None:
    image = make("hwi").parse("X000015862202008111512-uvt/sorted/X0000158620868202008111635.png")
    assert isinstance(image, DropImage)
    assert (image.modality, image.inspection_key, image.warnings) == (UV, "202008111512-uvt", ())


@pytest.mark.parametrize(
    ("options", "kind", "light"),
    [
        (LayoutOptions(), "HF", VISIBLE),
        (LayoutOptions(profiles={"F2": UV}), "f2", UV),
        (LayoutOptions(profiles={"F2": UV}), "HF", VISIBLE),
        (LayoutOptions(profiles={"00": VISIBLE}, light=UV), "00", VISIBLE),
        (LayoutOptions(light=UV), "HF", UV),
    ],
)
def test_the_light_of_minstrel_images_can_be_configured(options: LayoutOptions, kind: str, light: Modality) -> None:
    path = f"CI022987/3/{MINSTREL.format('01_01_01').replace('_HF_', f'_{kind}_')}"
    image = make("rigaku", options).parse(path)
    assert isinstance(image, DropImage)
    assert image.modality is light


def test_a_light_of_rhombix_that_is_not_known_is_not_scored() -> None:
    path = "TG-20/110629/TG-20_A01-1_{}_110629_200901_1.jpg"
    image = make("rhombix").parse(path.format("LASER"))
    assert isinstance(image, DropImage)
    assert (image.modality, image.warnings[0].kind) == (UNKNOWN, WarningKind.UNKNOWN_LIGHT)
    told = make("rhombix", LayoutOptions(profiles={"laser": VISIBLE})).parse(path.format("LASER"))
    assert isinstance(told, DropImage)
    assert (told.modality, told.warnings) == (VISIBLE, ())


NUMBERED = "plateID_9/batchID_2/wellNum_{}/profileID_1/d1_r1_ef.jpg"


@pytest.mark.parametrize(
    ("setup", "number", "well"),
    [
        (PlateSetup(PlateFormat(8, 6)), 7, "B01"),
        (PlateSetup(PlateFormat(8, 6)), 48, "H06"),
        (PlateSetup(PLATE_FORMATS[384]), 97, "E01"),
        (PlateSetup(PlateFormat(16, 3)), 4, "B01"),
        (PlateSetup(PLATE_FORMATS[384], inferred=True), 25, "B01"),
        (PlateSetup(PlateFormat(48, 32)), 1536, "AV32"),
        (PlateSetup(), 13, "B01"),
        (None, 13, "B01"),
    ],
)
def test_a_well_number_is_read_on_the_grid_of_its_plate(setup: PlateSetup | None, number: int, well: str) -> None:
    image = make("formulatrix", LayoutOptions(plates={"9": setup}.get)).parse(NUMBERED.format(number))
    assert isinstance(image, DropImage)
    assert image.well == well
    inferred = setup is not None and setup.inferred
    assert [one.kind for one in image.warnings] == ([WarningKind.FORMAT_INFERRED] if inferred else [])


def test_a_number_beyond_the_plate_makes_it_the_next_larger_one_unless_it_was_given() -> None:
    known = LayoutOptions(plates=lambda key: PlateSetup())
    image = make("formulatrix", known).parse(NUMBERED.format(97))
    assert isinstance(image, DropImage)
    assert (image.well, image.inferred, image.warnings[0].kind) == ("E01", PLATE_FORMATS[384], "format_inferred")
    small = make("formulatrix", replace(known, plate_format=PlateFormat(8, 6))).parse(NUMBERED.format(49))
    assert isinstance(small, DropImage)
    assert (small.well, small.inferred) == ("E01", PLATE_FORMATS[96])
    told = make("formulatrix", LayoutOptions(plates=lambda key: PlateSetup(PLATE_FORMATS[96]))).parse(
        NUMBERED.format(97)
    )
    assert isinstance(told, NotADrop)
    assert (told.reason, "plate import" in told.detail) == (IgnoreReason.OUT_OF_RANGE, True)


def test_a_number_beyond_the_source_s_grid_is_refused_where_the_plate_s_grid_is_kept_nowhere() -> None:
    # Read on a larger grid it would lie beside lower numbers of the same plate that were read on the smaller one.
    verdict = make("formulatrix").parse(NUMBERED.format(97))
    assert isinstance(verdict, NotADrop)
    assert (verdict.reason, "`grid` of the source" in verdict.detail) == (IgnoreReason.OUT_OF_RANGE, True)


def test_the_reservoir_is_that_of_the_plate() -> None:
    known = {"CI022987": PlateSetup(reservoirs=frozenset({4}))}
    options = LayoutOptions(reservoir_subwells=frozenset({2}), plates=known.get)
    read = {
        (plate, subwell): isinstance(
            make("rigaku", options).parse(
                f"{plate}/3/{MINSTREL.format(f'01_01_0{subwell}').replace('CI022987', plate)}"
            ),
            DropImage,
        )
        for plate in ("CI022987", "CI022988")
        for subwell in (1, 2, 4)
    }
    assert [key for key, is_drop in read.items() if not is_drop] == [("CI022987", 4), ("CI022988", 2)]


@pytest.mark.parametrize(
    "folder",
    [
        *KEPT_BACK,
        "@GMT-2024.03.02-01.00.01",
        "found.001",
        "#RECYCLE",
        ".zfs",
        ".snapshot",
    ],
)
def test_bins_and_snapshots_are_not_entered(folder: str) -> None:
    path = f"{folder}/old/{NUMBERED.format(1)}"
    assert not is_entered(folder)
    assert isinstance(make("formulatrix").parse(path), NotADrop)
    assert isinstance(make("formulatrix").parse(f"share/{path}"), NotADrop)


@pytest.mark.parametrize("folder", ["#3 plates", "@home", "snapshots of lysozyme", "$", "recycled protein", "GMT"])
def test_other_folders_are_entered(folder: str) -> None:
    assert is_entered(folder)
    assert isinstance(make("formulatrix").parse(f"{folder}/{NUMBERED.format(1)}"), DropImage)


def test_working_folders_of_one_imagers_tools_are_others_plain_folders() -> None:
    for folder in ("Processed", "Quarantine"):
        assert isinstance(make("ami").parse(f"{folder}/tray1/20240131_093000/A1.jpg"), DropImage)
        assert isinstance(make("formulatrix").parse(f"{folder}/{NUMBERED.format(1)}"), DropImage)
        name = "44131-A01-2-R0DRP1-EF-z20-20100316-083621.jpg"
        refused = make("oppf").parse(f"{folder}/{name}")
        assert isinstance(refused, NotADrop)
        assert refused.reason is IgnoreReason.WORKING_COPY


def test_a_plates_name_is_kept_in_one_unicode_form() -> None:
    composed, decomposed = "Caf\u00e9_1", "Cafe\u0301_1"
    for spelling in (composed, decomposed):
        image = make("rockmaker-export").parse(f"{spelling}/Clear/{spelling}_D2_Visible_1_7.jpg")
        assert isinstance(image, DropImage)
        assert (image.plate_key, image.barcode) == (composed, composed)
    mixed = make("rockmaker-export").parse(f"{decomposed}/Clear/{composed}_D2_Visible_1_7.jpg")
    assert isinstance(mixed, DropImage)
    assert [one.kind for one in mixed.warnings] == [WarningKind.REPORT_MISSING]

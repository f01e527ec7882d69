"""Surveys of synthetic exports of every layout, of wrong levels, of mixtures, and of folders too large to see."""

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest

from marcod import layouts, survey
from marcod.cli.common.survey_report import _doubts, _how_to_scan
from marcod.domain import PLATE_FORMATS, DropImage, Modality
from marcod.survey import Survey, look, propose, root_of
from marcod.survey.imager import SurveyedImager
from marcod.survey.propose import Answers
from marcod.survey.sample import SurveyLimits
from marcod.synthetic import ImagerStyle as Camera
from marcod.synthetic import PlateSpec, plate_files

START = datetime(2026, 4, 1, 8, 30, tzinfo=UTC)
INSPECTIONS = {"xchem": "2026-04-01", "ami": "20260401_083000", "hwi": "202604010830"}
KEYS = {"formulatrix": "1041", "hwi": "X000016042", "xchem": "90j8"}


def export(
    root: Path, layout: str, key: str = "", *, wells: int = 96, drops: tuple[int, ...] = (1,), every: int = 1
) -> Path:
    """Write the names of an export, with ``every`` so many wells up to the last; no survey opens an image."""
    grid = PLATE_FORMATS[wells]
    family = layouts.make(layout, layouts.LayoutOptions(plate_format=grid))
    name, inspection = key or KEYS.get(layout, "CI030117"), INSPECTIONS.get(layout, "1")
    for well, drop in product(range(wells, 0, -every), drops):
        row, column = grid.position(well)
        image = DropImage(layout, name, inspection, row, column, drop, Modality.VISIBLE, captured_at=START)
        write(root / family.format(image))
    return root


def rendered(root: Path, layout: str) -> Path:
    """Write an export with every file that an imager writes, from the project's own plates."""
    spec = PlateSpec(Camera.FORMULATRIX, KEYS.get(layout, "CI030117"), (START,), PLATE_FORMATS[24], (1, 3))
    options = layouts.LayoutOptions(plate_format=PLATE_FORMATS[24])
    for planned in plate_files(spec, layouts.make(layout, options)):
        write(root / planned.path, planned.content or b"x")
    return root


def write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def only(seen: Survey) -> SurveyedImager:
    """The one imager of a survey that is sure."""
    assert seen.clear is not None, seen
    return seen.clear


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small export of each layout."""
    base = tmp_path_factory.mktemp("exports")
    return {name: rendered(base / f"of {name}", name) for name in survey.FAMILIES if name != "hwi"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in survey.FAMILIES if name != "hwi"])
def test_each_layout_is_found_with_its_plates_and_drops(exports: dict[str, Path], layout: str) -> None:
    imager = only(look(exports[layout]))
    assert imager.layout == layout
    assert (imager.plates, imager.inspections) == (1, 1)
    drops = (1,) if layout == "rockmaker-export" else (1, 3)
    assert imager.drops == drops
    assert imager.last_well == ("24" if imager.numbered else "D06")
    assert imager.numbered is (layout == "formulatrix")
    lights = {"visible": 24 * len(drops)} | ({"uv": 24 * len(drops)} if layout == "crims" else {})
    assert imager.modalities == lights
    assert not imager.not_understood
    [counted] = imager.counted
    assert counted.drops == dict.fromkeys(drops, 24)


def test_a_plate_of_1536_wells(tmp_path: Path) -> None:
    imager = only(look(export(tmp_path / "hwi", "hwi", wells=1536, every=16)))
    assert (imager.layout, imager.images, imager.last_well, imager.sizes) == ("hwi", 96, "AF48", (1536,))
    assert propose.propose(imager, "hwi").values.keys() == {"root", "layout"}


@pytest.mark.slow
def test_what_is_not_an_image_is_reported_by_its_reason(exports: dict[str, Path], tmp_path: Path) -> None:
    [thumbnails] = only(look(exports["formulatrix"])).aside
    assert (thumbnails.what, thumbnails.count) == ("thumbnail", 48)
    export(tmp_path, "xchem")
    write(tmp_path / "Thumbs.db")
    write(tmp_path / "holiday.jpg")
    imager = only(look(tmp_path))
    assert [(found.count, found.examples) for found in imager.not_understood] == [(1, ("holiday.jpg",))]


@pytest.mark.parametrize(
    ("layout", "wells", "expected"),
    [("formulatrix", 48, 48), ("formulatrix", 384, 384), ("rigaku", 384, 384), ("xchem", 48, None)],
)
def test_the_largest_well_decides_the_plate(tmp_path: Path, layout: str, wells: int, expected: int | None) -> None:
    """Where wells are named, a smaller plate is read as well by the usual setting."""
    imager = only(look(export(tmp_path / "x", layout, wells=wells, every=8)))
    assert propose.propose(imager, "x").values.get("wells") == expected


def test_plates_of_two_sizes_in_one_store_are_reported(tmp_path: Path) -> None:
    export(tmp_path, "formulatrix", "1041", wells=96, every=5)
    export(tmp_path, "formulatrix", "1042", wells=384, every=5)
    proposal = propose.propose(only(look(tmp_path)), "x")
    # Those of 384 are told apart by their numbers; those of 96 would be by nothing.
    assert "wells" not in proposal.values
    assert "plates of 96 and 384 wells" in proposal.notes[0]


@pytest.mark.slow
def test_a_profile_of_png_files_suggests_uv_and_asks(tmp_path: Path) -> None:
    for well in range(1, 97):
        folder = tmp_path / f"WellImages/41/plateID_1041/batchID_7/wellNum_{well}"
        write(folder / "profileID_1/d1_r5_ef.jpg")
        write(folder / "profileID_2/d1_r5_ef.png")
    imager = only(look(tmp_path))
    assert [(p.name, p.extensions, p.modality) for p in imager.profiles] == [
        ("1", (".jpg",), Modality.VISIBLE),
        ("2", (".png",), Modality.UV),
    ]
    assert propose.unmapped(imager) == ["1", "2"]
    guessed = propose.propose(imager, "x")
    assert "profiles" not in guessed.values
    assert '# profiles = { 1 = "visible", 2 = "uv" }' in guessed.text()
    told = propose.propose(imager, "x", Answers(profiles={"1": Modality.VISIBLE, "2": Modality.SHG}))
    assert told.values["profiles"] == {"1": "visible", "2": "shg"}


@pytest.mark.slow
def test_drops_are_expected_where_every_counted_inspection_has_as_many(tmp_path: Path) -> None:
    for number in range(3):
        export(tmp_path, "rigaku", f"CI03011{number}", wells=24, drops=(1, 3))
    imager = only(look(tmp_path))
    assert [sum(one.drops.values()) for one in imager.counted] == [48, 48, 48]
    assert propose.propose(imager, "x").values["expected_drops"] == 48
    next((tmp_path / "CI030110").rglob("*.jpg")).unlink()
    assert "expected_drops" not in propose.propose(only(look(tmp_path)), "x").values


def test_one_inspection_that_may_still_arrive_tells_no_number_of_drops(tmp_path: Path) -> None:
    export(tmp_path, "rigaku", wells=24)
    assert "expected_drops" not in propose.propose(only(look(tmp_path)), "x").values


@pytest.mark.slow
def test_a_reservoir_is_asked_for(tmp_path: Path) -> None:
    imager = only(look(export(tmp_path, "rigaku", drops=(1, 2, 3, 4))))
    assert propose.may_have_reservoir(imager)
    open_question = propose.propose(imager, "x")
    assert not {"reservoir_subwells", "expected_drops"} & open_question.values.keys()
    assert "# reservoir_subwells = [2]" in open_question.text()
    answered = propose.propose(imager, "x", Answers(reservoir=True)).values
    assert (answered["reservoir_subwells"], answered["expected_drops"]) == ([2], 288)
    assert propose.propose(imager, "x", Answers(reservoir=False)).values["expected_drops"] == 384


@pytest.mark.parametrize(
    ("layout", "below"),
    [
        ("rigaku", "CI030117"),
        ("rigaku", "CI030117/1"),
        ("formulatrix", "WellImages/41/plateID_1041"),
        ("formulatrix", "WellImages"),
        ("xchem", "SubwellImages/90j8_2026-04-01_RI1000-0001-3drop"),
        ("crims", "rawimages/2026"),
        ("ami", "CI030117/20260401_083000"),
        ("rockmaker-export", "CI030117"),
        ("oppf", "Web/CI030117"),
        ("rhombix", "CI030117"),
    ],
)
def test_a_part_of_an_export_names_the_root_above(exports: dict[str, Path], layout: str, below: str) -> None:
    inner = {"xchem": "SubwellImages", "crims": "rawimages", "oppf": "Web"}.get(layout, "")
    seen = look(exports[layout] / below)
    assert seen.clear is None
    assert seen.imager_above is not None, seen
    assert (seen.imager_above.root, seen.imager_above.layout) == (exports[layout] / inner, layout)


def test_a_folder_of_several_exports_names_each(tmp_path: Path) -> None:
    export(tmp_path / "minstrel" / "images", "rigaku", wells=24)
    export(tmp_path / "rock-imager", "formulatrix", wells=24)
    export(tmp_path / "old" / "deep" / "xchem", "xchem", wells=24)
    write(tmp_path / "readme.txt")
    seen = look(tmp_path)
    assert seen.clear is None
    assert {(imager.layout, imager.root.relative_to(tmp_path).as_posix()) for imager in seen.imagers} == {
        ("rigaku", "minstrel/images"),
        ("formulatrix", "rock-imager"),
        ("xchem", "old/deep/xchem/SubwellImages"),
    }


def test_two_imagers_in_one_folder_are_not_chosen_between(tmp_path: Path) -> None:
    export(tmp_path, "rigaku", wells=24)
    export(tmp_path, "ami", "AB12", wells=24)
    seen = look(tmp_path)
    assert (seen.clear, seen.imagers) == (None, ())
    [conflict] = seen.conflicts
    assert (conflict.folder, set(conflict.layouts)) == (tmp_path, {"rigaku", "ami"})


def test_a_lone_stranger_changes_nothing(tmp_path: Path) -> None:
    export(tmp_path, "rigaku", drops=(1, 3))
    write(tmp_path / "AB12/20260401_083000/A1.jpg")
    assert only(look(tmp_path)).layout == "rigaku"


def test_names_that_no_layout_reads(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number:03}.jpg")
    write(tmp_path / "labels.csv")
    seen = look(tmp_path)
    assert (seen.clear, seen.imagers, seen.families) == (None, (), ())
    assert seen.not_understood is not None
    assert seen.not_understood.count == 5


def test_names_that_come_near_tell_what_is_missing(exports: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(exports["rockmaker-export"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "CI030117" / "report.csv").unlink()
    older = tmp_path / "002s" / "Clear" / "002s_C6_ImagerDefaults_9.jpg"
    older.parent.mkdir(parents=True)
    older.touch()
    seen = look(tmp_path)
    [family] = seen.families
    assert (family.layout, family.images) == ("rockmaker-export", 24)
    assert ["report.csv" in near.what for near in family.near_misses] == [True]
    assert "report.csv" in seen.imagers[0].warnings[0].what


def test_an_empty_folder(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert (seen.files, seen.cut, seen.clear) == (0, (), None)


def test_a_folder_of_very_many_names_is_cut(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"CI{number:06}").mkdir()
    export(tmp_path, "rigaku", wells=24)
    wide = tmp_path / "CI030117" / "1"
    for number in range(300):
        (wide / f"{number}.xml").touch()
    seen = look(tmp_path, SurveyLimits(entries=200, folders=20, names=100))
    assert seen.folders <= 1 + 2 * 20
    assert seen.files <= 200
    assert "there are more folders than were entered" in seen.cut
    seen = look(wide.parent, SurveyLimits(entries=200, folders=20, names=100))
    assert seen.cut == ("a folder has more than 200 entries",)


def test_a_look_ends_with_its_time(tmp_path: Path) -> None:
    for number in range(20):
        export(tmp_path, "rigaku", f"CI0301{number:02}", wells=24)
    seen = look(tmp_path, SurveyLimits(seconds=0.0))
    assert seen.folders < 10
    assert seen.cut == ("0 s were over",)


def test_links_are_not_followed_and_odd_bytes_are_read(tmp_path: Path) -> None:
    root = export(tmp_path / "in", "rigaku", wells=24)
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to("/")
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")  # noqa: PTH102 - a Path has no bytes
    (root / ".hidden").mkdir()
    seen = look(root)
    assert (seen.links, seen.folders) == (2, 4)
    assert only(seen).images == 24


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        look(tmp_path / "nowhere")


def test_the_root_of_a_path_that_a_person_pastes() -> None:
    name = "RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_01_02_03_HF_99_030_001_RDI.jpg"
    assert root_of(f"/mnt/minstrel3/images/CI022987/3/{name}") == "/mnt/minstrel3/images"
    assert root_of(f"/home/me/.cache/CI022987/3/{name}") == "/home/me/.cache"
    assert root_of("/home/me/holiday.jpg") is None


@pytest.mark.parametrize(
    ("root", "layout", "name"),
    [
        ("/mnt/minstrel3/images", "rigaku", "minstrel3"),
        ("/mnt/RockMakerStorage", "formulatrix", "rock-imager"),
        ("/data/Janet Newman", "rigaku", "janet-newman"),
        ("/mnt", "hwi", "hwi"),
    ],
)
def test_names(imager: SurveyedImager, root: str, layout: str, name: str) -> None:
    found = replace(imager, root=Path(root), layout=layout)
    assert propose.name_for(found, ()) == name
    assert propose.name_for(found, {name, f"{name}-2"}) == f"{name}-3"


@pytest.fixture
def imager(exports: dict[str, Path]) -> SurveyedImager:
    return only(look(exports["rigaku"]))


def test_a_share_is_polled(imager: SurveyedImager) -> None:
    assert "observer" not in propose.propose(imager, "x").values
    on_share = propose.propose(replace(imager, file_system="cifs"), "x")
    assert on_share.values["observer"] == "polling"
    assert "on cifs" in on_share.text()


@pytest.mark.slow
def test_no_export_is_read_by_two_layouts(exports: dict[str, Path]) -> None:
    for name, folder in exports.items():
        seen = look(folder)
        assert [(f.layout, f.alone) for f in seen.families if f.images] == [(name, seen.families[0].images)]
        assert only(seen).rivals == ()


def test_layouts_that_read_the_same_files_are_named_and_not_chosen_between(exports: dict[str, Path]) -> None:
    """Names of two shipped layouts never meet; the pattern of a lab's own may become a layout that does."""
    seen = look(exports["rigaku"])
    [imager], [family] = seen.imagers, seen.families
    doubtful = replace(
        seen, imagers=(replace(imager, rivals=("ami",)),), families=(replace(family, alone=family.images - 5),)
    )
    assert doubtful.clear is None
    assert _how_to_scan(doubtful).startswith(
        f"ami would read the same files of {seen.folder}; choose: say `marcod scan"
    )
    assert f"rigaku reads {family.images}, 5 of them read by another layout too" in list(_doubts(doubtful))

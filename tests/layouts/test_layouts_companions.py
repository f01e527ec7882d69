"""Layouts that read a file beside the image: Rock Maker's report.csv and ImagerLink's XML."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from marcod.domain import DropImage, IgnoreReason, ImageKind, Modality, NotADrop, WarningKind
from marcod.layouts import LayoutOptions, make
from marcod.layouts.oppf import LONGEST_SIDECAR
from marcod.layouts.rockmaker_export import LONGEST_REPORT

IMAGE = "90j8/Crystals/90j8_D12_Visible_9_3552.jpg"
ROW = '"D:\\out\\90j8\\Crystals\\90j8_D12_Visible_9_3552.jpg","Crystals",{},{}'
DISPENSED = "03/16/10 08:36:21"
IMAGED = "03/17/10 09:00:05"
EF = "Web/44131/44131-A01-2-R0DRP1-EF-z20-20100316-083621"
XML = (
    '<?xml version="1.0"?><ImageInfo xmlns="http://www.oppf.ox.ac.uk/xsd/RI/ImageInfo.xsd">'
    "<Url>http://x/</Url><Imager>RI</Imager><ImagingId>44131-20100316-083621</ImagingId><PlateId>{plate}</PlateId>"
    "<Drop>{drop}</Drop><ImageType>{type}</ImageType><ImagedAt>{at}</ImagedAt><Zoom>1.0</Zoom>"
    "<SizeInPixels><Height>960</Height><Width>1280</Width></SizeInPixels></ImageInfo>"
)


def export(path: str, *rows: str, at: str = "90j8/report.csv") -> DropImage | NotADrop:
    content = "\r\n".join([DISPENSED, *rows, ""]).encode()
    return make("rockmaker-export").parse(path, {at: content}.get)


def taken(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_report_gives_drop_and_date() -> None:
    assert export(IMAGE, ROW.format(2, IMAGED)) == DropImage(
        "rockmaker-export",
        "90j8",
        "3552",
        4,
        12,
        2,
        Modality.VISIBLE,
        barcode="90j8",
        captured_at=taken(2010, 3, 17, 9, 0, 5),
        profile="Visible",
    )


def test_the_word_drop_is_taken_as_drop_one_and_says_so() -> None:
    image = export(IMAGE, ROW.format("Drop", IMAGED))
    assert isinstance(image, DropImage)
    assert image.drop == 1
    assert image.warnings[0].kind is WarningKind.DROP_NUMBER_LOST
    assert "'Drop'" in image.warnings[0].text


@pytest.mark.parametrize(
    ("row_path", "at"),
    [
        ("90j8/Crystals/90j8_D12_Visible_9_3552.jpg", "90j8/report.csv"),
        ("\\\\server\\share\\90J8\\CRYSTALS\\90J8_D12_VISIBLE_9_3552.JPG", "90j8/report.csv"),
        ("90j8_D12_Visible_9_3552.jpg", "90j8/report.csv"),
        ("D:\\out\\90j8\\renamed since\\90j8_D12_Visible_9_3552.jpg", "90j8/report.csv"),
        ("E:\\90j8\\Crystals\\90j8_D12_Visible_9_3552.jpg", "90j8/Crystals/report.csv"),
    ],
)
def test_a_row_is_found_by_the_end_of_its_path(row_path: str, at: str) -> None:
    image = export(IMAGE, f'"{row_path}","Crystals",3,{IMAGED}', at=at)
    assert isinstance(image, DropImage)
    assert image.drop == 3


def test_the_last_row_of_a_image_exported_again_counts() -> None:
    image = export(IMAGE, ROW.format(1, IMAGED), ROW.format(2, IMAGED))
    assert isinstance(image, DropImage)
    assert image.drop == 2


def missing(verdict: DropImage | NotADrop) -> bool:
    """Whether the image was read without a row of its report."""
    assert isinstance(verdict, DropImage)
    assert verdict.captured_at is None
    return (verdict.drop, [one.kind for one in verdict.warnings]) == (1, [WarningKind.REPORT_MISSING])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ['"D:\\out\\90j8\\Crystals\\other_D12_Visible_9_3552.jpg","Crystals",1,' + IMAGED],
        ["garbage", '"unclosed'],
        ["x" * 200_000],
    ],
)
def test_an_image_with_a_batch_does_not_wait_for_its_report(rows: list[str]) -> None:
    assert missing(make("rockmaker-export").parse(IMAGE))
    assert missing(export(IMAGE, *rows))


def test_a_report_out_of_all_proportion_is_not_read() -> None:
    assert missing(make("rockmaker-export").parse(IMAGE, {"90j8/report.csv": bytes(LONGEST_REPORT + 1)}.get))


def test_a_grown_report_is_read_again() -> None:
    assert missing(export(IMAGE))
    grown = export(IMAGE, ROW.format(1, IMAGED))
    assert isinstance(grown, DropImage)
    assert grown.warnings == ()


def test_a_score_with_a_slash_makes_a_folder_more() -> None:
    path = "90j8/Crystals/Needles/90j8_D12_Visible_9_3552.jpg"
    image = export(
        path, f'"E:\\out\\90j8\\Crystals/Needles\\90j8_D12_Visible_9_3552.jpg","Crystals/Needles",2,{IMAGED}'
    )
    assert isinstance(image, DropImage)
    assert (image.plate_key, image.drop, image.warnings) == ("90j8", 2, ())
    assert image.captured_at == taken(2010, 3, 17, 9, 0, 5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_report_that_a_spreadsheet_saved_keeps_its_rows(encoding: str, delimiter: str) -> None:
    lines = [f"16.03.2010 08:36{delimiter * 3}", delimiter.join([IMAGE, "N\u00e9ant", "2", "17.03.2010 09:00"])]
    content = "\r\n".join(lines).encode(encoding)
    image = make("rockmaker-export").parse(IMAGE, {"90j8/report.csv": content}.get)
    assert isinstance(image, DropImage)
    # Nobody can tell day and month apart in what a spreadsheet wrote.
    assert (image.drop, image.captured_at) == (2, None)
    assert [one.kind for one in image.warnings] == [WarningKind.DATE_UNREADABLE]


def test_a_date_that_cannot_be_leaves_the_image() -> None:
    image = export(IMAGE, ROW.format(1, "17.03.2010 09:00:05"))
    assert isinstance(image, DropImage)
    assert [one.kind for one in image.warnings] == [WarningKind.DATE_UNREADABLE]


def test_the_older_name_takes_its_day_as_inspection() -> None:
    path = "002s/Clear/002s_C6_ImagerDefaults_9.jpg"
    image = export(path, f'"{path}","Clear",1,{IMAGED}', at="002s/report.csv")
    assert isinstance(image, DropImage)
    assert (image.inspection_key, image.well, image.profile) == ("2010-03-17", "C06", "ImagerDefaults")
    dateless = export(path, f'"{path}","Clear",1,?', at="002s/report.csv")
    assert isinstance(dateless, NotADrop)
    assert dateless.reason is IgnoreReason.NO_REPORT


@pytest.mark.parametrize(
    "name",
    [
        "002s_C6_ImagerDefaults_9.jpg",
        "03c3_G6_ImagerDefaults_6.jpg",
        "03cl_H2_ImagerDefaults_9.jpg",
        "02ke_D8_ImagerDefaults_9.jpg",
        "01dd_D12_ImagerDefaults_9.jpg",
        "038f_B2_ImagerDefaults_9.jpg",
        "018u_D4_ImagerDefaults_6.png",
    ],
)
def test_names_of_the_marco_data_wait_for_their_report(name: str) -> None:
    verdict = make("rockmaker-export").parse(name)
    assert isinstance(verdict, NotADrop)
    assert verdict.reason is IgnoreReason.NO_REPORT


@pytest.mark.parametrize("date", ["03/17/10 09:00:05", "03.17.10 09:00:05", "03-17-2010 09.00.05"])
def test_the_date_is_read_in_any_windows_culture_and_in_the_imagers_zone(date: str) -> None:
    layout = make("rockmaker-export", LayoutOptions(timezone=ZoneInfo("Europe/Berlin")))
    report = f"{DISPENSED}\n{ROW.format(1, date)}\n".encode()
    image = layout.parse(IMAGE, {"90j8/report.csv": report}.get)
    assert isinstance(image, DropImage)
    assert image.captured_at == taken(2010, 3, 17, 8, 0, 5)


@pytest.mark.parametrize(
    ("profile", "modality"),
    [("UV9MP", Modality.UV), ("uv-tpef", Modality.UV), ("SHG", Modality.SHG), ("HighRes", Modality.VISIBLE)],
)
def test_the_profile_name_tells_the_light(profile: str, modality: Modality) -> None:
    path = IMAGE.replace("Visible", profile)
    image = export(path, f'"{path}","Crystals",1,{IMAGED}')
    assert isinstance(image, DropImage)
    assert image.modality is modality


def test_a_report_in_a_windows_code_page_is_read() -> None:
    path = IMAGE.replace("Crystals", "N\u00e9ant")
    report = f'{DISPENSED}\r\n"{path}","N\u00e9ant",2,{IMAGED}\r\n'.encode("latin-1")
    assert isinstance(make("rockmaker-export").parse(path, {"90j8/report.csv": report}.get), DropImage)


def sidecar(content: bytes) -> DropImage:
    image = make("oppf", LayoutOptions(timezone=ZoneInfo("Europe/London"))).parse(
        f"{EF}.jpg", {f"{EF}.xml": content}.get
    )
    assert isinstance(image, DropImage)
    return image


def filled(plate: str = "44131", drop: str = "A01.2", at: str = "2010-03-16T08:36:20.1234567Z", **more: str) -> bytes:
    return XML.format(plate=plate, drop=drop, at=at, type=more.get("type", "C")).encode()


def test_the_xml_gives_the_time_in_utc() -> None:
    image = sidecar(filled())
    assert image.captured_at == datetime(2010, 3, 16, 8, 36, 20, 123456, tzinfo=UTC)
    assert image.warnings == ()


@pytest.mark.parametrize("at", ["2010-03-16T08:36:20", "2010-03-16T10:36:20+02:00", "\n  2010-03-16T08:36:20Z  "])
def test_xml_times_without_zone_are_utc(at: str) -> None:
    assert sidecar(filled(at=at)).captured_at == taken(2010, 3, 16, 8, 36, 20)


def test_an_xml_slice_is_a_slice() -> None:
    assert sidecar(filled(type="S")).kind is ImageKind.SLICE


@pytest.mark.parametrize(
    ("content", "about"),
    [
        (filled(plate="44132"), "plate"),
        (filled(drop="A02.2"), "drop"),
        (filled(drop="A01.3"), "drop"),
        (filled(drop="?"), "drop"),
        (filled(at="yesterday"), "time"),
        (filled(at="0001-01-01T00:00:00"), "time"),
        (b"", "not used"),
        (b"<ImageInfo><PlateId>", "not used"),
        (b"\xff\xfe\x00", "not used"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "not used"),
        (b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>', "document type"),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'.encode("utf-16"),
            "document type",
        ),
        (b"<a>" + b" " * LONGEST_SIDECAR + b"</a>", "larger"),
    ],
)
def test_an_xml_that_disagrees_or_is_broken_is_a_warning(content: bytes, about: str) -> None:
    image = sidecar(content)
    assert about in image.warnings[0].text
    assert (image.plate_key, image.well, image.drop) == ("44131", "A01", 2)
    assert image.captured_at is not None


def test_slices_do_not_read_the_xml() -> None:
    asked: list[str] = []
    make("oppf").parse(EF.replace("EF", "FL3") + ".jpg", lambda path: asked.append(path))
    make("oppf").parse(EF + ".jpg", lambda path: asked.append(path))
    assert asked == [f"{EF}.xml"]

"""The site's own pattern: what it can say, and one clear sentence for each way it can be wrong."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from marcod.domain import PLATE_FORMATS, DropImage, IgnoreReason, Modality, NotADrop
from marcod.errors import LayoutError
from marcod.layouts import LayoutOptions, make


def parsed(pattern: str, path: str, **options: object) -> DropImage | NotADrop:
    return make("regex", LayoutOptions(pattern=pattern, **options)).parse(path)


FULL = (
    r"(?P<barcode>[^/]+)/(?P<inspection>\d+)/(?P<date>[\d-]+)_(?P<row>[^_]+)_(?P<col>\w+?)_(?P<drop>\w+?)"
    r"_(?P<modality>\w+)\.jpg$"
)


def test_every_group() -> None:
    image = parsed(FULL, "x\\y\\CD1\\003\\2024-01-31_b_07_c_UV.JPG", timezone=ZoneInfo("Europe/Paris"))
    assert image == DropImage(
        "regex",
        "CD1",
        "3",
        2,
        7,
        3,
        Modality.UV,
        barcode="CD1",
        inspection_ordinal=3,
        captured_at=datetime(2024, 1, 31, tzinfo=ZoneInfo("Europe/Paris")),
    )


@pytest.mark.parametrize(("well", "name"), [("A1", "A01"), ("h12", "H12"), ("1", "A01"), ("0013", "B01")])
def test_a_well_is_a_name_or_a_number(well: str, name: str) -> None:
    image = parsed(r"(?P<plate>\w+)/(?P<well>\w+)\.jpg", f"p1/{well}.jpg")
    assert isinstance(image, DropImage)
    assert image.well == name
    assert (image.plate_key, image.barcode, image.drop, image.inspection_key) == ("p1", None, 1, "1")


def test_a_row_may_be_a_number() -> None:
    image = parsed(r"(?P<plate>\w+)/(?P<row>\d)-(?P<col>\d)\.jpg", "p1/3-4.jpg")
    assert isinstance(image, DropImage)
    assert image.well == "C04"


def test_without_inspection_the_date_is_the_inspection() -> None:
    pattern = r"(?P<plate>\w+)/(?P<date>\d+)/(?P<well>\w+)\.jpg"
    image = parsed(pattern, "p1/31012024/A1.jpg", date_format="%d%m%Y")
    assert isinstance(image, DropImage)
    assert (image.inspection_key, image.captured_at) == ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC))


@pytest.mark.parametrize(("text", "ordinal"), [("12", 12), ("20240131", None), ("first", None)])
def test_only_a_small_number_counts_inspections(text: str, ordinal: int | None) -> None:
    image = parsed(r"(?P<plate>\w+)/(?P<inspection>\w+)/(?P<well>\w+)\.jpg", f"p1/{text}/A1.jpg")
    assert isinstance(image, DropImage)
    assert (image.inspection_key, image.inspection_ordinal) == (text, ordinal)


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("BF", Modality.VISIBLE),
        ("uvt", Modality.UV),
        ("shg", Modality.SHG),
        ("7", Modality.UV),
        ("8", Modality.VISIBLE),
    ],
)
def test_modality_is_a_word_or_a_mapped_profile(text: str, modality: Modality) -> None:
    pattern = r"(?P<plate>\w+)/(?P<well>[A-H]\d+)_(?P<modality>\w+)\.jpg"
    image = parsed(pattern, f"p1/A1_{text}.jpg", profiles={7: Modality.UV})
    assert isinstance(image, DropImage)
    assert image.modality is modality


@pytest.mark.parametrize(
    ("pattern", "path", "reason"),
    [
        (FULL, "elsewhere.jpg", IgnoreReason.NOT_THIS_LAYOUT),
        (FULL, "CD1/3/2024-02-31_B_07_1_UV.jpg", IgnoreReason.OUT_OF_RANGE),
        (FULL, "CD1/3/0001-01-01_B_07_1_UV.jpg", IgnoreReason.OUT_OF_RANGE),
        (FULL, "CD1/3/2024-01-31_B_49_1_UV.jpg", IgnoreReason.OUT_OF_RANGE),
        (FULL, "CD1/3/2024-01-31_B_07_0_UV.jpg", IgnoreReason.OUT_OF_RANGE),
        (FULL, "CD1/3/2024-01-31_B_x_1_UV.jpg", IgnoreReason.UNREADABLE_NAME),
        (FULL, "CD1/3/2024-01-31_?_1_1_UV.jpg", IgnoreReason.UNREADABLE_NAME),
        (FULL, "CD1/3/2024-01-31_B_1_ab_UV.jpg", IgnoreReason.UNREADABLE_NAME),
        (r"(?P<plate>\w+)/(?P<well>\w+)\.jpg", "p1/1537.jpg", IgnoreReason.OUT_OF_RANGE),
        (r"(?P<plate>\w+)/(?P<well>\w+)\.jpg", "p1/well.jpg", IgnoreReason.UNREADABLE_NAME),
        (r"(?P<plate>\w+)?/(?P<well>\w+)\.jpg", "#/A1.jpg", IgnoreReason.UNREADABLE_NAME),
        (r"(?P<plate>\w+)/(?P<well>A1)?", "p1/b.jpg", IgnoreReason.UNREADABLE_NAME),
        (r"(?P<plate>p1)/(?P<barcode>.+)/(?P<well>\w+)\.jpg", "p1/\udcff/A1.jpg", IgnoreReason.UNREADABLE_NAME),
        (FULL, "CD1/3/2024-01-31_B_07_1_UV.tmp", IgnoreReason.TEMPORARY),
    ],
)
def test_a_path_the_pattern_cannot_use(pattern: str, path: str, reason: IgnoreReason) -> None:
    verdict = parsed(pattern, path)
    assert isinstance(verdict, NotADrop)
    assert verdict.reason is reason


@pytest.mark.parametrize(
    ("pattern", "date_format", "about"),
    [
        (None, None, "needs a pattern"),
        ("", None, "needs a pattern"),
        ("(?P<plate>", None, "not a regular expression"),
        (r"(?P<plate>a)(?P<plate>b)", None, "not a regular expression"),
        (r"(?P<well>\w+)", None, "names the plate"),
        (r"(?P<plate>\w+)", None, "names the well"),
        (r"(?P<plate>\w+)(?P<row>\w)", None, "names the well"),
        (r"(?P<plate>\w+)(?P<well>\w)(?P<inspecton>\d)", None, "unknown group inspecton"),
        (r"(?P<plate>\w+)(?P<well>\w)(?P<date>\d)", "%Q", "date format"),
        (r"(?P<plate>\w+)(?P<well>\w)(?P<date>\d)", "%Y%Y", "date format"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_at_once(
    pattern: str | None, date_format: str | None, about: str
) -> None:
    with pytest.raises(LayoutError, match=about) as refused:
        make("regex", LayoutOptions(pattern=pattern, date_format=date_format))
    assert "\n" not in str(refused.value)


def test_bigger_plates() -> None:
    options = {"plate_format": PLATE_FORMATS[1536]}
    image = parsed(r"(?P<plate>\w+)/(?P<well>\w+)\.jpg", "p1/AF48.jpg", **options)
    assert isinstance(image, DropImage)
    assert (image.row, image.column) == (32, 48)

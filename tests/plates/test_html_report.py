"""Sheets: nothing to load, nothing to run, nothing that fails for want of an image, and all of it on a page."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from factories import utc
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shown import drop, plate, said

from marcod import images
from marcod.domain import PLATE_FORMATS, DropClass, PlateFormat
from marcod.errors import ImageError
from marcod.plates.html_report import PAGE_MM, ImageRoots, file_name, hits_sheet, look, plate_sheet
from marcod.plates.metadata import Grid
from marcod.plates.reports import Hit
from marcod.store.verdicts import ImageState

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\x1b[31m\u202e"


class Page(HTMLParser):
    """The tags of a sheet with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def figures(self) -> dict[str, str]:
        """The classes of the drops on the map, by the beginning of what their titles say."""
        return {str(f["title"]).split(" ")[0]: str(f["class"]) for f in self.of("figure") if "title" in f}


def photograph(path: Path, size: tuple[int, int] = (400, 300)) -> None:
    Image.new("RGB", size, (90, 120, 150)).save(path)


def assert_harmless(page: Page) -> None:
    """Nothing but the tags of the template, and nothing that a browser would fetch or run."""
    assert not page.of("script")
    assert not page.of("link")
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.of("img"))
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "action")]
        assert set(attributes) <= {
            "lang", "charset", "http-equiv", "content", "name", "class", "title", "src", "alt",
        }  # fmt: skip


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg")
    drops = [drop(1, 1, 0.9, said=said(DropClass.CRYSTALS, HOSTILE)), drop(1, 2, 0.1)]
    text = plate_sheet(plate(drops, HOSTILE, project="=cmd()", screen=HOSTILE), ImageRoots({"imager": tmp_path}), utc())
    page = Page(text)
    assert_harmless(page)
    assert page.words.count("<script>alert(1)</script>") >= 3
    assert "'=cmd()" in page.words
    assert "\x1b" not in text
    assert "\u202e" not in text


def hit(**more: Any) -> Hit:
    values: dict[str, Any] = {
        "hit_id": 1, "source": "imager", "plate_key": "P1", "barcode": None, "project": None, "screen": None,
        "well": "A01", "drop_number": 1, "p_crystals": 0.9, "label": "Crystals", "label_person": None,
        "threshold": 0.5, "cause": "new", "found_at": utc(), "first_hit_inspection_key": "1", "trend": "steady",
        "best_path": "A01.jpg", "model": "small", "model_version": "1", "model_synthetic": True, "harvested": False,
    }  # fmt: skip
    return Hit(**(values | more))


def test_the_sheet_of_hits_is_harmless_too(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg")
    found = [
        hit(barcode=HOSTILE, project=HOSTILE, label_person=HOSTILE),
        hit(best_path=None, p_crystals=None, label=None, cause="model"),
        hit(source="elsewhere", label="Clear", trend="dissolving", model_synthetic=False),
    ]
    page = Page(hits_sheet(found, ImageRoots({"imager": tmp_path}), HOSTILE, utc()))
    assert_harmless(page)
    assert len(page.of("img")) == 1
    assert page.words.count("no image") == 2
    assert "model, steady" in page.words
    assert "trained on rendered drops alone" in page.words


def test_a_hit_on_a_sheet_is_written_in_words_too(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg")
    for found, alt in (
        (hit(barcode="BC7"), "plate BC7, A01.1 X; likeliest Crystals; crystals 0.90"),
        (hit(label="Clear", label_person="ann", p_crystals=None), "plate P1, A01.1 X; Clear says ann"),
    ):
        page = Page(hits_sheet([found], ImageRoots({"imager": tmp_path}), "", utc()))
        assert [image["alt"] for image in page.of("img")] == [alt]
        assert alt.split("; ")[1] in page.words


def test_a_image_that_is_gone_or_broken_leaves_a_place(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg")
    (tmp_path / "A02.jpg").write_bytes(b"no image")
    (tmp_path / "A03.jpg").write_bytes((tmp_path / "A01.jpg").read_bytes()[:200])
    os.mkfifo(tmp_path / "A05.jpg")
    (tmp_path / "A06.jpg").mkdir()
    drops = [drop(1, column, 0.1) for column in range(1, 7)] + [drop(2, 1, 0.1, path="with\\x00nul.jpg")]
    counted: list[int] = []
    page = Page(plate_sheet(plate(drops), ImageRoots({"imager": tmp_path}), utc(), counted.append))
    assert len(page.of("img")) == 1
    assert page.words.count("no image") == 6
    assert counted == list(range(1, 8))
    assert Page(plate_sheet(plate(drops), ImageRoots({}), utc())).words.count("no image") == 7


def test_thumbnails_are_small(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg", (2560, 1920))
    uri = ImageRoots({"imager": tmp_path}).thumbnail("imager", "A01.jpg", 120)
    assert uri is not None
    assert len(uri) < 4000


def test_every_verdict_has_its_letter_and_its_frame(tmp_path: Path) -> None:
    drops = [
        drop(1, 1, 0.9),
        drop(1, 2, 0.1),
        drop(1, 3, None),
        drop(1, 4, None, state=ImageState.FAILED),
        drop(1, 5, 0.4, label="Crystals"),
        drop(1, 6, 0.9, said=said(DropClass.PRECIPITATE, "ann")),
        drop(1, 7, 0.1, said=said(DropClass.CRYSTALS, "bob", {DropClass.CRYSTALS: 1, DropClass.CLEAR: 1})),
    ]
    page = Page(plate_sheet(plate(drops), ImageRoots({}), utc()))
    found = page.figures()
    assert [well for well, classes in found.items() if "hit" in classes] == ["A01.1", "A07.1"]
    words = re.sub(r"\s+", " ", page.words)
    legend = "X hits (crystals >= 0.5) 2 others by likeliest class: p Precipitate 1 · Clear 1 o Other 0 x Crystals 1"
    assert f"{legend} ! failed 1 ? not scored 1" in words
    assert "p\N{PENCIL}" in words
    assert "X\N{PENCIL}?" in words
    assert "2 labelled by people" in words
    assert "where persons disagree" in words


def test_drops_of_a_well_keep_their_place() -> None:
    """Subwells 1, 3 and 4 of a three-lens plate: a missing one leaves its place empty."""
    drops = [drop(1, 1, 0.1, number) for number in (1, 3, 4)] + [drop(1, 2, 0.1, 4)]
    page = Page(plate_sheet(plate(drops), ImageRoots({}), utc()))
    assert "drops 1, 3, 4 of a well stand in this order" in page.words
    assert len(page.figures()) == 4


@pytest.mark.parametrize("wells", sorted(PLATE_FORMATS))
def test_the_map_has_the_plate_s_wells(wells: int) -> None:
    size = PLATE_FORMATS[wells]
    shown = plate([drop(1, 1, 0.9)], grid=Grid(size.rows, size.columns, 1))
    page = Page(plate_sheet(shown, ImageRoots({}), utc()))
    assert len(page.of("td")) == wells


def test_a_drop_outside_the_given_format_is_still_on_the_map() -> None:
    assert plate([drop(9, 1, 0.9)], grid=Grid(8, 12, 1)).format == PlateFormat(9, 12)


@given(st.integers(1, 32), st.integers(1, 48), st.integers(1, 8))
def test_every_plate_fits_on_a_page(rows: int, columns: int, drops: int) -> None:
    sizes = look(rows, columns, drops)
    assert columns * (sizes.across * (sizes.slot_mm + 0.3) + sizes.gap_mm) <= PAGE_MM[0] + columns * 0.1
    assert sizes.image_mm == 1.0 or rows * (sizes.well_mm + sizes.gap_mm) <= PAGE_MM[1] + rows * 0.1


@given(st.text(max_size=200))
def test_a_file_name_is_safe_whatever_the_plate_is_called(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-3\.html", file_name(plate([], name)))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("I;16", "png"), ("P", "gif"), ("1", "tif")],
)
def test_every_kind_of_image_becomes_a_thumbnail(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new(mode, (640, 480)).save(tmp_path / f"A01.{suffix}")
    small = images.thumbnail((tmp_path / f"A01.{suffix}").read_bytes(), 120)
    header = images.inspect(small)
    assert (header.format, header.mode, header.width, header.height) == ("JPEG", "RGB", 120, 90)


def test_a_truncated_image_is_not_a_thumbnail(tmp_path: Path) -> None:
    photograph(tmp_path / "A01.jpg")
    with pytest.raises(ImageError):
        images.thumbnail((tmp_path / "A01.jpg").read_bytes()[:600], 120)

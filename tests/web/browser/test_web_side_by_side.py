"""Two drops side by side, and the scale of an image, in a real browser."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from page_lab import WIDTH, PageLab
from page_people import ready, saved, visit
from playwright.sync_api import Page

from marcod.database.schema import drop_mark

pytestmark = [pytest.mark.web, pytest.mark.timeout(900), pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]

UM_PER_PX = 2.5
"""As the lab's source has it."""


def names(page: Page) -> list[str]:
    """What the panes say that they show."""
    return page.locator(".pane-name:visible").all_inner_texts()


def test_a_drop_is_kept_in_view(lab: PageLab, person: Callable[..., Page]) -> None:
    lab.plate(6)
    lab.start()
    page = person()
    visit(page, "/drop/1?from=plate&inspection=1")
    page.keyboard.press("r")
    page.wait_for_selector("#kept >> text=kept in view: go to another drop")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#kept >> text=next to A01.1, which is kept")
    assert names(page) == ["A02.1, inspection 1", "A01.1, inspection 1"]
    page.keyboard.press("x")
    page.wait_for_selector("#name >> text=A03.1")
    page.wait_for_selector(".pane-name >> text=A03.1, inspection 1")
    assert names(page) == ["A03.1, inspection 1", "A01.1, inspection 1"]
    page.reload()
    ready(page)
    page.wait_for_selector(".pane-name >> text=A01.1, inspection 1")
    page.keyboard.press("b")
    page.wait_for_selector("#kept", state="hidden")
    assert names(page) == []


def test_comparing_dates_goes_on_over_plates(lab: PageLab, person: Callable[..., Page]) -> None:
    lab.plate(5, (1, 2))
    lab.plate(5, (1, 2), plate="P2")
    lab.start()
    page = person()
    visit(page, "/hits")
    page.click(".gallery .card a >> nth=0")
    page.wait_for_selector("body[data-ready]")
    first = page.inner_text("#plate")
    page.keyboard.press("b")
    page.wait_for_selector(".viewer.two")
    while page.inner_text("#plate") == first:
        page.keyboard.press("ArrowRight")
    name = page.inner_text("#name")
    page.wait_for_selector("#panel:not([aria-busy])")
    page.wait_for_selector(".viewer.two")
    assert len([each for each in names(page) if each.startswith(f"{name}, inspection ")]) == 2


def test_a_mark_is_of_the_drop_that_one_sees(lab: PageLab, person: Callable[..., Page]) -> None:
    lab.plate(6)
    lab.start()
    page = person()
    visit(page, "/drop/1?from=plate&inspection=1")
    page.keyboard.type("m")
    saved(page)
    for key in ("ArrowRight", "m", "ArrowRight", "f"):
        page.keyboard.press(key)
        if key in "mf":
            page.wait_for_selector(f"#saving.good >> text={'A02.1 harvested' if key == 'm' else 'A03.1 followed'}")
    marks = sa.select(drop_mark.c.drop_id, drop_mark.c.kind).order_by(drop_mark.c.id)
    assert lab.db.read(lambda c: [tuple(row) for row in c.execute(marks)]) == [(1, "harvested"), (2, "harvested")]


def test_two_chosen_drops_are_shown_side_by_side(lab: PageLab, person: Callable[..., Page]) -> None:
    lab.plate(6)
    lab.start()
    page = person()
    visit(page, "/plate/imager/P1")
    page.click(".tile[data-name='A02.1'] img", modifiers=["Control"])
    assert page.is_disabled("#chosen [data-do=compare]")
    page.click(".tile[data-name='A05.1'] img", modifiers=["Control"])
    page.keyboard.press("b")
    page.wait_for_selector("body[data-page=drop][data-ready]")
    page.wait_for_selector(".pane-name >> text=A02.1, inspection 1")
    assert names(page) == ["A02.1, inspection 1", "A05.1, inspection 1"]


@pytest.mark.parametrize("address", ["/drop/1?from=plate&inspection=1", "/review"])
def test_a_scale_bar_is_there_before_all_pixels_are(lab: PageLab, person: Callable[..., Page], address: str) -> None:
    lab.plate(48)
    lab.start()
    page = person()
    visit(page, address)
    bar = page.locator(".scale-bar")
    bar.wait_for(state="visible")
    shown = page.locator(".sheet img").bounding_box()
    drawn = bar.bounding_box()
    assert shown is not None
    assert drawn is not None
    number, unit = bar.inner_text().split()
    um = float(number) * {"µm": 1, "mm": 1000}[unit]
    assert drawn["width"] == pytest.approx(um / UM_PER_PX * shown["width"] / WIDTH, rel=0.02)

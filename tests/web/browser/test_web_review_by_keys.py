"""The review in real browsers: nobody gets what somebody else has, and an audit shows no score before the answer."""

import json

import pytest
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_people import given, saved, visit
from playwright.sync_api import Page, Response

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]


@pytest.fixture
def pages(lab: PageLab, person: People) -> list[Page]:
    """Two people before the review of one plate."""
    lab.plate(48)
    lab.start()
    return [person("ann"), person("bob")]


def answer(page: Page, key: str) -> str:
    """Answer the drop that is shown, and return it."""
    page.wait_for_selector("#name:not(:empty)")
    shown = page.inner_text("#name")
    page.keyboard.press(key)
    return shown


def test_two_people_get_different_drops_and_undo_brings_one_back(lab: PageLab, pages: list[Page]) -> None:
    for page in pages:
        visit(page, "/review")
    answered = [[answer(page, key) for key in "xpcs"] for page in pages]
    for page in pages:
        saved(page)
    assert set(answered[0]).isdisjoint(answered[1])
    ann, _ = pages
    ann.keyboard.press("u")
    ann.wait_for_selector(f"#name:has-text('{answered[0][-1]}')")
    ann.keyboard.press("o")
    saved(ann)
    words = [word for _, word, who in given(lab.db) if who == "ann"]
    assert words == ["Crystals", "Precipitate", "Clear", "Other"]


def test_an_audit_shows_no_score_in_any_answer(lab: PageLab, pages: list[Page]) -> None:
    page = pages[0]
    bodies: list[tuple[str, str]] = []

    def keep(response: Response) -> None:
        if "/image/" not in response.url and "/static/" not in response.url and "/events" not in response.url:
            bodies.append((response.url, response.text()))

    page.on("response", keep)
    visit(page, "/review")
    seen = 0
    for _ in range(48):
        page.wait_for_selector("#reason:not(:text-is('Asking for a drop.'))")
        if page.inner_text("#reason").startswith("Nothing"):
            break
        if "No score is shown" in page.inner_text("#said"):
            seen += 1
            assert page.query_selector("#said meter") is None
        page.keyboard.press("c")
    assert seen >= 3
    cards = [json.loads(text)["item"] for url, text in bodies if url.endswith("/api/review/next")]
    audits = [card for card in cards if card and card["stream"] == "audit"]
    assert audits
    assert all(card["probabilities"] == {} and card["model"] is None for card in audits)

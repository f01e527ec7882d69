"""Writes docs/page/*.png: the pages of a small synthetic lab in a real browser, light and dark, wide and narrow.

``PYTHONPATH=tests:tests/support .venv/bin/python docs/page_images.py``, after ``make test-web`` has installed what it
needs. The images are looked at by people; no test compares them.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from factories import utc
from page_lab import HEADER, PageLab
from page_people import saved, visit
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from marcod.database import migrate
from marcod.database.engine import Database
from marcod.database.schema import training_run
from marcod.domain import Modality
from marcod.training import run_rows

FOLDER: Final = Path(__file__).with_name("page")
COLOURS: Final = 128
WIDE: Final = {"viewport": {"width": 1280, "height": 800}}
NARROW: Final = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PLATE: Final = "/plate/imager/P1"
DROP: Final = "/drop/5?from=plate&inspection=2"

DARK: Final = {"color_scheme": "dark"}

IMAGES: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "plates": ("/", WIDE, ""),
    "plates-narrow-dark": ("/", NARROW | DARK, ""),
    "plate": (PLATE + "/2", WIDE, ""),
    "plate-dark": (PLATE + "?by=probability&sort=probability", WIDE | DARK, ""),
    "plate-chosen": (PLATE + "?class=Clear", WIDE, "a"),
    "plate-narrow": (PLATE, NARROW, ""),
    "drop": (DROP, WIDE, ""),
    "drop-compare-dark": (DROP, WIDE | DARK, "b"),
    "drop-kept": (DROP, WIDE, "r>"),
    "drop-narrow": (DROP, NARROW, ""),
    "keys": (DROP, WIDE, "?"),
    "hits": ("/hits", WIDE, ""),
    "hits-narrow-dark": ("/hits", NARROW | DARK, ""),
    "review": ("/review", WIDE, ""),
    "review-narrow": ("/review", NARROW, ""),
    "models-dark": ("/models", WIDE | DARK, ""),
    "model": ("/models/lite0:1", WIDE, ""),
    "run": ("/models/run/1", WIDE, ""),
    "status": ("/status", WIDE, ""),
    "status-narrow-dark": ("/status", NARROW | DARK, ""),
    "refusal": ("/drop/9999", NARROW, ""),
}
"""Name, address, window and keys pressed before; ``>`` is the arrow to the right."""

LOGIN: Final[dict[str, dict[str, Any]]] = {"login": WIDE, "login-narrow-dark": NARROW | DARK}


def main() -> None:
    """Make a lab, label some of its drops, and write every image."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = os.environ.get("MARCOD_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        url = f"sqlite:///{folder}/marcod.sqlite"
        db = Database(url)
        migrate.upgrade(db)
        lab = PageLab(db, url, Path(folder) / "lab")
        lab.plate(96, (1, 2, 3), drops=3)
        lab.plate(48, (1,), plate="P2", drops=2)
        lab.plate(6, (2,), drops=3, modality=Modality.UV)
        _train(db)
        lab.start()
        try:
            _label(browser, lab)
            for name, (address, window, keys) in IMAGES.items():
                _write(browser, lab, name, address, window, keys)
            _write_login(browser, lab)
        finally:
            lab.stop()
            browser.close()


def _label(browser: Browser, lab: PageLab) -> None:
    page = browser.new_context(extra_http_headers={HEADER: "ann"}, base_url=lab.url).new_page()
    visit(page, "/drop/1?from=plate&inspection=2")
    page.keyboard.type("xpcc", delay=200)
    page.keyboard.type("fm", delay=200)
    saved(page)
    page.context.close()


def _write(browser: Browser, lab: PageLab, name: str, address: str, window: dict[str, Any], keys: str) -> None:
    context = browser.new_context(extra_http_headers={HEADER: "ann"}, base_url=lab.url, **window)
    page = context.new_page()
    visit(page, address)
    page.wait_for_timeout(1500)
    for key in keys:
        page.keyboard.press("ArrowRight" if key == ">" else key)
        page.wait_for_timeout(1500)
    _save(page, name)
    context.close()


def _write_login(browser: Browser, lab: PageLab) -> None:
    """Start the page again for persons with a password, who log in first."""
    lab.stop()
    text = lab.config.read_text()
    lab.config.write_text(text.replace('access = "proxy"\ntrusted_proxies = ["127.0.0.1"]', 'access = "accounts"'))
    lab.start()
    for name, window in LOGIN.items():
        page = browser.new_context(base_url=lab.url, **window).new_page()
        page.goto("/login")
        _save(page, name)
        page.context.close()


def _train(db: Database) -> None:
    """Let a training run end, refused by the gate."""
    begun = {"cause": "300 labels are new", "actor": "trainer", "recipe": "adapt", "options": {}, "parent": "small:1"}
    place = {"host": "here", "folder": "/nowhere", "pid": 7, "token": "-", "now": utc()}
    run = db.write(lambda c: run_rows.begin(c, **begun, **place))
    checks = [
        {"name": "enough", "passed": True, "numbers": {"drops": 340, "drops_needed": 200}, "reason": ""},
        {"name": "recall", "passed": False, "numbers": {"lost": 0.04}, "reason": "recall falls"},
    ]
    sides = {
        "champion": {"model": "small:1", "crystal_recall": 0.91, "crystal_precision": 0.74},
        "candidate": {"crystal_recall": 0.87, "crystal_precision": 0.79},
    }
    values = {
        "active": None, "ended_at": utc(hours=2), "state": "refused", "candidate": "lab:2",
        "reasons": ["the crystal recall falls by 4 %"], "numbers": {"gate": {**sides, "checks": checks}},
    }  # fmt: skip
    db.write(lambda c: c.execute(sa.update(training_run).where(training_run.c.id == run.id).values(values)))


def _save(page: Page, name: str) -> None:
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

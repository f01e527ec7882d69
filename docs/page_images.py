"""Writes docs/page/*.png: the pages of a small synthetic lab in a real browser, light and dark, wide and narrow.

``PYTHONPATH=tests:tests/support .venv/bin/python docs/page_images.py``, after ``make test-web`` has installed what it
needs. The images are looked at by people; no test compares them.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Final

from page_lab import HEADER, PageLab
from page_people import saved, visit
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from marcod.database import migrate
from marcod.database.engine import Database
from marcod.domain import Modality

FOLDER: Final = Path(__file__).with_name("page")
COLOURS: Final = 128
WIDE: Final = {"viewport": {"width": 1280, "height": 800}}
NARROW: Final = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PLATE: Final = "/plate/imager/P1"
DROP: Final = "/drop/5?from=plate&inspection=2"

IMAGES: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "plates": ("/", WIDE, ""),
    "plate": (PLATE, WIDE, ""),
    "plate-dark": (PLATE + "?by=probability&sort=probability", WIDE | {"color_scheme": "dark"}, ""),
    "plate-chosen": (PLATE + "?class=Clear", WIDE, "a"),
    "plate-narrow": (PLATE, NARROW, ""),
    "drop": (DROP, WIDE, ""),
    "drop-compare-dark": (DROP, WIDE | {"color_scheme": "dark"}, "b"),
    "drop-narrow": (DROP, NARROW, ""),
    "keys": (DROP, WIDE, "?"),
    "hits": ("/hits", WIDE, ""),
    "review": ("/review", WIDE, ""),
    "models-dark": ("/models", WIDE | {"color_scheme": "dark"}, ""),
    "status": ("/status", WIDE, ""),
}
"""Name, address, window and keys pressed before."""


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
        lab.start()
        try:
            _label(browser, lab)
            for name, (address, window, keys) in IMAGES.items():
                _write(browser, lab, name, address, window, keys)
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
        page.keyboard.press(key)
        page.wait_for_timeout(1500)
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    context.close()
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""A person's loop in a real browser: drops labelled by keys alone, and the time from a key to the image after it."""

import os
import random
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks import plates
from benchmarks.bench import Bench
from benchmarks.page_service import command, environment, served
from benchmarks.tables import Table
from marcod.database.engine import Database
from marcod.database.schema import label

LABELS: Final = 300
EVERY_MS: Final = 100
DROPS: Final = (1, 2, 3, 4)
SCENES: Final = 24
KEYS: Final = {"x": "Crystals", "p": "Precipitate", "c": "Clear", "o": "Other"}
SEED: Final = 5

WATCH: Final = """() => {
    window.painted = [];
    let at = 0;
    document.addEventListener("keydown", (event) => { at = event.timeStamp; }, true);
    document.addEventListener("shown", () => requestAnimationFrame(() => window.painted.push(performance.now() - at)));
}"""
"""``shown`` comes in the frame that has the new image, so the frame after it begins when that one is painted."""


def run(bench: Bench) -> Iterator[Table]:
    """Label with a key every 100 ms, cold and then with the images kept. Raises RuntimeError for a lost label."""
    count = bench.size(LABELS, 60)
    with bench.place("web-keys") as folder:
        database = _fill(folder, count + 1)
        rows = []
        with served(folder) as address:
            for turn in ("images not yet kept", "images kept"):
                bench.say(f"web_keys: {turn}")
                found = sorted(_label(address, database, count))
                rows.append([turn, len(found), found[len(found) // 2], found[int(len(found) * 0.95)], found[-1]])
        yield Table(
            f"{count} drops labelled by keys alone, a key every {EVERY_MS} ms",
            "From the key to the frame in which the next image stands, Chromium without a screen on this host, SQLite,"
            " images of 1224x1024. All labels were in the database, in order, each once.",
            ("turn", "images", "median ms", "95 % ms", "most ms"),
            rows,
        )


def _fill(folder: Path, drops: int) -> Database:
    """Let plates arrive, which `marcod scan` takes in."""
    scenes = plates.rendered(SCENES)
    for number, (path, _) in enumerate(islice(plates.composites(DROPS), drops)):
        file = folder / "share" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(plates.marked(scenes[number % SCENES], path))
    (folder / "marcod.toml").write_text(
        f'[store]\nurl = "sqlite:///{folder}/marcod.sqlite"\n[web]\ncache_folder = "{folder}/cache"\n'
        f'[watch]\nsettle_s = 0\n[sources.imager]\nroot = "{folder}/share"\nlayout = "formulatrix"\n'
    )
    subprocess.run(command("scan"), env=environment(folder), check=True, capture_output=True)
    return Database(f"sqlite:///{folder}/marcod.sqlite")


def _label(address: str, database: Database, count: int) -> list[float]:
    """Label that many drops from the first on. Returns milliseconds to each next image."""
    from playwright.sync_api import sync_playwright

    typed = "".join(random.Random(SEED).choices(list(KEYS), k=count))
    before = len(_labels(database))
    with sync_playwright() as playwright:
        chromium = os.environ.get("MARCOD_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{address}/drop/1")
        page.wait_for_selector("body[data-ready]")
        page.keyboard.press("Home")
        page.evaluate(WATCH)
        page.keyboard.type(typed, delay=EVERY_MS)
        page.wait_for_selector("#saving.good", timeout=60_000)
        painted: list[float] = page.evaluate("window.painted")
        browser.close()
    given = _labels(database)[before:]
    if given != [KEYS[key] for key in typed]:
        raise RuntimeError(f"{count} labels were given, and {len(given)} stand there, or in another order")
    return painted


def _labels(database: Database) -> list[Any]:
    return list(database.read(lambda c: c.execute(sa.select(label.c.label).order_by(label.c.id)).scalars().all()))

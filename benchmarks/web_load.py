"""People who look at drops beside a scorer: slowest answer of the page, and what the scorer loses by them.

The page's server and the clients run on the first core, the scorer on the second, in every turn.
"""

import http.client
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from benchmarks import plates
from benchmarks.bench import Bench
from benchmarks.page_service import command, environment, served
from benchmarks.tables import Cell, Spread, Table
from marcod.database.engine import Database
from marcod.database.schema import score

CLIENTS: Final = 20
EVERY_S: Final = 5.0
TURNS: Final = 5
IMAGES: Final = 2016
"""Images scored in a turn: seven inspections of a plate of 288 drops."""

LOOKED_AT: Final = 288
SCENES: Final = 24
IMAGE: Final = re.compile(r"/image/\d+/(?:thumb|view)/\w+")
"""Addresses of the image and of the strip's thumbnails in the page of a drop, which a browser fetches with it."""

PAGE_CORE: Final = 0
SCORER_CORE: Final = 1


def run(bench: Bench) -> Iterator[Table]:
    """Score as many images with and without people at the page, in turn."""
    images = bench.size(IMAGES, 96)
    with bench.place("web-load") as folder:
        database = _fill(folder)
        quiet: list[float] = []
        beside: list[float] = []
        answers: list[float] = []
        with served(folder, PAGE_CORE) as address:
            _look_at_all(address)
            for turn in range(bench.size(TURNS, 1)):
                bench.say(f"web_load: turn {turn + 1}, nobody at the page")
                _deliver(folder, images, 2 * turn + 1)
                quiet.append(_score(folder, database))
                bench.say(f"web_load: turn {turn + 1}, {CLIENTS} people at the page")
                _deliver(folder, images, 2 * turn + 2)
                with _people(address) as seen:
                    beside.append(_score(folder, database))
                answers += seen
        yield _table(images, quiet, beside, sorted(answers))


def _table(images: int, quiet: list[float], beside: list[float], answers: list[float]) -> Table:
    loss = [100 * (1 - other / alone) for alone, other in zip(quiet, beside, strict=True)]
    rows: list[list[Cell]] = [
        ["images a second, nobody at the page", Spread.of(quiet)],
        [f"images a second, {CLIENTS} people at the page", Spread.of(beside)],
        ["scoring loses, %", Spread.of(loss)],
        ["requests of the people", len(answers)],
        ["median answer, ms", 1e3 * answers[len(answers) // 2]],
        ["95 % of the answers within, ms", 1e3 * answers[int(len(answers) * 0.95)]],
        ["slowest answer, ms", 1e3 * answers[-1]],
    ]
    about = (
        f"{CLIENTS} clients, a drop page with its images each {EVERY_S:g} s, server and clients on one core and the "
        f"scorer on another; shipped bundle, SQLite, {images:,} images a turn, {len(quiet)} turns of both. The small "
        "images are kept. A rate is taken from the first score to the last, so loading the model does not count."
    )
    return Table("People at the page beside a scorer", about, ["measured", "value"], rows)


def _fill(folder: Path) -> Database:
    """Make a lab with one scored inspection of 288 drops."""
    (folder / "marcod.toml").write_text(
        f'[store]\nurl = "sqlite:///{folder}/marcod.sqlite"\n[web]\ncache_folder = "{folder}/cache"\n'
        f'[watch]\nsettle_s = 0\n[sources.imager]\nroot = "{folder}/share"\nlayout = "formulatrix"\n'
    )
    _deliver(folder, LOOKED_AT, 0)
    database = Database(f"sqlite:///{folder}/marcod.sqlite")
    _score(folder, database)
    return database


def _deliver(folder: Path, images: int, turn: int) -> None:
    """Write new inspections to the share, and queue them."""
    scenes = plates.rendered(SCENES)
    first = turn * (IMAGES // plates.IMAGES_AN_INSPECTION + 1)
    for number, (path, _) in enumerate(islice(plates.composites(first=first), images)):
        plates.write(folder / "share" / path, plates.marked(scenes[number % SCENES], path))
    subprocess.run(command("scan"), env=environment(folder), check=True, capture_output=True)


def _score(folder: Path, database: Database) -> float:
    """Score what waits on the scorer's core. Returns images a second from the first score to the last."""
    last = database.read(lambda c: c.execute(sa.select(sa.func.max(score.c.id))).scalar()) or 0
    process = subprocess.run(
        command("score", core=SCORER_CORE), env=environment(folder), capture_output=True, check=False, text=True
    )
    if process.returncode:
        raise RuntimeError(f"the scorer ended with {process.returncode}: {process.stderr[-500:]}")
    span = sa.select(sa.func.min(score.c.scored_at), sa.func.max(score.c.scored_at)).where(score.c.id > last)
    first_at, last_at = database.read(lambda c: c.execute(span).one())
    # The images of the first batch were scored before the first of these times.
    later = sa.select(sa.func.count()).where(score.c.id > last, score.c.scored_at > first_at)
    counted = database.read(lambda c: c.execute(later).scalar_one())
    return float(counted / max(1e-9, (last_at - first_at).total_seconds()))


@contextmanager
def _people(address: str) -> Iterator[list[float]]:
    """Let everybody look at a drop each few seconds. Yields the seconds of every answer."""
    seen: list[float] = []
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        all_of_them = [pool.submit(_look, address, number, stop, seen) for number in range(CLIENTS)]
        try:
            yield seen
        finally:
            stop.set()
            for one in all_of_them:
                one.result()


def _look(address: str, number: int, stop: threading.Event, seen: list[float]) -> None:
    """Walk through the plate from another drop than the others, beginning at another moment."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    drop, due = number * LOOKED_AT // CLIENTS, time.monotonic() + number * EVERY_S / CLIENTS
    while not stop.wait(max(0.0, due - time.monotonic())):
        seen += _open_drop(connection, 1 + drop % LOOKED_AT)
        drop, due = drop + 1, due + EVERY_S
    connection.close()


def _look_at_all(address: str) -> None:
    """Look at every drop once, so that its small images are kept."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    for drop in range(1, LOOKED_AT + 1):
        _open_drop(connection, drop)
    connection.close()


def _open_drop(connection: http.client.HTTPConnection, drop: int) -> list[float]:
    """Fetch a drop's page and the images in it. Returns the seconds of each answer."""
    seconds, page = _fetch(connection, f"/drop/{drop}?from=plate")
    found = list(dict.fromkeys(IMAGE.findall(page.decode())))
    return [seconds, *(_fetch(connection, path)[0] for path in found)]


def _fetch(connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {content[:200]!r}")
    return time.perf_counter() - start, content

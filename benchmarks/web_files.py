"""Plates of real files as a browser waits for them: the page, a screen of thumbnails, and all of them."""

import http.client
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks import plates
from benchmarks.bench import Bench
from benchmarks.page_service import command, environment, served
from benchmarks.tables import Cell, Spread, Table
from marcod import layouts
from marcod.domain import PLATE_FORMATS
from marcod.synthetic import ImagerStyle, PlateSpec, plate_files

TURNS: Final = 5
SCENES: Final = 24
SCREEN: Final = 30
"""Thumbnails that a large screen shows at once."""

CONNECTIONS: Final = 6
"""Connections that a browser opens to one host."""

THUMB: Final = re.compile(r"/image/\d+/thumb/\w+")
HWI_PLATE: Final = "X000016042"


def tables(bench: Bench) -> Iterator[Table]:
    """Let a plate of 288 and one of 1536 drops arrive and be scored, then look at them cold and warm."""
    with bench.place("web-files") as folder:
        bench.say("delivering and scoring a plate of 288 and one of 1536 drops")
        _fill(folder, bench.size(1536, 48))
        rows: list[list[Cell]] = []
        for name, path in (("288 drops", "/plate/rock/2000"), ("1536 drops", f"/plate/hwi/{HWI_PLATE}")):
            bench.say(f"looking at a plate of {name}")
            with served(folder) as address:
                turns = range(bench.size(TURNS, 1))
                looked = [_look(address, path, folder / "cache", cold=cold) for _ in turns for cold in (True, False)]
            rows += [_row(name, "cold", looked[::2]), _row(name, "warm", looked[1::2])]
        yield Table(
            "A plate of real files",
            f"JPEGs of 1224x1024, SQLite; {CONNECTIONS} connections as a browser has. A screen is the page and its "
            f"first {SCREEN} thumbnails, all are those of every drop. Cold: no small image is kept. Median of "
            f"{bench.size(TURNS, 1)} turns with the lowest and the highest.",
            ("plate", "small images", "page, ms", "a screen, ms", "all thumbnails, ms"),
            rows,
        )


def _row(name: str, state: str, looked: list[tuple[float, float, float]]) -> list[Cell]:
    return [name, state, *(Spread.of(1e3 * turn[place] for turn in looked) for place in range(3))]


def _fill(folder: Path, wells: int) -> None:
    (folder / "marcod.toml").write_text(
        f'[store]\nurl = "sqlite:///{folder}/marcod.sqlite"\n[web]\ncache_folder = "{folder}/cache"\n'
        f'[watch]\nsettle_s = 0\n[sources.rock]\nroot = "{folder}/rock"\nlayout = "formulatrix"\n'
        f'[sources.hwi]\nroot = "{folder}/hwi"\nlayout = "hwi"\n'
    )
    _write(folder / "rock", (path for path, _ in islice(plates.composites(), plates.IMAGES_AN_INSPECTION)))
    at = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    spec = PlateSpec(ImagerStyle.HWI, HWI_PLATE, (at,), PLATE_FORMATS[1536], filled=wells / 1536)
    _write(folder / "hwi", (file.path for file in plate_files(spec, layouts.make("hwi"))))
    for word in ("scan", "score"):
        subprocess.run(command(word), env=environment(folder), check=True, capture_output=True)


def _write(root: Path, paths: Iterable[str]) -> None:
    scenes = plates.rendered(SCENES)
    for number, path in enumerate(paths):
        plates.write(root / path, plates.marked(scenes[number % SCENES], path))


def _look(address: str, path: str, cache: Path, *, cold: bool) -> tuple[float, float, float]:
    """Return seconds until the page, a screen of thumbnails and all of them are there."""
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    host = urlsplit(address).netloc
    start = time.perf_counter()
    page = b"".join(_fetch(host, [path])).decode()
    there = time.perf_counter() - start
    thumbs = list(dict.fromkeys(THUMB.findall(page)))
    _fetch_at_once(host, thumbs[:SCREEN])
    screen = time.perf_counter() - start
    _fetch_at_once(host, thumbs[SCREEN:])
    return there, screen, time.perf_counter() - start


def _fetch_at_once(host: str, paths: list[str]) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        shares = [paths[first::CONNECTIONS] for first in range(CONNECTIONS)]
        for done in [pool.submit(_fetch, host, share) for share in shares]:
            done.result()


def _fetch(host: str, paths: list[str]) -> list[bytes]:
    """Fetch pages over one connection. Raises RuntimeError where one is refused."""
    found = []
    with closing(http.client.HTTPConnection(host, timeout=120)) as connection:
        for path in paths:
            connection.request("GET", path)
            answer = connection.getresponse()
            found.append(answer.read())
            if answer.status != 200:
                raise RuntimeError(f"{path} answered {answer.status}: {found[-1][:200]!r}")
    return found

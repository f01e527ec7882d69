"""The page as a browser waits for it: lists of 100,000 plates, and plates and drops in an archive of many images."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks import history, plate_archive, web_files
from benchmarks.bench import Bench, Kind, Subject, timed
from benchmarks.history import FIRST_PLATE, Size
from benchmarks.plates import INSPECTIONS_A_PLATE
from benchmarks.tables import Cell, Spread, Table
from marcod.database.schema import drop, inspection, plate
from marcod.settings import Settings, StoreSettings, WebSettings
from marcod.web.server import Page

REPEATS: Final = 10
LISTED: Final = 100_000
DROPS: Final = (1, 2, 3)
PLATES: Final[dict[Kind, int]] = {"SQLite": 70, "PostgreSQL": 694}
"""Ten inspections of 288 drops each: 200,000 and 2,000,000 images, as `lims` has."""

LISTS: Final = {
    "plates": "/",
    "plates, far down": "/?after={middle}",
    "plates of a project": "/?project=project+7",
    "plates of a project long ago": "/?project=rare",
    "plates of the oldest tenth's imager": "/?source=old",
    "plates of another imager": "/?source=second",
    "plates by text, 100 of them": "/?text=ci0050",
    "plates by text, none": "/?text=nothing",
    "plates of the last week": "/?since=7d",
    "plates not complete": "/?incomplete=1",
    "plates with new hits": "/?new_hits=1",
    "hits, best first": "/hits",
    "hits, newest first": "/hits?order=newest",
    "hits of a project": "/hits?project=project+7",
    "hits of the oldest tenth's imager, newest first": "/hits?source=old&order=newest",
    "hits of the last week": "/hits?since=7d",
    "hits without a label": "/hits?unlabelled=1",
}
WHOLE: Final = {"all plates as CSV": "/plates.csv", "hits of a project as CSV": "/hits.csv?project=project+7"}
PLACES: Final = {
    "plates": "/",
    "hits": "/hits",
    "hits, newest first": "/hits?order=newest",
    "a plate, 288 drops": "/plate/bench/{plate}",
    "the same for the map's refresh": "/api/plate/{plate_id}/{inspection_id}",
    "a drop": "/drop/{drop_id}?from=plate&inspection={inspection_id}",
    "a drop among the hits": "/drop/{drop_id}?from=hits&inspection={inspection_id}",
    "models": "/models",
    "status": "/status",
}


def run(bench: Bench) -> Iterator[Table]:
    """Lists in the archive of plates, then pages in the archive of images, on both databases."""
    listed: list[list[Cell]] = []
    shown: list[list[Cell]] = []
    plates = bench.size(LISTED, 300)
    for kind in bench.kinds:
        with ExitStack() as stack:
            subject = stack.enter_context(bench.subject(kind))
            bench.say(f"filling {kind} with {plates:,} plates")
            plate_archive.fill(subject, plates)
            bench.say(f"asking {kind}")
            ask = stack.enter_context(_served(bench, subject))
            middle = str(plates * plate_archive.INSPECTIONS // 2)
            listed += [_row(kind, name, ask, path.format(middle=middle)) for name, path in LISTS.items()]
            listed += [_row(kind, name, ask, path, repeats=1) for name, path in WHOLE.items()]
        with ExitStack() as stack:
            subject = stack.enter_context(bench.subject(kind))
            names = _images(bench, subject, bench.size(PLATES[kind], 3))
            ask = stack.enter_context(_served(bench, subject))
            shown += [_row(kind, name, ask, path.format(**names)) for name, path in PLACES.items()]
    yield _table(
        "Lists of the page", f"{plates:,} plates, four inspections and three hits each, three imagers.", listed
    )
    many = " and ".join(
        f"{bench.size(PLATES[kind], 3) * INSPECTIONS_A_PLATE * 288:,} on {kind}" for kind in bench.kinds
    )
    yield _table("Pages of the page", f"An archive of images: {many}.", shown)
    yield from web_files.tables(bench)


def _images(bench: Bench, subject: Subject, plates: int) -> dict[str, str]:
    """Fill the archive of images, and name the plate in its middle."""
    images = plates * INSPECTIONS_A_PLATE * 96 * len(DROPS)
    bench.say(f"filling it with {images:,} images")
    history.fill(subject, Size(images, waiting=96 * len(DROPS), former=images // 10, drops=DROPS))
    key = str(FIRST_PLATE + plates // 2)
    of_key = sa.select(plate.c.id).where(plate.c.key == key).scalar_subquery()

    def named(connection: sa.Connection) -> dict[str, str]:
        last = sa.select(sa.func.max(inspection.c.id)).where(inspection.c.plate_id == of_key)
        first = sa.select(sa.func.min(drop.c.id)).where(drop.c.plate_id == of_key)
        ids = {"plate_id": sa.select(of_key), "inspection_id": last, "drop_id": first}
        return {name: str(connection.execute(statement).scalar_one()) for name, statement in ids.items()}

    return {"plate": key, **subject.db.read(named)}


class _Ask:
    """A browser's connection, which stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def __call__(self, path: str) -> int:
        """Fetch a page whole. Returns its bytes."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, (path, answer.status, content[:200])
        return len(content)


@contextmanager
def _served(bench: Bench, subject: Subject) -> Iterator[_Ask]:
    """Serve the page of a database by its real server, in a thread."""
    with bench.place("page") as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        url = SecretStr(subject.db.url.render_as_string(hide_password=False))
        settings = Settings(store=StoreSettings(url=url), web=WebSettings(port=port, cache_folder=folder))
        stop, alive = threading.Event(), threading.Event()
        serving = threading.Thread(target=Page(settings).run, args=(stop, alive.set))
        serving.start()
        alive.wait(60)
        try:
            yield _Ask(port)
        finally:
            stop.set()
            serving.join(60)


def _row(kind: Kind, name: str, ask: _Ask, path: str, repeats: int = REPEATS) -> list[Cell]:
    """Warm where it is asked several times: the first time does not count then."""
    size = ask(path) if repeats > 1 else 0
    found = [timed(lambda: ask(path)) for _ in range(repeats)]
    return [kind, name, (size or found[0][1]) / 1024, Spread.of(seconds * 1e3 for seconds, _ in found)]


def _table(title: str, of: str, rows: list[list[Cell]]) -> Table:
    about = (
        f"{of} Whole answers of the real server over loopback, warm, {REPEATS} times (CSV once). A list or a plate "
        "should take 150 ms at most in the archive of images, and a list 300 ms among 100,000 plates."
    )
    return Table(title, about, ["database", "page", "kB", "ms"], rows)

"""What the tests of watching share: names of synthetic images, and a site with its clock in the test's hand."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import factories
import sqlalchemy as sa
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import image, job
from marcod.domain import text_path
from marcod.settings import Settings
from marcod.watch.ingest import WatchedSource, open_sources
from marcod.watch.loop import Watcher
from marcod.watch.status import SourceStatus

SETTLE_S = 10.0
NEVER_S = 1e9


def well_image(well: int, *, plate: int = 1070, batch: int = 5, kind: str = "ef") -> str:
    """The path of one drop in a Rock Imager's store."""
    return f"WellImages/70/plateID_{plate}/batchID_{batch}/wellNum_{well}/profileID_1/d1_r1_{kind}.jpg"


def put(root: Path, path: str, content: bytes = b"synthetic") -> Path:
    """Write a file below a root, with its folders."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def settings_for(root: Path, *, watch: dict[str, Any] | None = None, **source: Any) -> Settings:
    """Settings with one source named ``imager``."""
    given = {"root": root, "layout": "formulatrix", "observer": "inotify", "poll_s": 0.05} | source
    timing = {"settle_s": SETTLE_S, "rescan_s": 60.0, "full_rescan_s": 86_400.0} | (watch or {})
    return Settings.model_validate({"sources": {"imager": given}, "watch": timing})


@contextmanager
def made_sites(db: Database, folder: Path, **defaults: object) -> Iterator[Callable[..., "Site"]]:
    """A function that makes sites below a folder, whose observers are stopped at the end."""
    sites: list[Site] = []

    def make(**more: object) -> Site:
        root = folder / f"plates{len(sites) or ''}"
        sites.append(Site(db, root, **defaults | more))  # type: ignore[arg-type]
        return sites[-1]

    yield make
    for site in sites:
        site.watcher.close()


class Site:
    """One source and its watcher. ``now`` is the monotonic clock, which only the test moves."""

    def __init__(self, db: Database, root: Path, *, watch: dict[str, Any] | None = None, **source: Any) -> None:
        root.mkdir(exist_ok=True)
        self.db = db
        self.root = root
        self.settings = settings_for(root, watch=watch, **source)
        self.now = 1000.0
        self.source: WatchedSource = open_sources(db, self.settings, factories.utc())[0]
        self.watcher = self.new_watcher()

    def new_watcher(self) -> Watcher:
        """A watcher that knows nothing, as after a restart."""
        return Watcher(self.db, [self.source], self.settings.watch)

    @property
    def status(self) -> SourceStatus:
        return self.watcher.status()[0]

    def put(self, path: str, content: bytes = b"synthetic") -> Path:
        return put(self.root, path, content)

    def step(self, later_s: float = 0.0) -> None:
        """Move the clock and do rounds until nothing is left to do at once."""
        self.now += later_s
        while self.watcher.step(self.now, factories.utc(self.now)):
            pass

    def settle(self) -> None:
        """Let everything that was nominated stand still."""
        self.step()
        self.step(SETTLE_S)

    def observe(self) -> None:
        """Start watching, and wait until the observer stands and the first walk is over."""
        self.observe_after(0.0)

    def observe_after(self, later_s: float) -> None:
        """The same, some time later."""
        self.step(later_s)
        self.step_until(lambda: self.status.observing and not self.status.walking)
        # The look at what came before the observer stood; what comes from here on comes by events alone.
        self.step()

    def step_until(self, condition: Callable[[], object], *, each_s: float = 0.0) -> None:
        """Do rounds until something is true; the clock moves by ``each_s`` a round."""

        def stepped() -> object:
            self.step(each_s)
            return condition()

        wait_until(stepped)

    def recorded_by_events(self, *paths: str) -> None:
        """Wait for the events of these files, then for their rows."""
        self.step_until(lambda: set(paths) <= set(self.images()), each_s=SETTLE_S / 4)

    def images(self) -> dict[str, int]:
        """Size of every recorded image by its path."""
        rows = factories.rows(self.db, sa.select(image.c.path, image.c.size))
        return {text_path(path): size for path, size in rows}

    def jobs(self) -> int:
        """How many images are queued."""
        return int(factories.rows(self.db, sa.select(sa.func.count()).select_from(job))[0][0])


def set_time(file: Path, mtime_ns: int) -> None:
    """Give a file a modification time."""
    os.utime(file, ns=(mtime_ns, mtime_ns))

"""Random stories of labs: deliveries, rewrites, leases, labels and promotions in any order, then a recount of it all.

The stories and the recount are those of the tests (``tests/support/stories.py``, ``tests/support/oracle.py``); they are
told by the thousand here. Then rules are broken by hand, and stories are told until one finds each.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks.bench import Bench, Kind
from benchmarks.tables import Cell, Table
from marcod.database import migrate
from marcod.database.engine import Database
from marcod.database.schema import metadata

STORIES: Final = 2_000
MOST: Final = 200
"""Stories told to find a broken rule."""

WORKERS: Final = 6
CROWD_S: Final = 600

FAILING: Final = 10
"""Stories that fail before the rest of a database is left out."""

TESTS: Final = Path(__file__).resolve().parent.parent / "tests"


def run(bench: Bench) -> Iterator[Table]:
    """Tell the stories, then break the rules. Raises RuntimeError, after its table, where a story or a rule fails."""
    # The stories are the tests' own: a second set would be another truth.
    sys.path.insert(0, str(TESTS / "support"))
    stories = bench.size(STORIES, 40)
    rows, failing = [], []
    for kind in bench.kinds:
        started, bad, told = time.monotonic(), 0, 0
        with _lab(bench, kind) as lab:
            for seed in range(stories):
                told += 1
                if faults := _told(lab, seed):
                    bad += 1
                    failing.append(f"{kind}, seed {seed}: {faults[0]}")
                if bad == FAILING:
                    break
                if told % 100 == 0:
                    bench.say(f"{kind}: {told} of {stories} stories, {bad} failed")
        rows.append((kind, told, bad, (time.monotonic() - started) / told * 1000))
    about = "Each of 40 events and a drain, compared with a recount from the facts. " + "; ".join(failing)
    yield Table("Stories", about, ("database", "stories", "failed", "ms each"), rows)
    if "PostgreSQL" in bench.kinds:
        crowd = _crowd(bench)
        yield crowd
        failing += [str(crowd.rows[0])] if any(crowd.rows[0][2:4]) else []
    found = list(_broken(bench))
    yield Table("Rules broken by hand", "SQLite; stories until one fails.", ("rule", "stories until found"), found)
    missed = [rule for rule, told in found if told == "never"]
    if failing or missed:
        raise RuntimeError(f"stories failed: {failing}; broken rules never found: {missed}")


def _crowd(bench: Bench) -> Table:
    """Workers that do everything at once, as PostgreSQL alone allows; it counts the deadlocks itself."""
    import crowd

    seconds = bench.size(CROWD_S, 10)
    with bench.database("PostgreSQL") as db:
        faults, events = crowd.tell(db, seed=1, workers=WORKERS, seconds=seconds)
        asked = sa.text("select deadlocks from pg_stat_database where datname = current_database()")
        deadlocks = db.read(lambda c: int(c.execute(asked).scalar_one()))
    about = "All on one PostgreSQL database, then a drain and a recount. " + "; ".join(faults[:FAILING])
    columns = ("workers", "events", "deadlocks", "faults", "s")
    return Table("Workers at once", about, columns, [(WORKERS, events, deadlocks, len(faults), seconds)])


def _broken(bench: Bench) -> Iterator[tuple[str, Cell]]:
    import mutations

    with _lab(bench, "SQLite") as lab:
        for rule in mutations.MUTATIONS:
            with mutations.broken(rule):
                first = next((seed + 1 for seed in range(MOST) if _told(lab, seed)), None)
            bench.say(f"{rule}: {first or 'never'}")
            yield rule, str(first or "never")


def _told(lab: "_Lab", seed: int) -> list[str]:
    """The faults of one story; an error of the database or of a rule that is broken is one, too."""
    import stories

    with lab.fresh() as db:
        try:
            return stories.Story(db, seed).run()
        except Exception as error:  # noqa: BLE001 - whatever ends a story is what it tells
            return [f"{type(error).__name__}: {error}"]


class _Lab:
    """A database that is as new for each story."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db, self._folder, self._count = db, folder, count()
        if db.is_sqlite:
            new = Database(f"sqlite:///{folder / 'new.sqlite'}")
            migrate.upgrade(new)
            new.close()

    @contextmanager
    def fresh(self) -> Iterator[Database]:
        if not self._db.is_sqlite:
            tables = ", ".join(metadata.tables)
            self._db.write(lambda c: c.execute(sa.text(f"truncate {tables} restart identity cascade")))
            yield self._db
            return
        file = self._folder / f"{next(self._count)}.sqlite"
        file.write_bytes((self._folder / "new.sqlite").read_bytes())
        db = Database(f"sqlite:///{file}")
        try:
            yield db
        finally:
            db.close()
            for left in self._folder.glob(f"{file.name}*"):
                left.unlink()


@contextmanager
def _lab(bench: Bench, kind: Kind) -> Iterator[_Lab]:
    with bench.database(kind) as db, bench.place("stories") as folder:
        yield _Lab(db, folder)

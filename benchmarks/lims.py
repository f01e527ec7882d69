"""What a LIMS and people wait for in an archive, by which way the database finds it, and what a score costs there."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks import history, plates
from benchmarks.bench import KINDS, Bench, Kind, Subject, timed, utc_now
from benchmarks.history import FIRST_INSPECTION, FIRST_PLATE, Size
from benchmarks.plates import INSPECTIONS_A_PLATE
from benchmarks.queue import Costs, once
from benchmarks.tables import Cell, Spread, Table
from marcod.catalog import deliveries
from marcod.database.schema import UtcDateTime
from marcod.plates import plate_map as plate_maps
from marcod.plates import reports

DROPS: Final = (1, 2)
PLATES: Final[dict[Kind, int]] = {"SQLite": 105, "PostgreSQL": 1_042}
"""Ten inspections of 192 drops each: 200,000 and 2,000,000 images."""

REPEATS: Final = 20
BATCH: Final = 16
LARGE: Final = 100
"""Rows from which on it matters that a table is read whole."""

_SCORES: Final = "from lims_image_score_v1 where source = :source and plate_key = :plate"
QUERIES: Final = {
    "plate map: images of an inspection": f"select * {_SCORES} and inspection_key = :inspection and is_current",
    "plate map: drops of a plate": """select * from lims_drop_v1
        where source = :source and plate_key = :plate order by well_row, well_column, drop_number""",
    "hits of the last day, best 100": """select * from lims_hit_v1
        where found_at >= :yesterday order by p_crystals desc nulls last, hit_id limit 100""",
    "hits of the last day, latest first": """select * from lims_hit_v1
        where found_at >= :yesterday and cause <> 'confirmed' order by found_at desc""",
    "all hits, best 100": "select * from lims_hit_v1 order by p_crystals desc nulls last, hit_id limit 100",
    "drop history": f"""select * {_SCORES} and well = 'C05' and drop_number = 2 and is_current
        order by inspection_ordinal, inspection_key, p_crystals desc""",
    "one drop": "select * from lims_drop_v1 where drop_id = :drop",
    "inspections of a plate": "select * from lims_plate_summary_v1 where source = :source and plate_key = :plate",
    "plates not finished": "select * from lims_plate_summary_v1 where not complete order by last_image_at",
    "latest 20 inspections": "select * from lims_plate_summary_v1 order by last_image_at desc limit 20",
    "images that failed": "select * from lims_image_failure_v1 order by failed_at desc limit 100",
}
"""What docs/lims.md proposes to ask again and again."""

EXPLAINED: Final = (*tuple(QUERIES)[:4], "drop history", "inspections of a plate", "plates not finished")


@dataclass(frozen=True, slots=True)
class Archive:
    """A filled database and what to ask it for: the plate in the middle."""

    kind: Kind
    subject: Subject
    size: Size

    @property
    def plate(self) -> str:
        """Its key."""
        return str(FIRST_PLATE + self._middle)

    @property
    def asked(self) -> dict[str, Any]:
        """Values for :data:`QUERIES`; a middle inspection, a drop."""
        return {
            "source": "bench",
            "plate": self.plate,
            "inspection": str(FIRST_INSPECTION + self._middle * INSPECTIONS_A_PLATE + 5),
            "drop": self._middle * self.size.an_inspection + 54,
            "yesterday": utc_now() - timedelta(days=1),
        }

    @property
    def _middle(self) -> int:
        return self.size.plates // 2


def run(bench: Bench) -> Iterator[Table]:
    """Reading on both databases, then the ways found, then scoring in an empty database and in the archive."""
    read: list[list[Cell]] = []
    ways: list[list[Cell]] = []
    wrote: list[list[Cell]] = []
    for kind in KINDS:
        with ExitStack() as stack:
            count = bench.size(PLATES[kind], 5)
            archive = _filled(bench, stack, kind, count)
            bench.say(f"asking {kind}")
            read += _reading(archive)
            ways += [_way(archive, name) for name in EXPLAINED]
            bench.say(f"scoring on {kind}")
            wrote += _scoring(kind, _empty(bench, stack, kind), _filled(bench, stack, kind, 1), archive)
    yield _read_table(bench, read)
    yield _ways_table(ways)
    yield _wrote_table(wrote)


def _filled(bench: Bench, stack: ExitStack, kind: Kind, count: int) -> Archive:
    images = count * INSPECTIONS_A_PLATE * 96 * len(DROPS)
    size = Size(images, waiting=96 * len(DROPS), former=images // 10, drops=DROPS)
    bench.say(f"filling {kind} with {images:,} images")
    subject = stack.enter_context(bench.subject(kind))
    history.fill(subject, size)
    return Archive(kind, subject, size)


def _empty(bench: Bench, stack: ExitStack, kind: Kind) -> Archive:
    return Archive(kind, stack.enter_context(bench.subject(kind)), Size(0, 0, 0, DROPS))


def _reading(archive: Archive) -> Iterator[list[Cell]]:
    db = archive.subject.db
    for name, statement in QUERIES.items():
        yield _row(archive, name, partial(_ask, archive, statement))
    yield _row(archive, "marcod plate list", lambda: len(db.read(reports.summaries)))
    yield _row(archive, "marcod plate show", lambda: len(plate_maps.load(db, archive.plate).drops))
    yield _row(archive, "marcod plate show --history", lambda: _history(archive))


def _ask(archive: Archive, statement: str) -> int:
    return len(archive.subject.db.read(lambda c: _all(c, statement, archive.asked)))


def _all(connection: Connection, statement: str, asked: dict[str, Any]) -> Any:
    return connection.execute(_bound(statement), asked).all()


def _bound(statement: str) -> sa.TextClause:
    text = sa.text(statement)
    return text.bindparams(sa.bindparam("yesterday", type_=UtcDateTime())) if ":yesterday" in statement else text


def _history(archive: Archive) -> int:
    shown = plate_maps.load(archive.subject.db, archive.plate)
    return len(plate_maps.history_of(archive.subject.db, shown).drops)


def _row(archive: Archive, name: str, work: Callable[[], int]) -> list[Cell]:
    """Warm: the first time does not count."""
    rows = work()
    return [archive.kind, name, rows, Spread.of(timed(work)[0] * 1e3 for _ in range(REPEATS))]


def _way(archive: Archive, name: str) -> list[Cell]:
    """How the database finds the rows, in short."""
    explain = "explain query plan " if archive.kind == "SQLite" else "explain (analyze, format json) "
    rows = archive.subject.db.read(lambda c: _all(c, explain + QUERIES[name], archive.asked))
    if archive.kind == "SQLite":
        steps = [str(row[3]) for row in rows]
        scans = [step.removeprefix("SCAN ") for step in steps if step.startswith("SCAN ") and "CONSTANT" not in step]
        return [archive.kind, name, len(steps), ", ".join(scans) or "none", "", ""]
    plan = rows[0][0] if isinstance(rows[0][0], list) else json.loads(rows[0][0])
    nodes = list(_nodes(plan[0]["Plan"]))
    whole = {n["Relation Name"]: _looked_at(n) for n in nodes if n["Node Type"] == "Seq Scan"}
    scans = [f"{table} ({rows:,})" for table, rows in sorted(whole.items()) if rows >= LARGE]
    took = (plan[0]["Planning Time"], plan[0]["Execution Time"])
    return [archive.kind, name, len(nodes), ", ".join(scans) or "none", *took]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _looked_at(node: dict[str, Any]) -> int:
    """Rows that one pass of a scan reads."""
    return int(node["Actual Rows"] + node.get("Rows Removed by Filter", 0))


def _scoring(kind: Kind, empty: Archive, small: Archive, archive: Archive) -> Iterator[list[Cell]]:
    """The same plate comes new in both, then the last inspection of ten goes on in both."""
    for one in (empty, archive):
        _bring(one)
    yield _compare(kind, "a new plate's first inspection", empty, archive)
    yield _compare(kind, "a plate's tenth inspection", small, archive)


def _bring(archive: Archive) -> None:
    """One inspection of a plate that is not there yet; it goes before everything that waits."""
    first = archive.size.plates * INSPECTIONS_A_PLATE
    files = list(islice(plates.sightings(DROPS, first), 96 * len(DROPS)))
    db, source_id = archive.subject.db, archive.subject.source_id
    db.write(lambda c: deliveries.record(c, source_id, files, utc_now() - timedelta(days=1)))


def _compare(kind: Kind, what: str, small: Archive, large: Archive) -> list[Cell]:
    costs = [Costs(), Costs()]
    for _ in range(96 * len(DROPS) // BATCH):
        for archive, cost in zip((small, large), costs, strict=True):
            once(archive.subject, BATCH, cost)
    spreads = [Spread.of(s * 1e3 for s in map(sum, zip(c.claim, c.finish, strict=True))) for c in costs]
    return [kind, what, *spreads, spreads[1].median / spreads[0].median]


def _read_table(bench: Bench, rows: list[list[Cell]]) -> Table:
    sizes = ", ".join(
        f"{count:,} plates and {count * INSPECTIONS_A_PLATE * 96 * len(DROPS):,} images on {kind}"
        for kind in KINDS
        for count in (bench.size(PLATES[kind], 5),)
    )
    about = (
        f"A synthetic history of {sizes}: ten inspections of 192 drops a plate, a score of the champion for each "
        "image, one of a former champion for the oldest tenth, every tenth drop a hit, a hundredth of those in the "
        f"last day. Warm, {REPEATS} times, with the transaction and all rows fetched."
    )
    return Table("Reading an archive", about, ["database", "what", "rows", "ms"], rows)


def _ways_table(rows: list[list[Cell]]) -> Table:
    about = (
        f"Tables that are read from end to end (on PostgreSQL those of {LARGE} rows and more, with the rows of one "
        "pass); all others are looked up by an index. Steps are those of the plan; times are PostgreSQL's own, of one "
        "call."
    )
    return Table(
        "Ways to the rows", about, ["database", "what", "steps", "read whole", "ms to plan", "ms to run"], rows
    )


def _wrote_table(rows: list[list[Cell]]) -> Table:
    about = (
        f"Claiming and finishing {BATCH} images, one in twenty a hit, with their commits, {96 * len(DROPS) // BATCH} "
        "times. The small database is empty but for the plate that is scored, and both take turns: the ratio is that "
        "of the medians and should stay near 1."
    )
    columns = ["database", "what", "ms, small", "ms, archive", "ratio"]
    return Table("Scoring in an archive", about, columns, rows)

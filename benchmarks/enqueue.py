"""How fast new images become rows and jobs, by how many arrive together."""

from collections.abc import Iterator
from itertools import islice

from benchmarks import plates
from benchmarks.bench import KINDS, Bench, Subject, timed, utc_now
from benchmarks.tables import Spread, Table
from marcod.catalog import deliveries
from marcod.catalog.deliveries import Recorded, Sighting


def run(bench: Bench) -> Iterator[Table]:
    """Record single images, half plates and the watching loop's largest portion."""
    rows = []
    for kind in KINDS:
        bench.say(f"recording on {kind}")
        for together, calls in ((1, bench.size(150, 10)), (96, bench.size(30, 3)), (1_000, bench.size(15, 2))):
            with bench.subject(kind) as subject:
                took = _record(subject, together, calls)
            per_s = Spread(together / took.median, together / took.high, together / took.low)
            rows.append([kind, together, _ms(took), per_s])
    about = (
        "catalog.deliveries.record of new synthetic images into an empty database: rows of plate, drop, inspection, "
        "image and job, "
        f"and the summary of each inspection touched ({plates.IMAGES_AN_INSPECTION} images each)."
    )
    yield Table("Taking images in", about, ["database", "images a call", "ms a call", "images/s"], rows)


def _record(subject: Subject, together: int, calls: int) -> Spread:
    source = plates.sightings()
    return Spread.of(timed(lambda: _one(subject, list(islice(source, together))))[0] for _ in range(calls))


def _one(subject: Subject, files: list[Sighting]) -> Recorded:
    return subject.db.write(lambda c: deliveries.record(c, subject.source_id, files, utc_now()))


def _ms(took: Spread) -> Spread:
    return Spread(took.median * 1e3, took.low * 1e3, took.high * 1e3)

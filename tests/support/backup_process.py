"""Run as a process of its own by the tests: takes plates in and scores them until standard input says to stop.

Arguments: database URL. Writes a line for every plate that is scored and committed.
"""

import sys
import threading
from itertools import count

from factories import CRYSTALS, drain, record, sightings, utc

from marcod.database.engine import Database
from marcod.store import versions


def main(url: str) -> None:
    db = Database(url)
    version = db.read(versions.champion)
    source_id = 1
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    for number in count(1):
        if stop.is_set():
            break
        record(db, source_id, sightings(8, f"P{number}"), utc(number))
        drain(db, version, utc(number), scores=lambda c: CRYSTALS)
        sys.stdout.write(f"P{number}\n")
        sys.stdout.flush()
    db.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

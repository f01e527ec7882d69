"""Run as a process of its own by the tests: claims and finishes until the queue is empty, then writes what it got.

Arguments: database URL, worker name, batch size, id of the model version.
"""

import json
import sys

from factories import finish, leases

from marcod.database.engine import Database
from marcod.store import versions


def main(url: str, worker: str, limit: str, version_id: str) -> None:
    db = Database(url)
    version = db.read(lambda c: versions.get(c, int(version_id)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    got: list[int] = []
    for lease in leases(db, limit=int(limit), worker=worker):
        got.extend(c.job_id for c in lease.claims)
        assert finish(db, lease, version).stale == 0
    sys.stdout.write(json.dumps(got))
    db.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

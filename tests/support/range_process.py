"""Run as a process of its own by the tests: takes a range, writes two of its images, and waits to be killed.

Arguments: database URL, id of the model version, now as ISO text.
"""

import sys
from dataclasses import replace
from datetime import datetime

from factories import CLEAR, LEASE_S, MAX_ATTEMPTS, RETRY_S

from marcod.database.engine import Database
from marcod.store import ranges, results, versions
from marcod.store.results import Scored


def main(url: str, version_id: str, now: str) -> None:
    db, at = Database(url), datetime.fromisoformat(now)
    version = db.read(lambda c: versions.get(c, int(version_id)))
    lease = db.write(ranges.claim, "killed", limit=4, lease_s=LEASE_S, now=at)
    assert lease is not None
    part = replace(lease, claims=lease.claims[:2], ends=False)
    scored = [Scored(c, f"hash of {c.path}", CLEAR) for c in part.claims]
    rules = {"now": at, "retry_s": RETRY_S, "max_attempts": MAX_ATTEMPTS, "keeps": True}
    db.write(lambda c: results.finish_range(c, part, version, scored, [], **rules))
    sys.stdout.write("two of four are written\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Training runs that are over, with the checks of the gate."""

import factories
import sqlalchemy as sa

from marcod.database.engine import Database
from marcod.database.schema import training_run
from marcod.training import run_rows

CHECKS = [
    {"name": "enough", "passed": True, "numbers": {"drops": 40, "drops_needed": 30}, "reason": ""},
    {"name": "recall", "passed": False, "numbers": {"lost": 0.04}, "reason": "recall falls"},
]
NUMBERS = {
    "gate": {
        "champion": {"model": "small:1", "crystal_recall": 0.91}, "candidate": {"crystal_recall": 0.87},
        "checks": CHECKS,
    }
}  # fmt: skip


def ran(db: Database, **ended: object) -> int:
    """A training run that is over."""
    begun = {"cause": "by hand", "actor": "ann", "recipe": "adapt", "options": {}, "parent": "small:1"}
    place = {"host": "here", "folder": "/nowhere", "pid": 7, "token": "the token", "now": factories.utc()}
    run = db.write(lambda c: run_rows.begin(c, **begun, **place))
    values = {"active": None, "ended_at": factories.utc(hours=2), **ended}
    db.write(lambda c: c.execute(sa.update(training_run).where(training_run.c.id == run.id).values(values)))
    return run.id

"""Scoring on a database that takes claims and no scores, as one whose disk is full does."""

import threading
from contextlib import suppress

import pytest
import sqlalchemy as sa
from factories import LEASE_S, MAX_ATTEMPTS, utc
from test_score import GOOD, Lab, lab  # noqa: F401 - the fixture

from marcod.store import results


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_database_that_takes_no_scores_costs_no_image_an_attempt(lab: Lab) -> None:  # noqa: F811
    for name, data in GOOD.items():
        lab.deliver(name, data)
    full = "create trigger full before insert on score begin select raise(abort, 'no room'); end"
    lab.db.write(lambda c: c.exec_driver_sql(full))
    for turn in range(2 * MAX_ATTEMPTS):
        now = utc(turn * 3 * LEASE_S)
        with suppress(sa.exc.IntegrityError):
            lab.scorer(now).run(threading.Event())
        lab.db.write(lambda c, now=now: results.give_up_exhausted(c, max_attempts=MAX_ATTEMPTS, now=now))
    assert lab.failed() == {}
    assert {attempts for attempts, _ in lab.waiting().values()} == {0}
    lab.db.write(lambda c: c.exec_driver_sql("drop trigger full"))
    lab.drain(utc(days=1))
    assert set(lab.scores()) == set(GOOD)

"""`marcod status` on a lab full of troubles, on a healthy one, and while the database is away. Synthetic."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import factories
import pytest
import sqlalchemy as sa
import standings
from lab import Site
from sqlalchemy.engine import make_url
from waiting import wait_until

from marcod.database import workers
from marcod.database.engine import Database
from marcod.database.schema import worker
from marcod.settings.environment import child_environment
from marcod.store import queue
from marcod.watch import status


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_everything_is_on_one_screen(site: Site) -> None:
    site.write()
    db = Database(site.url)
    standings.populate(db, datetime.now(UTC))
    db.close()
    shown = site.ok("status")
    for line in (
        "needs attention",
        "a new image waits for 60 min; scoring is too slow or fails, see the log",
        "lims was not notified of what happened 90 min ago; `marcod notify list` shows why",
        "source rock-imager: its root is offline on imaging; mount the share",
        "source rock-imager: 288 of 292 images not read (their paths are not those of layout rigaku); "
        '288 look like crims; set layout = "crims"; an example: a/b.jpg',
        "layouts     rock-imager: 2 of 292 images not read (a well, drop or date that cannot be)",
        "1 image in quarantine; `marcod queue failed` says why",
        "the images of minstrel are darker; look at its lamp; see `marcod drift`",
        "training run 1 failed: out of memory; see `marcod train show 1`",
        "3 new (longest 60 min), 1 being scored, 1 waiting for another try",
        "8 to be scored again (longest 2 min), 0 being scored, 0 waiting for another try",
    ):
        assert line in shown
    assert re.search(r"champion +marco:1 since .* UTC, trained on rendered drops alone", shown)
    assert re.search(r"minstrel +there +events +imaging +4\d s ago +5 h ago +3 +1 +1\n", shown)
    assert re.search(r"rock-imager +OFFLINE +scans +imaging +9 h ago +5 h ago +0 +0 +0\n", shown)
    assert re.search(r"gpu +8 +score ", shown)

    told = json.loads(site.ok("status", "--json"))
    assert told["new"]["waiting"] == 3
    assert told["outbox"]["lims"]["given_up"] == 1
    assert [state["root_there"] for state in told["watched"]] == [True, False]
    assert told["alarms"][0]["day"] == "2026-01-01"
    assert "token" not in told["training"]
    found = told["findings"][0]
    assert (found["source"], found["reason"], found["files"], found["hint"]) == (
        "rock-imager",
        "not_this_layout",
        288,
        "crims",
    )
    assert [one["attention"] for one in told["findings"]] == [True, False]
    assert "source rock-imager: its root is offline on imaging; mount the share" in told["attention"]
    # The doctor finds the same, whatever this host has in its configuration.
    examined = site.call("doctor", "--no-device", "--json")
    found_too = {one["text"] for one in json.loads(examined.stdout)["findings"] if one["verdict"] != "ok"}
    assert examined.exit_code == 3
    assert all(any(text in line for text in found_too) for line in told["attention"])


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_healthy_lab_and_one_where_nothing_runs(site: Site, tmp_path: Path) -> None:
    site.write()
    nothing = site.ok("status")
    assert "no model is champion; `marcod model promote NAME:VERSION` makes one" in nothing
    assert "no marcod runs; `marcod run` starts one" in nothing

    db, now = Database(site.url), datetime.now(UTC)
    factories.promote(db, factories.register(db, synthetic=False), now)
    for name in ("minstrel", "archive"):
        factories.register_source(db, name)
    walking = standings.state("minstrel", now, walking=True, walked_at=None)
    db.write(lambda c: status.write(c, [walking], now))
    for seen_at in (now - timedelta(minutes=2), now):
        db.write(lambda c, at=seen_at: workers.beat(c, "host:1:a", "host", 1, "watch,score,schedule", at))
    db.close()
    well = site.ok("status")
    assert "all is well" in well
    assert re.search(r"minstrel +there +events +imaging +now, 1,200 files +5 h ago", well)
    assert re.search(r"archive +- +nobody", well)
    assert json.loads(site.ok("status", "--json"))["attention"] == []

    db = Database(site.url)
    source_id = factories.register_source(db, "minstrel")
    factories.record(db, source_id, factories.sightings(3), now)
    lease = factories.claimed(db, now, limit=2)
    db.write(lambda c: queue.release(c, lease, now, "this host has too little memory"))
    db.close()
    told = "2 images wait: this host has too little memory"
    assert told in site.ok("status")
    assert json.loads(site.ok("status", "--json"))["held_up"] == [
        {"error": "this host has too little memory", "images": 2}
    ]
    assert told in site.call("doctor", "--no-device").output

    assert site.call("status", "--watch", "--json").exit_code == 2
    (tmp_path / "empty.sqlite").touch()
    empty = site.call("--database", f"sqlite:///{tmp_path / 'empty.sqlite'}", "status")
    assert (empty.exit_code, "is empty; `marcod run` or `marcod db upgrade` sets it up" in empty.stderr) == (1, True)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_source_is_watched_from_its_watchers_first_report_to_its_end(site: Site) -> None:
    site.write()
    db, now = Database(site.url), datetime.now(UTC)
    factories.promote(db, factories.register(db, synthetic=False), now)
    factories.register_source(db, "minstrel")
    db.write(lambda c: workers.beat(c, "w", "host", 1, "watch,score,schedule", now))
    starting = site.ok("status")
    assert "starting; nothing is known yet of minstrel" in starting
    assert "all is well" not in starting

    db.write(lambda c: status.write(c, [standings.state("minstrel", now)], now))
    assert "all is well" in site.ok("status")

    db.write(lambda c: status.leave(c, "w"))
    db.write(lambda c: workers.leave(c, "w"))
    db.close()
    ended = site.ok("status")
    told = r"source minstrel: no process watches it; the last report came \d+ s ago from imaging; start `marcod run`"
    assert re.search(told, ended)
    assert re.search(r"minstrel +was there +nobody +imaging +4\d s ago +5 h ago +- +- +0\n", ended)


def test_looking_makes_no_database(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "none.sqlite"
    site = Site(tmp_path, f"sqlite:///{file}")
    site.write()
    sentence = f"marcod: there is no database {file}; `marcod scan` or `marcod run` makes it\n"
    for command in (["status"], ["status", "--watch"], ["db", "check"]):
        result = site.call(*command)
        assert (result.exit_code, result.stderr, result.stdout) == (1, sentence, "")
    assert not file.parent.exists()


class Screen:
    """A process on a terminal of 100 columns, and all that it wrote there."""

    def __init__(self, *arguments: str) -> None:
        terminal, inside = pty.openpty()
        self._terminal = os.fdopen(terminal, "rb", buffering=0)
        self._bytes = b""
        environment = child_environment() | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        command = [sys.executable, "-m", "marcod", *arguments]
        self.process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environment)
        os.close(inside)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while more := self._terminal.read(4096):
                self._bytes += more
        except OSError:  # Linux tells the end of a terminal so
            return

    def forget(self) -> None:
        """Look only at what comes from now on."""
        self._bytes = b""

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in re.sub(r"\x1b\[[0-9;?]*\w", "", self._bytes.decode(errors="replace")), text, 30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self._terminal.close()


@contextmanager
def screen(*arguments: str) -> Iterator[Screen]:
    opened = Screen(*arguments)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_it_goes_on_while_the_database_is_offline(site: Site, postgres: Any) -> None:
    site.write()
    name = make_url(site.url).database
    with screen("--config", str(site.config), "status", "--watch") as shown:
        shown.wait_for("no marcod runs")
        postgres.do(f"alter database {name} with allow_connections false")
        postgres.do(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        shown.wait_for("asking again")
        shown.wait_for("as it stood before:")
        postgres.do(f"alter database {name} with allow_connections true")
        site_db = Database(site.url)
        site_db.write(lambda c: c.execute(sa.insert(worker).values(_WORKER | {"seen_at": datetime.now(UTC)})))
        site_db.close()
        shown.forget()
        shown.wait_for("watch,score,schedule")
        shown.process.send_signal(signal.SIGINT)
        assert shown.process.wait(30) == 0


_WORKER = {
    "name": "host:1:a", "host": "host", "pid": 1, "roles": "watch,score,schedule", "marcod_version": "1",
    "started_at": datetime(2026, 1, 1, tzinfo=UTC),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_it_waits_for_a_database_that_was_never_there(site: Site) -> None:
    """Away from a terminal every look is printed below the last one."""
    site.write()
    nowhere = f"postgresql://nobody@/nothing?host={site.folder}"
    arguments = ["--config", str(site.config), "--database", nowhere, "status", "--watch"]
    command = [sys.executable, "-m", "marcod", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment(), text=True) as process:
        assert process.stdout is not None
        assert "asking again" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

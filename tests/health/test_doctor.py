"""The doctor: well is well, and what is not is told with what to do; looking changes nothing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from lab import Site, delivery

from marcod.database import probe, workers
from marcod.database.engine import Database
from marcod.health import machine, places
from marcod.health.doctor import Severity
from marcod.health.snapshot import take_snapshot
from marcod.model.registry import Registry
from marcod.settings import ScoreSettings, loading
from marcod.survey.mounts import file_system
from marcod.synthetic import ImagerStyle
from marcod.watch import status

MACHINE = ("limits", "disk", "clock")
"""Areas that speak of the machine a test runs on."""

NOBODY = 65534


def found(site: Site, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and the findings by area and subject."""
    result = site.call("doctor", "--json", *options)
    findings = json.loads(result.stdout)["findings"]
    return result.exit_code, {f"{f['area']}: {f['subject']}": f for f in findings}


def watched(site: Site, *, ahead: timedelta = timedelta(0), **more: object) -> None:
    """As if a daemon were at work."""
    now = datetime.now(UTC) + ahead
    db = Database(site.url)
    values = {"root_there": True, "observing": True, "trouble": None, "pending": 3, "waiting": 0, "walking": False}
    values |= {"walked_files": 9, "unreadable": 0, "walked_at": now, "walked_whole_at": now, "round_at": now} | more
    state = status.SourceStatus("minstrel", "here:1:x", "here", **values)  # type: ignore[arg-type]
    db.write(lambda c: workers.beat(c, "here:1:x", "here", 1, "watch,score,schedule", now))
    db.write(lambda c: status.write(c, [state], now))
    db.close()


def learned_from_photographs(site: Site) -> None:
    """As if the shipped model had; one of rendered drops alone needs attention wherever it scores."""
    db = Database(site.url)
    db.write(lambda c: c.execute(sa.text("update model_version set synthetic = false")))
    db.close()


@contextmanager
def ordinary_user(folder: Path) -> Iterator[None]:
    """Be somebody whom file modes bind (root is not, everybody else is already), in a folder that all may reach."""
    # pytest makes its folders for their owner alone.
    modes = {path: path.stat().st_mode for path in folder.parents if not path.stat().st_mode & 0o001}
    for path, mode in modes.items():
        path.chmod(mode | 0o011)
    root = os.geteuid() == 0
    if root:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def lab(site: Site) -> Site:
    delivered = delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.05)
    delivered.write(site.folder / "in")
    site.add_source("minstrel", site.folder / "in", "rigaku")
    site.write(models={"folder": str(site.folder / "models")}, train={"folder": str(site.folder / "training")})
    site.ok("scan")
    return site


def test_all_is_well(lab: Site) -> None:
    # Of a host whose clock is ahead, so that no load of this machine makes its heartbeats old.
    watched(lab, ahead=timedelta(minutes=30))
    learned_from_photographs(lab)
    code, findings = found(lab)
    wrong = {name: f for name, f in findings.items() if f["verdict"] != "ok"}
    assert not [f for f in wrong.values() if f["area"] not in MACHINE]
    assert code == (3 if wrong else 0)
    assert findings["models: lite0:1"]["text"].startswith("champion; checksums and golden")
    assert findings["device: test batch"]["text"].startswith("4 images in ")
    assert "fully scanned" in findings["sources: minstrel: watching"]["text"]
    assert findings["sources: minstrel: observer"]["text"].startswith("inotify on ")
    assert findings["sources: minstrel: last file"]["text"].startswith("20")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_is_wrong_is_reported_with_what_to_do(lab: Site) -> None:
    watched(lab, root_there=False)
    (lab.folder / "in").rename(lab.folder / "unmounted")
    db = Database(lab.url)
    db.write(lambda c: c.execute(sa.text("update worker set roles = 'watch'")))
    db.close()
    code, findings = found(lab, "--no-device")
    assert code == 3
    root = findings["sources: minstrel: root"]
    assert root["verdict"] == "broken"
    assert "cannot be listed" in root["text"]
    assert findings["sources: minstrel: watching"]["text"] == "its root is offline on here"
    assert findings["workers: score"]["advice"] == "start `marcod run`, or its unit"
    assert "workers: watch" not in findings
    shown = lab.call("doctor", "--no-device").stdout
    assert "BROKEN  minstrel: root: " in shown
    assert "mount it, or let this user read it" in shown


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_layout_that_differs_from_the_recorded_one_is_broken_as_it_is_for_the_daemon(lab: Site) -> None:
    lab.lines.clear()
    lab.add_source("minstrel", lab.folder / "in", "xchem")
    lab.write()
    _, findings = found(lab, "--no-device")
    assert findings["sources: minstrel: layout"]["verdict"] == "broken"
    assert "recorded with layout rigaku" in findings["sources: minstrel: layout"]["text"]
    refused = lab.call("scan")
    assert refused.exit_code == 2
    assert findings["sources: minstrel: layout"]["text"] in refused.stderr


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_watcher_that_hangs_shows(lab: Site) -> None:
    watched(lab, round_at=datetime(2026, 1, 1, tzinfo=UTC))
    _, findings = found(lab, "--no-device")
    assert "its watcher on here hangs since 00:00 UTC" in findings["sources: minstrel: watching"]["text"]


def test_a_database_without_tables_stays_so(empty_db_url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, empty_db_url)
    site.write()
    db = Database(empty_db_url)
    db.read(lambda c: c.execute(sa.text("select 1")))
    code, findings = found(site)
    assert code == 3
    assert findings["database: schema"]["advice"] == "`marcod run` or `marcod db upgrade` sets it up"
    assert db.read(lambda c: sa.inspect(c).get_table_names()) == []
    db.close()


@pytest.mark.slow
def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    site = Site(tmp_path, "postgresql://somebody:secret@127.0.0.1:1/marcod")
    site.write()
    code, findings = found(site)
    assert code == 3
    assert findings["database: connection"]["verdict"] == "broken"
    assert "secret" not in json.dumps(findings)
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'none.sqlite'}")
    site.add_source("outer", tmp_path, "rigaku")
    site.add_source("inner", tmp_path / "in", "rigaku")
    site.write()
    _, findings = found(site)
    assert "makes it" in findings["database: connection"]["text"]
    assert "lies inside" in findings["sources: roots"]["text"]
    assert not (tmp_path / "none.sqlite").exists()


def test_where_each_value_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'none.sqlite'}")
    site.write()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "MARCOD_MAIL__SENDER").write_text("lab@example.org")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("MARCOD_SCORE__RETRY_S", "7")
    result = site.call("--log-level", "error", "doctor", "--json")
    findings = [f for f in json.loads(result.stdout)["findings"] if f["area"] == "configuration"]
    origins = {key: f["subject"] for f in findings for key in f["text"].split(", ")}
    assert origins["watch.settle_s"] == f"from {site.config}"
    assert origins["score.retry_s"] == "from variable MARCOD_SCORE__RETRY_S"
    assert origins["mail.sender"] == f"from a credential in {credentials}"
    assert origins["log.level"] == "from the command line"
    assert "score.max_attempts" not in origins


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_rights_that_are_missing_are_named(db: Database) -> None:
    role = f"marcod_nobody_{os.getpid()}"

    def as_nobody(connection: sa.Connection) -> list[str]:
        with connection.begin_nested() as inner:
            connection.exec_driver_sql(f"create role {role}")
            connection.exec_driver_sql(f"set local role {role}")
            lacking = probe.lacking_rights(connection)
            inner.rollback()
        return lacking

    assert db.read(probe.lacking_rights) == []
    assert {"INSERT on score", "UPDATE on job"} <= set(db.write(as_nobody))


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_file_that_may_only_be_read(site: Site, db: Database) -> None:
    site.write()
    site.folder.chmod(0o755)
    site.config.chmod(0o644)
    file = site.folder.parent / "marcod.sqlite"
    file.chmod(0o444)
    db.read(probe.version)
    # Libraries may be where that user cannot read them, and are loaded by then.
    found(site, "--no-device")
    with ordinary_user(site.folder):
        _, findings = found(site, "--no-device")
    rights = findings["database: rights"]
    assert (rights["verdict"], rights["text"]) == (
        "attention",
        "no right to change anything, enough for who only looks",
    )
    assert "the right to write the file and its folder" in rights["advice"]
    assert findings["database: file"]["text"] == f"every user of this host may read {file}"

    # Without somebody at work on it, there is no -wal beside it to be read.
    db.close()
    file.parent.chmod(0o555)
    with ordinary_user(site.folder):
        _, findings = found(site, "--no-device")
    file.parent.chmod(0o755)
    assert findings["database: rights"] == rights
    assert sorted(path.name for path in file.parent.iterdir()) == ["marcod.sqlite", "site"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_writer_at_work_is_not_a_lack_of_rights(db: Database) -> None:
    def busy(_: sa.Connection) -> list[str]:
        return db.read(probe.lacking_rights)

    assert db.write(busy) == []


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_folders_that_may_not_be_searched(site: Site) -> None:
    closed = site.folder / "closed"
    for name in ("in", "models", "training", "base"):
        (closed / name).mkdir(parents=True)
    site.add_source("minstrel", closed / "in", "rigaku")
    site.write(models={"folder": str(closed / "models")}, train={"folder": str(closed / "training")})
    for path in (site.folder, site.config, site.folder.parent, site.folder.parent / "marcod.sqlite"):
        path.chmod(0o777)
    closed.chmod(0o000)
    with ordinary_user(site.folder):
        assert file_system(closed / "in") == file_system(site.folder)
        _, findings = found(site)
        unreachable = site.call("--database", f"sqlite:///{closed}/base/marcod.sqlite", "doctor").stdout
    closed.chmod(0o755)
    assert "cannot be listed: Permission denied" in findings["sources: minstrel: root"]["text"]
    assert findings["models: folder"]["text"] == f"{closed / 'models'} cannot be looked at: Permission denied"
    assert findings["disk: training"]["text"] == f"{closed} cannot be written by this user"
    assert f"the database {closed}/base/marcod.sqlite cannot be looked at: Permission denied" in unreachable


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_device_without_memory_is_reported(db: Database, tmp_path: Path) -> None:
    Registry(db, tmp_path).ensure_champion(datetime.now(UTC))
    site = Site(tmp_path, str(db.url))
    site.write()
    endless = ScoreSettings.model_construct(batch_size=10**12)
    *_, last = machine.device(db, loading.load(site.config).model_copy(update={"score": endless}))
    assert (last.verdict, last.subject) == (Severity.BROKEN, "test batch")
    assert last.text.startswith("Unable to allocate ")
    assert "\n" not in last.text


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_a_share_that_hangs_hangs_nobody(db: Database, tmp_path: Path) -> None:
    """A pipe without a writer stands for it: who opens it waits in the kernel."""
    share, well = tmp_path / "share", tmp_path / "well"
    os.mkfifo(share)
    well.mkdir()
    (well / "plate").touch()
    site = Site(tmp_path, str(db.url))
    for root in (share, well):
        site.add_source(root.name, root, "rigaku")
    site.write()

    def look(root: Path) -> places.Seen:
        if root == share:
            share.open("rb").close()
        return places.look_at(root)

    told = places.sources(db, loading.load(site.config), db.read(take_snapshot, db.now()), limit_s=1.0, look=look)
    findings = {finding.subject: finding for finding in told}
    (tmp_path / "share").open("wb").close()
    assert findings["share: root"].verdict is Severity.BROKEN
    assert findings["share: root"].text == f"{share} does not answer within 1 s"
    assert findings["share: root"].advice.startswith("check the file server")
    assert "share: last file" in findings
    assert findings["well: root"].verdict is Severity.OK


@pytest.mark.slow
def test_a_password_on_the_command_line_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a command by hand leaves memory of the card to the daemon."""
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    url = "postgresql://somebody:secret@127.0.0.1:1/marcod"
    site = Site(tmp_path, url)
    site.write()
    assert found(site)[1]["configuration: database"]["verdict"] == "ok"
    shown = site.call("--database", url, "doctor")
    assert "which every user of this host may read" in shown.stdout
    assert "secret" not in shown.stdout
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_file_systems_are_known_by_name() -> None:
    assert file_system(Path("/proc/self/status")) == "proc"
    assert file_system(Path("/nowhere/at/all")) == file_system(Path("/"))


def test_a_folder_for_metrics_that_is_not_there(tmp_path: Path) -> None:
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'none.sqlite'}")
    site.write(metrics={"textfile": str(tmp_path / "collector" / "marcod.prom")})
    assert "ReadWritePaths=" in found(site)[1]["disk: metrics.textfile"]["advice"]
    (tmp_path / "collector").mkdir()
    assert found(site)[1]["disk: metrics.textfile"]["verdict"] == "ok"

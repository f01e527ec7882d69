"""Reading an SQLite file that others write, that nobody has open, or that a crash left: nothing is left beside it."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import rows, utc
from fault_tools import ordinary_user

from marcod.database.engine import PERSON, Database
from marcod.database.schema import audit
from marcod.errors import StoreError
from marcod.store import audit_log

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def note(connection: sa.Connection, subject: str) -> None:
    audit_log.write(connection, "test", "try", subject, {}, utc())


def subjects(db: Database) -> list[str]:
    return sorted(row[0] for row in rows(db, sa.select(audit.c.subject)))


@pytest.fixture
def file(db: Database, tmp_path: Path) -> Path:
    """A database with one row that nobody has open, in a folder of its own."""
    db.write(lambda c: note(c, "before"))
    db.close()
    folder = tmp_path / "alone"
    folder.mkdir(mode=0o755)
    return Path(shutil.move(str(db.url.database), folder / "marcod.sqlite"))


@pytest.fixture
def reader(file: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{file}", patience=PERSON, read_only=True)
    yield database
    database.close()


def there(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def closed(file: Path) -> None:
    """Let nobody but root write what is there."""
    for path in file.parent.iterdir():
        path.chmod(0o444)
    file.parent.chmod(0o555)


def test_nothing_is_left_next_to_a_file_that_no_process_has_open(file: Path, reader: Database) -> None:
    assert subjects(reader) == ["before"]
    assert there(file) == ["marcod.sqlite"]
    reader.close()
    assert there(file) == ["marcod.sqlite"]


@pytest.mark.slow
def test_who_may_write_nothing_reads_the_same(file: Path, reader: Database, tmp_path: Path) -> None:
    closed(file)
    with ordinary_user(tmp_path):
        assert subjects(reader) == ["before"]
        with pytest.raises(StoreError, match="readonly database"):
            reader.write(lambda c: note(c, "mine"))
    assert there(file) == ["marcod.sqlite"]


def test_what_a_living_writer_has_not_moved_into_the_file_yet_is_read(
    file: Path, reader: Database, tmp_path: Path
) -> None:
    with closing(Database(f"sqlite:///{file}")) as writer:
        writer.write(lambda c: note(c, "in the -wal"))
        names = there(file)
        closed(file)
        with ordinary_user(tmp_path):
            assert subjects(reader) == ["before", "in the -wal"]
            reader.close()
        assert there(file) == names
        file.parent.chmod(0o755)


def test_a_writer_who_comes_between_has_the_whole_transaction_repeated(file: Path, reader: Database) -> None:
    seen: list[list[str]] = []

    def work(connection: sa.Connection) -> list[str]:
        found = sorted(connection.execute(sa.select(audit.c.subject)).scalars())
        if not seen:
            with closing(Database(f"sqlite:///{file}")) as writer:
                writer.write(lambda c: note(c, "meanwhile"))
        seen.append(found)
        return found

    assert reader.read(work) == ["before", "meanwhile"]
    assert seen == [["before"], ["before", "meanwhile"]]


def test_an_answer_after_a_writer_left_is_of_the_file_as_it_is(file: Path, reader: Database) -> None:
    assert subjects(reader) == ["before"]
    with closing(Database(f"sqlite:///{file}")) as writer:
        writer.write(lambda c: note(c, "later"))
        assert subjects(reader) == ["before", "later"]
    assert subjects(reader) == ["before", "later"]


CRASH = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("update audit set subject = 'from the crash'")
connection.commit()
os._exit(9)
"""


def crashed(file: Path) -> None:
    """A process writes and is gone without closing."""
    assert subprocess.run([sys.executable, "-c", CRASH, str(file)]).returncode == 9
    assert Path(f"{file}-wal").stat().st_size > 0


def test_what_a_crash_left_is_read(file: Path, reader: Database, tmp_path: Path) -> None:
    crashed(file)
    names = there(file)
    closed(file)
    with ordinary_user(tmp_path):
        assert subjects(reader) == ["from the crash"]
    assert there(file) == names


def test_what_a_crash_left_and_cannot_be_read_is_one_sentence(file: Path, reader: Database, tmp_path: Path) -> None:
    crashed(file)
    Path(f"{file}-shm").unlink()
    closed(file)
    sentence = r"marcod.sqlite-wal holds what a marcod that crashed .* let the owner of the file start marcod"
    with ordinary_user(tmp_path), pytest.raises(StoreError, match=sentence):
        subjects(reader)
    file.parent.chmod(0o755)
    for path in file.parent.iterdir():
        path.chmod(0o644)
    # The owner reads, and from then on everybody can.
    assert subjects(reader) == ["from the crash"]
    reader.close()
    closed(file)
    with ordinary_user(tmp_path):
        assert subjects(reader) == ["from the crash"]


def test_a_file_that_this_user_may_not_read_is_one_sentence(file: Path, reader: Database, tmp_path: Path) -> None:
    file.chmod(0o000)
    with ordinary_user(tmp_path), pytest.raises(StoreError, match="Permission denied; let this user read it"):
        subjects(reader)


@pytest.mark.slow
def test_a_file_that_another_program_has_for_itself(file: Path, reader: Database) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("pragma journal_mode = delete")
        other.execute("begin exclusive")
        with pytest.raises(StoreError, match=r"database is locked; another program writes to it for long"):
            subjects(reader)
        other.execute("commit")
    assert subjects(reader) == ["before"]


def test_a_missing_file_is_not_made(empty_db_url: str, tmp_path: Path) -> None:
    reader = Database(empty_db_url.replace("empty", "none/empty"), patience=PERSON, read_only=True)
    with pytest.raises(StoreError, match=r"there is no .*empty\.sqlite"):
        subjects(reader)
    assert not list(tmp_path.iterdir())


def test_a_reader_takes_no_lock_from_the_others_of_its_process(file: Path, reader: Database) -> None:
    """Without its lock another one was shown a file for ever that the last writer had thrown away."""
    with closing(Database(f"sqlite:///{file}")) as other:
        assert subjects(other) == ["before"]
        assert subjects(reader) == ["before"]
        writes = (
            "insert into audit (at, actor, action, subject) values ('2026-01-01 12:00:00.000000', 'a', 'b', 'later')"
        )
        program = "import contextlib, sqlite3, sys\nwith contextlib.closing(sqlite3.connect(sys.argv[1])) as c:\n"
        program += " c.execute(sys.argv[2])\n c.commit()"
        for times in (1, 2):
            subprocess.run([sys.executable, "-c", program, str(file), writes], check=True)
            assert subjects(other) == ["before", *["later"] * times]

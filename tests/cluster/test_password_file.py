"""The password of the database comes from a file that libpq reads, so that it stands in no job and no configuration."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from marcod.database.engine import PERSON, Database
from marcod.errors import StoreError

pytestmark = pytest.mark.parametrize("backend", ["postgres"], indirect=True)


@pytest.fixture
def user(postgres: Any, db: Database) -> Iterator[str]:
    """A user whom the server asks for a password, which is ``secret``."""
    name = f"marcod_asked_{uuid4().hex[:8]}"
    [(path,)] = db.read(lambda c: c.exec_driver_sql("show hba_file").all())
    rules, before = Path(path), Path(path).read_text()
    postgres.do(f"create role {name} login superuser password 'secret'")
    rules.write_text(f"local all {name} scram-sha-256\nhost all {name} all scram-sha-256\n{before}")
    postgres.do("select pg_reload_conf()")
    yield name
    rules.write_text(before)
    postgres.do("select pg_reload_conf()")
    postgres.do(f"drop role {name}")


def reach(url: URL) -> None:
    with closing(Database(url.render_as_string(hide_password=False), patience=PERSON)) as db:
        db.reach()


def test_a_password_is_read_from_its_file(
    db: Database, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that PGPASSFILE names; by default it is ~/.pgpass."""
    url, file = db.url.set(username=user, password=None), tmp_path / "pgpass"
    monkeypatch.setenv("PGPASSFILE", str(file))
    with pytest.raises(StoreError, match="give the password"):
        reach(url)
    file.write_text(f"*:*:{db.url.database}:{user}:secret\n")
    file.chmod(0o600)
    reach(url)

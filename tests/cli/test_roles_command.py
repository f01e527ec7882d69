"""`marcod db roles`, as an administrator calls it."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.database.schema import audit


@pytest.fixture
def names(postgres: Any) -> Iterator[tuple[str, str]]:
    """Two names that nobody has; the roles are gone at the end."""
    lims, app = (f"{word}_{uuid4().hex[:8]}" for word in ("lims", "app"))
    yield lims, app
    for name in (lims, app):
        postgres.do(f"drop role if exists {name}")


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_it_says_what_it_did(
    names: tuple[str, str], db: Database, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    lims, app = names
    first = CliRunner().invoke(cli, ["db", "roles", "--lims", lims, "--app", app])
    assert first.exit_code == 0, first.output
    assert (
        f"made role {lims}\nmade role {app}\n{lims} reads lims_drop_mark_v1, lims_drop_v1, lims_hit_v1" in first.stdout
    )
    assert f'taken from everybody: temporary on database "{db.url.database}"' in first.stdout
    again = CliRunner().invoke(cli, ["db", "roles", "--lims", lims, "--app", app, "--json"])
    told = json.loads(again.stdout)
    assert (told["lims"], told["created"], told["taken"], told["left"]) == (lims, [], [], [])
    rows = db.read(lambda c: c.execute(sa.select(audit.c.action, audit.c.subject)).all())
    assert [tuple(row) for row in rows] == [("roles", lims)] * 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_sqlite_has_no_roles(db_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    result = CliRunner().invoke(cli, ["db", "roles"])
    assert result.exit_code == 2
    assert "SQLite has no roles" in result.stderr
    assert 'marcod.sqlite?mode=ro"' in result.stderr
    assert "Traceback" not in result.stderr

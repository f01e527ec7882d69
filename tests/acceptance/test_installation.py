"""The documented installation: the wheel, and PostgreSQL's roles and database as an administrator makes them."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.errors import StoreError

ROOT = Path(__file__).resolve().parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def _texts() -> Iterator[tuple[Path, str]]:
    for pattern in ("README.md", "docs/*.md", "marcod/**/*.py", "marcod/**/*.j2", "systemd/*"):
        for path in ROOT.glob(pattern):
            yield path, path.read_text(encoding="utf-8")


def test_nothing_sends_people_to_an_index_that_has_no_marcod() -> None:
    wrong = re.compile(r"""pip3?\s+install\s+(?:-\S+\s+)*['"]?marcod\b""")
    assert [path.name for path, text in _texts() if wrong.search(text)] == []


def test_the_documented_wheel_is_the_one_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for _, text in _texts() for name in re.findall(r"dist/(marcod-\S+?\.whl)", text)}
    assert named == {f"marcod-{project['version']}-py3-none-any.whl"}
    extras = {name for _, text in _texts() for name in re.findall(r"\.whl\[(\w+)\]", text)}
    assert extras <= set(project["optional-dependencies"])
    assert extras


class Administrator:
    """Administrator at the server's prompt who follows docs/operating.md, under names of their own."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.suffix = uuid4().hex[:8]
        roles = ("marcod_owner", "marcod_daemon", "marcod_app", "marcod_lims")
        self.roles = {name: f"{name}_{self.suffix}" for name in roles}
        self.database = f"marcod_{self.suffix}"

    def run_block(self, number: int) -> None:
        """Run one of the page's SQL blocks."""
        block = re.findall(r"```sql\n(.*?)```", OPERATING, re.DOTALL)[number]
        for name, own in self.roles.items():
            block = re.sub(rf"\b{name}\b", own, block)
        block = block.replace("create database marcod owner", f"create database {self.database} owner")
        for statement in block.split(";\n"):
            if statement.strip():
                self._server.do(statement)

    def url(self, role: str, password: str) -> str:
        url = self._server._url.set(username=self.roles[role], password=password, database=self.database)
        return str(url.render_as_string(hide_password=False))

    def clean_up(self) -> None:
        self._server.do(f"drop database if exists {self.database} with (force)")
        for own in self.roles.values():
            self._server.do(f"drop role if exists {own}")


@pytest.fixture
def administrator(postgres: Any) -> Iterator[Administrator]:
    found = Administrator(postgres)
    yield found
    found.clean_up()


def test_the_documented_roles_and_database_serve_the_daemon(
    administrator: Administrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator.run_block(0)
    monkeypatch.setenv("MARCOD_STORE__URL", administrator.url("marcod_owner", "CHANGE-ME-1"))
    assert "marcod db upgrade\nmarcod db roles\n" in OPERATING
    roles = ["--lims", administrator.roles["marcod_lims"], "--app", administrator.roles["marcod_app"]]
    for command in (["db", "upgrade"], ["db", "roles", *roles]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
    administrator.run_block(1)
    daemon_url = administrator.url("marcod_daemon", "CHANGE-ME-2")
    monkeypatch.setenv("MARCOD_STORE__URL", daemon_url)
    done = CliRunner().invoke(cli, ["db", "check"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(cli, ["queue", "retry"]).exit_code == 0
    db = Database(daemon_url)
    try:
        champion = db.read(lambda c: c.exec_driver_sql("select count(*) from model_alias").scalar_one())
        assert champion == 1, "the daemon's user makes the shipped bundle champion"
        with pytest.raises(StoreError, match="permission denied"):
            db.write(lambda c: c.exec_driver_sql("create table other (id integer)"))
    finally:
        db.close()

"""`marcod web user`: accounts by the command line."""

import json

import pytest
from click.testing import CliRunner, Result
from lab import Site

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.web import accounts, passwords

SECRET = "correct horse battery"


def call(site: Site, *words: str, given: str = "") -> Result:
    return CliRunner().invoke(cli, ["--config", str(site.config), "web", "user", *words], input=given)


def test_people_are_added_listed_changed_and_removed(site: Site, db: Database) -> None:
    site.write()
    added = call(site, "add", "ann", given=f"{SECRET}\n")
    assert (added.exit_code, added.stdout) == (0, "ann is a labeller of the page\n")
    assert "web.access" in added.stderr
    assert call(site, "add", "vera", "--role", "viewer", "--no-password").exit_code == 0
    twice = call(site, "add", "ann", given=f"{SECRET}\n")
    assert (twice.exit_code, twice.stderr) == (
        1, "marcod: ann is known already; `marcod web user password ann` gives another password\n",
    )  # fmt: skip
    db.write(accounts.open_session, "ann", db.now())
    listed = {one["name"]: one for one in json.loads(call(site, "list", "--json").stdout)}
    assert (listed["ann"]["role"], listed["ann"]["has_password"], listed["ann"]["sessions"]) == ("labeller", True, 1)
    assert (listed["vera"]["role"], listed["vera"]["has_password"]) == ("viewer", False)
    assert SECRET not in str(listed)
    changed = call(site, "password", "ann", given="another long one\n")
    assert changed.stdout == "ann has another password; 1 session ended\n"
    assert passwords.matches("another long one", db.read(accounts.kept_password, "ann"))
    db.write(accounts.open_session, "ann", db.now())
    assert call(site, "logout", "ann").stdout == "1 session of ann ended\n"
    assert call(site, "remove", "ann").exit_code == 0
    gone = call(site, "remove", "ann")
    assert (gone.exit_code, gone.stderr) == (1, "marcod: there is no account 'ann'; the accounts are vera\n")
    acts = db.read(lambda c: c.exec_driver_sql("select action, subject from audit order by id").all())
    assert [tuple(act) for act in acts if act[0].startswith("web")] == [
        ("web-user-add", "ann"), ("web-user-add", "vera"), ("web-user-password", "ann"), ("web-user-remove", "ann"),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("ann", "short\n", "at least 10 characters"),
        ("ann", "", "no password was given"),
        (" ann", f"{SECRET}\n", "is no name"),
        ("a\nn", f"{SECRET}\n", "is no name"),
    ],
)
def test_what_cannot_be_an_account_is_refused(name: str, given: str, reason: str, site: Site, db: Database) -> None:
    site.write()
    answer = call(site, "add", name, given=given)
    assert answer.exit_code == 1
    assert reason in answer.stderr
    assert db.read(accounts.accounts) == []

"""People who may only read: every command that reads answers them as it answers the owner, and leaves nothing behind.

On PostgreSQL they log in as a member of the role that `marcod db roles` makes for a LIMS; on SQLite they are a user of
the host who may write neither the file nor its folder.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import factories
import pytest
from click.testing import Result
from fault_tools import ordinary_user
from lab import Site, commands
from sqlalchemy.engine import make_url

from marcod.cli import cli
from marcod.database import roles
from marcod.database.engine import Database
from marcod.model.registry import Registry
from marcod.store import queue
from marcod.training import run_rows

PLATES: Final = ("CI030117", "CI030118")
PLATE: Final = PLATES[0]

READS: Final[dict[str, tuple[str, ...]]] = {
    "db check": (),
    "doctor": ("--no-device",),
    "drift": ("--days", "2"),
    "hits": (),
    "label inbox": (),
    "label list": (),
    "label suspects": (),
    "label vocabularies": (),
    "model evaluate": ("champion", "--from-database", "--split", "all"),
    "model list": (),
    "model show": ("champion",),
    "model verify": ("gone:1",),
    "notify list": (),
    "plate export": (PLATE,),
    "plate heatmap": (PLATE, "A2", "--out", "OUT.png"),
    "plate list": (),
    "plate show": (PLATE, "--history", "--all-drops"),
    "queue failed": (),
    "queue gone": ("--all",),
    "queue status": (),
    "rescore list": ("--every",),
    "review recall": (),
    "source list": (),
    "source show": ("lab",),
    "status": (),
    "train list": (),
    "train show": ("1",),
}
"""Commands that read a database, and what they are asked here."""

OWNED: Final[dict[str, tuple[str, ...]]] = {"web user list": ()}
"""Commands that read what people with accounts alone are kept in: with PostgreSQL readers have no right to it."""

MISSING: Final = {
    "label suspects": "there is no labelled image to look at",
    "model verify": "1 of 1 cannot serve: gone:1",
    "plate heatmap": "is gone, so the heat map has no image",
}
"""Ends, without files, of what would load a model after it has read everything; ``test_heatmap.py`` goes on to it."""

WRITES: Final[dict[str, tuple[str, ...]]] = {
    "dataset pack": ("OUT",),
    "db backup": ("OUT.sqlite",),
    "db restore": ("OUT.sqlite", "--yes"),
    "db roles": (),
    "db thin": (),
    "db upgrade": (),
    "label add": (PLATE, "A1", "Clear"),
    "label import": ("labels.csv",),
    "label withdraw": (PLATE, "A1"),
    "model calibrate": ("champion", "--from-database", "--recall", "0.9"),
    "model combine": ("lite0:1", "small:1"),
    "model convert": ("lite0:1", "--coverage", "whole"),
    "model challenge": ("--none",),
    "model fetch": ("marco",),
    "model import": ("somewhere",),
    "model promote": ("champion",),
    "model remove": ("champion",),
    "model rollback": (),
    "notify retry": (),
    "plate import": ("plates.csv",),
    "queue accept": ("--all",),
    "queue retry": (),
    "rescore": ("--all",),
    "rescore cancel": ("1",),
    "rescore pause": ("1",),
    "rescore resume": ("1",),
    "retrain": (),
    "review add": (PLATE, "A3"),
    "review export": ("OUT",),
    "review import": ("OUT",),
    "review next": (),
    "review queue": (),
    "run": (),
    "scan": (),
    "score": (),
    "source forget": ("lab", "--yes"),
    "source merge": ("lab", "other", "--yes"),
    "source rename": ("lab", "other", "--yes"),
    "train settle": (),
    "web user add": ("ann", "--no-password"),
    "web user logout": ("ann",),
    "web user password": ("ann",),
    "web user remove": ("ann",),
}
"""Commands that change a database or make a file of their own."""

APART: Final = frozenset(
    {
        "config check",
        "config show",
        "demo",
        "explain",
        "install-systemd",
        "model train-synthetic",
        "notify test",
        "setup",
        "web",
    }
)
"""Commands that look into no database of the lab."""

REFUSED: Final = ("label add", "review next", "scan", "score")
"""Commands that would change the database in the first step they take on the lab of these tests."""


def test_every_command_is_known_to_read_or_to_write() -> None:
    declared = [*READS, *OWNED, *WRITES, *APART]
    assert len(declared) == len(set(declared))
    assert set(commands(cli)) == set(declared)


@dataclass(frozen=True)
class Lab:
    """A lab whose plates were scored, and how a person who may only read comes to it."""

    owner: Site
    reader: Site
    be_reader: Callable[[], AbstractContextManager[None]]

    def ask(self, name: str, *more: str) -> Result:
        """One command by the person who may only read."""
        with self.be_reader():
            return self.reader.call(*asked(self.owner, name), *more)


def asked(site: Site, name: str) -> list[str]:
    arguments = (READS | OWNED | WRITES)[name]
    return [*name.split(), *(text.replace("OUT", str(site.folder.parent / "out" / "out")) for text in arguments)]


@pytest.fixture
def lab(site: Site, backend: str, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two plates of four drops: scored, labelled, one image given up, one training run, one audit."""
    prepare(site)
    (site.folder.parent / "out").mkdir(mode=0o777)
    (site.folder.parent / "out").chmod(0o777)
    if backend == "sqlite":
        yield from sqlite_lab(site)
    else:
        yield from postgres_lab(site, request.getfixturevalue("postgres"))


def prepare(site: Site) -> None:
    """Score and label by hand; the files of the images are not there, which commands that load a model find last."""
    site.add_source("lab", site.folder / "plates", "rigaku", wells=24)
    site.write(models={"folder": str(site.folder / "models")}, train={"folder": str(site.folder / "train")})
    (site.folder / "plates").mkdir()
    (site.folder / "labels.csv").write_text("image,label\n")
    (site.folder / "plates.csv").write_text("plate,project\n")
    with closing(Database(site.url)) as db:
        now = datetime.now(UTC)
        champion = Registry(db).ensure_champion(now)
        factories.register(db, "gone")
        source_id = factories.register_source(db, "lab")
        for plate in PLATES:
            factories.record(db, source_id, factories.sightings(4, plate, captured_at=now), now)
        lease = factories.claimed(db, now)
        bad = [queue.Failure(lease.claims[-1], "truncated", retryable=False)]
        factories.finish(db, lease, champion, now, scores=scores, failures=bad)
        begun = {"cause": "by hand", "actor": "ann", "recipe": "adapt", "options": {}, "parent": str(champion)}
        place = {"host": "here", "folder": str(site.folder), "pid": 7, "token": "t", "now": now}
        db.write(lambda c: run_rows.begin(c, **begun, **place))
        insert = "insert into lims_label_inbox_v1 (plate, well, label, person) values ('X9', 'A01', 'Clear', 'cy')"
        db.write(lambda c: c.exec_driver_sql(insert))
    site.ok("label", "add", PLATE, "A1", "Crystals", "--person", "ann")
    site.ok("review", "queue", "--new-audit")


def scores(claim: queue.Claim) -> tuple[float, float, float, float]:
    return factories.CRYSTALS if "A02" in claim.path else factories.CLEAR


def sqlite_lab(site: Site) -> Iterator[Lab]:
    base = site.folder.parent
    # Libraries may be where that user cannot read them, and are loaded by then.
    assert list(commands(cli))
    file = Path(str(make_url(site.url).database))
    for path in site.folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    site.folder.chmod(0o755)
    file.chmod(0o444)
    base.chmod(0o555)

    @contextmanager
    def reader() -> Iterator[None]:
        with ordinary_user(base / "out"):
            yield

    yield Lab(site, site, reader)
    base.chmod(0o755)


def postgres_lab(site: Site, server: Any) -> Iterator[Lab]:
    tag = uuid4().hex[:8]
    lims, app, person = f"lims_{tag}", f"app_{tag}", f"person_{tag}"
    db = Database(site.url)
    db.write(lambda c: roles.make_roles(c, lims, app))
    db.close()
    server.do(f"create role {person} login password 'p'")
    server.do(f"grant {lims} to {person}")
    url = make_url(site.url).set(username=person, password="p").render_as_string(hide_password=False)
    reader = replace(site, url=url, folder=site.folder.parent / "reader")
    reader.folder.mkdir()
    reader.config.write_text(site.config.read_text().replace(repr(site.url), repr(url)))
    yield Lab(site, reader, nullcontext)
    with closing(Database(site.url)) as db:
        db.write(lambda c: c.exec_driver_sql(f"drop owned by {lims}, {app}"))
    for role in (person, lims, app):
        server.do(f"drop role {role}")


def files(site: Site) -> dict[Path, tuple[int, int]]:
    """Everything that there is, but what commands were told to write."""
    found = (path for path in site.folder.parent.rglob("*") if "out" not in path.parts)
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def told(result: Result, lab: Lab) -> tuple[int, str]:
    """Exit code and output, without names of users and what the time changes."""
    text = result.stdout
    for site in (lab.owner, lab.reader):
        text = text.replace(str(make_url(site.url)), "DATABASE").replace(str(site.config), "CONFIG")
    return result.exit_code, re.sub(r" +", " ", re.sub(r"# (s|min|h)\b", "# s", re.sub(r"\d+(\.\d+)?", "#", text)))


def test_who_may_only_read_gets_every_answer_of_the_owner(lab: Lab) -> None:
    answers = {name: lab.owner.call(*asked(lab.owner, name)) for name in READS if name != "doctor"}
    before = files(lab.owner)
    for name, owner in answers.items():
        result = lab.ask(name)
        assert owner.exit_code in (0, 3) or MISSING.get(name, "?") in owner.stderr, (name, owner.output)
        assert told(result, lab) == told(owner, lab), (name, result.output, result.exception)
    examined = lab.ask("doctor")
    assert examined.exit_code == 3
    assert "no right to change anything, enough for who only looks" in examined.stdout, examined.output
    assert files(lab.owner) == before


def test_a_user_who_may_only_read_is_refused_by_what_would_change_something(lab: Lab) -> None:
    before = files(lab.owner)
    for name in REFUSED:
        result = lab.ask(name)
        assert result.exit_code == 1, (name, result.output, result.exception)
        assert "may only read" in result.stderr, (name, result.output)
        assert (result.stderr.count("\n"), result.stderr.startswith("marcod: ")) == (1, True), (name, result.stderr)
    assert files(lab.owner) == before


def test_accounts_are_the_owners(lab: Lab, backend: str) -> None:
    found = lab.ask("web user list", "--json")
    if backend == "sqlite":
        assert (found.exit_code, found.stdout.strip()) == (0, "[]")
    else:
        assert found.exit_code == 1
        assert "web_user" in found.stderr
        assert "marcod db roles" in found.stderr

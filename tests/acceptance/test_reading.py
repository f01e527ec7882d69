"""People who may only read: every command that reads answers them as it answers the owner, and leaves nothing behind.

On PostgreSQL they log in as a member of the role that `marcod db roles` makes for a LIMS; on SQLite they are a user of
the host who may write neither the file nor its folder.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click
import factories
import pytest
import sqlalchemy as sa
from click.testing import Result
from fault_tools import ordinary_user
from lab import SIZE, Delivery, Site
from sqlalchemy.engine import make_url

from marcod.cli import cli
from marcod.cli.lazy import loaded
from marcod.domain import PLATE_FORMATS
from marcod.errors import SchemaError
from marcod.store import access, migrate, queue, training, versions
from marcod.store.engine import Database
from marcod.store.schema import schema_mark
from marcod.synthetic import Imager, PlateSpec, write_file

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
    "model verify": ("champion",),
    "notify list": (),
    "plate export": (PLATE,),
    "plate heatmap": (PLATE, "A1", "--drop", "1", "--samples", "1", "--out", "OUT.png"),
    "plate list": (),
    "plate show": (PLATE, "--history", "--all-drops"),
    "queue failed": (),
    "queue status": (),
    "review recall": (),
    "status": (),
    "train list": (),
    "train show": ("1",),
}
"""Commands that read a database, and what they are asked here."""

WRITES: Final[dict[str, tuple[str, ...]]] = {
    "db backup": ("OUT.sqlite",),
    "db restore": ("OUT.sqlite", "--yes"),
    "db roles": (),
    "db thin": (),
    "db upgrade": (),
    "label add": (PLATE, "A1", "Clear", "--drop", "1"),
    "label import": ("labels.csv",),
    "label withdraw": (PLATE, "A1", "--drop", "1"),
    "model calibrate": ("champion", "--from-database", "--recall", "0.9"),
    "model challenge": ("--none",),
    "model fetch": ("marco",),
    "model import": ("somewhere",),
    "model promote": ("champion",),
    "model remove": ("champion",),
    "model rollback": (),
    "notify retry": (),
    "plate import": ("plates.csv",),
    "queue retry": (),
    "rescore": ("--all", "--yes"),
    "retrain": (),
    "review add": (PLATE, "A1", "--drop", "1"),
    "review export": ("OUT",),
    "review import": ("OUT",),
    "review next": (),
    "review queue": (),
    "run": (),
    "scan": (),
    "score": (),
    "train settle": (),
}
"""Commands that change a database or make a file of their own."""

APART: Final = frozenset(
    {"config check", "config show", "demo", "explain", "install-systemd", "model train-synthetic", "notify test", "setup"}
)
"""Commands that look into no database of the lab."""

REFUSED: Final = ("label add", "queue retry", "review add", "review next", "rescore", "scan", "score", "train settle")
"""Commands that would change the database in the first step they take on the lab of these tests."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command by its full name."""
    for name, command in group.commands.items():
        found = loaded(command)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name))


def test_every_command_is_known_to_read_or_to_write() -> None:
    declared = [*READS, *WRITES, *APART]
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
    arguments = (READS | WRITES)[name]
    return [*name.split(), *(text.replace("OUT", str(site.folder.parent / "out" / "out")) for text in arguments)]


@pytest.fixture
def lab(site: Site, backend: str, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two plates of three synthetic drops: scored, labelled, one image given up, one training run."""
    prepare(site)
    (site.folder.parent / "out").mkdir(mode=0o777)
    (site.folder.parent / "out").chmod(0o777)
    if backend == "sqlite":
        yield from sqlite_lab(site)
    else:
        yield from postgres_lab(site, request.getfixturevalue("postgres"))


def prepare(site: Site) -> None:
    root = site.folder / "plates"
    for number, plate in enumerate(PLATES):
        taken = (datetime(2026, 4, 1, tzinfo=UTC),)
        spec = PlateSpec(Imager.RIGAKU, plate, taken, PLATE_FORMATS[24], (1,), 2 + number)
        for file in Delivery("rigaku", spec).composites()[:3]:
            write_file(root, file, SIZE)
    site.add_source("lab", root, "rigaku", wells=24)
    site.write(models={"folder": str(site.folder / "models")}, train={"folder": str(site.folder / "train")})
    (site.folder / "labels.csv").write_text("image,label\n")
    (site.folder / "plates.csv").write_text("plate,project\n")
    site.ok("scan", "--settle", "0")
    site.ok("score")
    for plate in PLATES:
        site.ok("label", "add", plate, "A1", "Crystals", "--drop", "1", "--person", "ann")
        site.ok("label", "add", plate, "A2", "Clear", "--drop", "1", "--person", "bob")
    db = Database(site.url)
    begun = {"cause": "by hand", "actor": "ann", "recipe": "adapt", "options": {}, "parent": "small:1", "host": "here"}
    db.write(lambda c: training.begin(c, **begun, folder=str(site.folder), pid=7, token="t", now=factories.utc()))
    factories.record(db, factories.register_source(db, "other"), factories.sightings(1, "X"))
    lease = factories.claimed(db)
    factories.finish(db, lease, db.read(versions.champion), failures=[queue.Failure(lease.claims[0], "bad", retryable=False)])
    insert = "insert into lims_label_inbox_v1 (plate, well, label, person) values ('X9', 'A01', 'Clear', 'cy')"
    db.write(lambda c: c.exec_driver_sql(insert))
    db.close()


def sqlite_lab(site: Site) -> Iterator[Lab]:
    base = site.folder.parent
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
    db.write(lambda c: access.make_roles(c, lims, app))
    db.close()
    server.do(f"create role {person} login password 'p'")
    server.do(f"grant {lims} to {person}")
    url = make_url(site.url).set(username=person, password="p").render_as_string(hide_password=False)
    reader = replace(site, url=url, folder=site.folder.parent / "reader")
    reader.folder.mkdir()
    reader.config.write_text(site.config.read_text().replace(repr(site.url), repr(url)))
    yield Lab(site, reader, nullcontext)
    for role in (person, lims, app):
        server.do(f"drop owned by {role}") if role != person else None
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
    return result.exit_code, re.sub(r"\d+(\.\d+)?", "#", text)


def test_who_may_only_read_gets_every_answer_of_the_owner(lab: Lab) -> None:
    answers = {name: lab.owner.call(*asked(lab.owner, name)) for name in READS}
    before = files(lab.owner)
    for name, owner in answers.items():
        result = lab.ask(name)
        assert owner.exit_code in (0, 3), (name, owner.output)
        if name == "doctor":
            assert re.search(r"change anything, enough for who only looks", result.stdout), result.output
            continue
        assert told(result, lab) == told(owner, lab), (name, result.output, result.exception)
    assert files(lab.owner) == before


def test_who_may_only_read_is_told_so_by_what_would_change_something(lab: Lab) -> None:
    before = files(lab.owner)
    for name in REFUSED:
        result = lab.ask(name)
        assert result.exit_code == 1, (name, result.output, result.exception)
        assert "may only read" in result.stderr, (name, result.output)
        assert (result.stderr.count("\n"), result.stderr.startswith("marcod: ")) == (1, True), (name, result.stderr)
    assert files(lab.owner) == before

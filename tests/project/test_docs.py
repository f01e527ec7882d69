"""The documentation is what the program says: commands, settings, views and their columns."""

import re
import runpy
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from populated import populate

from marcod import layouts
from marcod.database.engine import Database

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "reference.py"))["page"]()
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == made, "run `make docs`"


def test_the_views_are_documented_as_the_contract_has_them() -> None:
    written = (DOCS / "lims.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(DOCS / "views.py"))["page"](written) == written, "run `make docs`"


def _statements() -> list[str]:
    blocks = re.findall(r"```sql\n(.*?)```", (DOCS / "lims.md").read_text(encoding="utf-8"), re.DOTALL)
    return [statement.strip() for block in blocks for statement in block.split(";\n") if statement.strip()]


TOPICS = (
    "new hits", "plate's map", "drop's history", "not finished", "images that failed", "scores of a drop by each model",
    "relabels made", "rescored differences", "throughput by day", "counts by imager",
)  # fmt: skip


@pytest.mark.slow
def test_the_documented_queries_answer(db: Database) -> None:
    populate(db)
    *queries, insert = _statements()
    assert len(queries) == len(TOPICS)
    for topic, query in zip(TOPICS, queries, strict=True):
        assert topic in query.splitlines()[0]
        assert db.read(lambda c, query=query: c.execute(sa.text(query)).all()), topic
    db.write(lambda c: c.execute(sa.text(insert)))
    assert db.read(lambda c: c.execute(sa.text("select count(*) from lims_label_inbox_v1")).scalar_one()) == 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_lims_opens_sqlite_read_only(db: Database) -> None:
    uri = f"file:{db.url.database}?mode=ro"
    assert "marcod.sqlite?mode=ro" in (DOCS / "lims.md").read_text(encoding="utf-8")
    with closing(sqlite3.connect(uri, uri=True)) as lims:
        assert lims.execute("select count(*) from lims_drop_v1").fetchone() == (0,)
        for statement in (
            "delete from image",
            "insert into lims_label_inbox_v1 (plate) values ('P')",
            "drop table image",
        ):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                lims.execute(statement)


@pytest.mark.parametrize("name", layouts.NAMES)
def test_every_layout_is_documented(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "imagers.md").read_text(encoding="utf-8")


def _links(page: Path) -> list[str]:
    return [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _links(page) if link and "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_tests_that_a_page_names_exist() -> None:
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = {name for page in DOCS.glob("*.md") for name in re.findall(r"\btest_\w+\.py", page.read_text("utf-8"))}
    assert len(named) > 20
    assert named <= there

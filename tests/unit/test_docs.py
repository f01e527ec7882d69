"""The documentation is what the program says: commands, settings, views and their columns."""

import re
import runpy
from pathlib import Path

import pytest
import sqlalchemy as sa

from marcod import layouts
from marcod.store import migrate
from marcod.store.engine import Database

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "reference.py"))["page"]()
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == made, "run `make docs`"


def _documented_columns(view: str) -> list[str]:
    section = (DOCS / "lims.md").read_text(encoding="utf-8").split(f"## {view}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_every_view_and_column_is_documented(db: Database) -> None:
    views = sorted({path.name.split(".")[0] for path in (migrate.folder() / "views").glob("*.sql")})
    assert views == sorted(re.findall(r"^## (lims_\w+)$", (DOCS / "lims.md").read_text(), re.MULTILINE))
    for view in views:
        columns = db.read(lambda c, view=view: [column["name"] for column in sa.inspect(c).get_columns(view)])
        assert _documented_columns(view) == columns, view


def test_the_documented_queries_answer(db: Database) -> None:
    blocks = re.findall(r"```sql\n(.*?)```", (DOCS / "lims.md").read_text(encoding="utf-8"), re.DOTALL)
    queries = [query.strip() for block in blocks for query in block.split(";") if query.strip()]
    assert len(queries) >= 5
    for query in queries:
        db.read(lambda c, query=query: c.execute(sa.text(query)).all())


@pytest.mark.parametrize("name", layouts.NAMES)
def test_every_layout_is_documented(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "imagers.md").read_text(encoding="utf-8")


def _links(page: Path) -> list[str]:
    return [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _links(page) if link and "://" not in link and not (page.parent / link).exists()]
    assert not missing

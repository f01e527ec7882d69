"""Writes the tables of docs/lims.md from ``migrations/views/contract.toml``.

``make docs`` runs it; a test fails when the page is not what the contract says.
"""

from pathlib import Path

from marcod.database import revisions, views

PAGE = Path(__file__).with_name("lims.md")
MARK = "<!-- Made from migrations/views/contract.toml by `make docs`; do not edit below. -->\n"


def page(before: str) -> str:
    """The whole page: what is written by hand, and the views."""
    return before.split(MARK)[0] + MARK + "\n" + "\n\n".join(_view(v) for v in views.read(revisions.folder())) + "\n"


def _view(view: views.View) -> str:
    rows = [
        f"| `{column.name}` | {column.postgresql} | {column.sqlite} | {column.unit} | {column.about} |"
        for column in view.columns
    ]
    head = ["| column | PostgreSQL | SQLite | unit | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"## {view.name}", "", view.about, "", *head, *rows])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

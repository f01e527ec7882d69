"""The steps of the schema as files: which there are, in which order, and which of them only add.

Hides Alembic's reading of scripts. Steps live in ``migrations/``, beside the package in a checkout and inside it in an
installation. A step with ``additive = True`` leaves everything in its place that the marcod of the step before uses.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from alembic.script import ScriptDirectory

MARKED: Final = "0005"
"""The step that made the mark of the oldest usable step; who knows none of its age cannot read it."""


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps from the oldest to the newest, by revision."""

    revisions: tuple[str, ...]
    additive: frozenset[str]

    @property
    def newest(self) -> str:
        """What a current database has."""
        return self.revisions[-1]

    def place(self, revision: str | None) -> int:
        """How many steps lead to this one, itself included; 0 for none or one that is not known."""
        return 0 if revision is None or revision not in self.revisions else self.revisions.index(revision) + 1

    def between(self, after: str | None, up_to: str) -> tuple[str, ...]:
        """The steps that lead from one to another; ``head`` is the newest."""
        return self.revisions[self.place(after) : len(self.revisions) if up_to == "head" else self.place(up_to)]

    def oldest_usable(self, current: str) -> str:
        """The step that a marcod must know to work on a database at ``current``."""
        since = self.between(MARKED, current)
        return next((step for step in reversed(since) if step not in self.additive), MARKED)


def folder() -> Path:
    """The folder of migrations: installed with the package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


@cache
def known(scripts: Path | None = None) -> Steps:
    """What this marcod knows; read once, for a running marcod keeps its own steps while a new one is installed."""
    steps = list(ScriptDirectory(str(scripts or folder())).walk_revisions())[::-1]
    additive = frozenset(step.revision for step in steps if getattr(step.module, "additive", False))
    return Steps(tuple(step.revision for step in steps), additive)

"""What persons and their LIMS do meanwhile: labels come into the inbox, and somebody has plates scored again."""

import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from chaos.imagers import Share
from marcod.database.engine import Database
from marcod.domain import CLASSES
from marcod.errors import StoreError
from marcod.model import registry
from marcod.settings.environment import child_environment

PERSON: Final = "chaos"
OTHER: Final = "other"
"""Name of a second model, with which plates are scored again: the shipped network under another name."""

_SAY: Final = sa.text(
    "insert into lims_label_inbox_v1 (source, plate, well, drop_number, inspection, label, person, labelled_at) "
    "values (:source, :plate, :well, :drop, :inspection, :label, :person, :labelled_at)"
)


def make_other_model(folder: Path) -> None:
    """A bundle of the shipped weights under its own name below ``folder``."""
    name, version = registry.SHIPPED
    target = folder / OTHER / str(version)
    shutil.copytree(registry.shipped_folder() / name / str(version), target)
    record = target / "bundle.toml"
    record.write_text(record.read_text().replace(f'name = "{name}"', f'name = "{OTHER}"', 1))


@dataclass
class People:
    """One person who labels, and one who types commands."""

    db: Database
    config: Path
    rng: random.Random
    said: set[datetime] = field(default_factory=set)
    """Times of the labels that the database has taken; each label has a time of its own."""
    stuck: int = 0
    """Commands that had to be killed."""
    _named: set[tuple[str, ...]] = field(default_factory=set)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def label(self, share: Share) -> bool:
        """Say what an image shows, once for every drop and inspection. False when there is none or no database."""
        images = [truth.image for path in share.intact() if (truth := share.truth[path]).image is not None]
        fresh = [i for i in images if (share.name, i.plate_key, i.inspection_key, i.well) not in self._named]
        if not fresh:
            return False
        chosen = self.rng.choice(fresh)
        self._named.add((share.name, chosen.plate_key, chosen.inspection_key, chosen.well))
        when = datetime.now(UTC)
        values = {
            "source": share.name, "plate": chosen.plate_key, "well": chosen.well, "drop": chosen.drop,
            "inspection": chosen.inspection_key, "label": str(self.rng.choice(CLASSES)), "person": PERSON,
            "labelled_at": when.isoformat(),
        }  # fmt: skip
        try:
            self.db.write(lambda connection: connection.execute(_SAY, values))
        except StoreError:
            return False
        self.said.add(when)
        return True

    def rescore(self) -> None:
        """Have everything scored by the other model, and go away."""
        version = registry.SHIPPED[1]
        command = ["rescore", "--all", "--no-wait", "--model", f"{OTHER}:{version}"]
        with self.config.with_name("people.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "marcod", "--config", str(self.config), *command],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment(),
                )
            )  # fmt: skip

    def leave(self, longest_s: float) -> None:
        """Wait for the commands that still run; what does not end in that time is killed and told as stuck."""
        deadline = time.monotonic() + longest_s
        for command in self._running:
            try:
                command.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.stuck += 1
                command.kill()
                command.wait()
        self._running.clear()

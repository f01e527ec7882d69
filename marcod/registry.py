"""Model versions: brings the bundles on this host and the versions in the database together.

The database says which version is champion; folders only say what exists here. Promises that a version's scores
always come from the very bundle that was registered under its name: the digest is compared before it serves.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from marcod import bundle
from marcod.errors import BundleError, ConfigError, NotFoundError
from marcod.store import versions
from marcod.store.engine import Database

if TYPE_CHECKING:
    from marcod.bundle import Predictor

SHIPPED: Final = ("marco-small-synthetic", "1")
"""The version that serves until a lab promotes another."""


def shipped_folder() -> Path:
    """Bundles that came with the project: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def parse(text: str) -> tuple[str, str]:
    """Name and version of ``NAME:VERSION``. Raises ConfigError."""
    name, colon, version = text.partition(":")
    if not (name and colon and version):
        raise ConfigError(f"{text!r} does not name a model; write NAME:VERSION, as `marcod model list` shows them")
    return name, version


class Registry:
    """The bundles of this host, own folder first, and their rows in one database."""

    def __init__(self, db: Database, own_folder: Path | None = None) -> None:
        self._db = db
        self._folders: Sequence[Path] = [f for f in (own_folder, shipped_folder()) if f is not None]

    def on_disk(self) -> list[tuple[str, str, Path]]:
        """Every bundle folder here as (name, version, path), whether registered or not."""
        found = {
            (path.parent.parent.name, path.parent.name): path.parent
            for folder in reversed(self._folders)
            for path in sorted(folder.glob("*/*/bundle.toml"))
        }
        return [(name, version, path) for (name, version), path in sorted(found.items())]

    def path(self, name: str, version: str) -> Path:
        """The folder of a bundle. Raises NotFoundError naming where was looked."""
        for folder in self._folders:
            if (folder / name / version / "bundle.toml").is_file():
                return folder / name / version
        places = " or ".join(str(f) for f in self._folders)
        raise NotFoundError(f"there is no bundle {name}:{version} in {places}; `marcod model list` shows what there is")

    def register(self, name: str, version: str, now: datetime) -> versions.Version:
        """The row of a bundle that exists here, made if new. Raises BundleError when it is damaged."""
        path = self.path(name, version)
        record = bundle.verify(path)
        return self._db.write(
            lambda connection: versions.register(
                connection,
                name=record.name,
                version=str(record.version),
                digest=record.digest,
                modality=str(record.modality),
                crystal_threshold=record.threshold.crystal,
                synthetic=record.synthetic,
                now=now,
            )
        )

    def ensure_champion(self, now: datetime) -> versions.Version:
        """The champion; in a new database the shipped bundle becomes it."""
        if self._db.read(versions.has_champion):
            return self._db.read(versions.champion)
        return self.promote(self.register(*SHIPPED, now), actor="marcod", now=now)

    def promote(self, version: versions.Version, *, actor: str, now: datetime) -> versions.Version:
        """Make a version champion; running scorers change over between two batches."""
        self._db.write(lambda connection: versions.promote(connection, version, actor=actor, now=now))
        return version

    def load(self, version: versions.Version, batch_size: int) -> "Predictor":
        """A predictor for a registered version. Raises BundleError when the bundle here is another one."""
        path = self.path(version.name, version.version)
        if bundle.read(path).digest != version.digest:
            raise BundleError(
                f"the bundle in {path} is not the one registered as {version}; restore the original folder"
            )
        return bundle.load(path, batch_size)

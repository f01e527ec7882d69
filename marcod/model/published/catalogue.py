"""Catalogue of published models: where each one is, how it is proven, its licence and its citation."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from marcod.errors import ConfigError
from marcod.model.bundle import Origin

_FILE: Final = Path(__file__).with_name("catalogue.toml")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Content(_Table):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class Published(_Table):
    """One published model.

    A ``trunk`` was trained on other images than drops; models are trained from it. ``file`` is the file of the
    distribution, ``size`` and ``sha256`` are its own. ``files`` are the model's, by path in ``folder`` of that file.
    ``classes`` are the model's in the order of its outputs, none for a trunk.
    """

    name: str
    kind: Literal["classifier", "trunk"] = "classifier"
    title: str
    distribution: str
    version: str
    file: str
    size: int
    sha256: str
    folder: str
    classes: tuple[str, ...] = ()
    licence: str
    citation: str
    training_data: str
    files: Mapping[str, Content]

    @property
    def content(self) -> Content:
        """Size and SHA-256 of the distribution's file."""
        return Content(size=self.size, sha256=self.sha256)

    @property
    def origin(self) -> Origin:
        """The distribution's file, as the record of a bundle names it."""
        return Origin(distribution=self.distribution, version=self.version, file=self.file, sha256=self.sha256)


def catalogue() -> dict[str, Published]:
    """Read the catalogue that came with the program, by name."""
    tables = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Published(name=name, **table) for name, table in tables.items()}


def find(name: str) -> Published:
    """Return a published model by name. Raises ConfigError naming those there are."""
    known = catalogue()
    if name not in known:
        raise ConfigError(
            f"there is no published model {name!r}; `marcod model fetch --list` shows: {', '.join(known)}"
        )
    return known[name]

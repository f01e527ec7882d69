"""The class of every table of the configuration, and the type of a folder in one."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _expanded(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, (str, Path)) else value


FolderPath = Annotated[Path, BeforeValidator(_expanded)]


class Section(BaseModel):
    """One table of the configuration file; frozen, and strict about its keys.

    A table is built as a part of :class:`Settings`, and by itself only when somebody makes one alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

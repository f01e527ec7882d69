"""Faults of a configuration: what is wrong, where, and what was probably meant. No fault shows a secret."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marcod.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    ``place`` is the file, variable or credential, ``line`` counts from 1 in a file. ``word`` is what is wrong there,
    ``nearest`` what was probably meant, ``example`` a line that is right.
    """

    place: str
    line: int | None
    text: str
    word: str | None = None
    nearest: str | None = None
    example: str | None = None

    def __str__(self) -> str:
        where = self.place if self.line is None else f"{self.place}, line {self.line}"
        return f"{where}: {self.text}" + (f"; did you mean {self.nearest}?" if self.nearest else "")


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Sort by place and line."""
    return tuple(sorted(faults, key=lambda fault: (fault.place, fault.line or 0)))


class FaultsError(ConfigError):
    """A configuration that cannot be used, with every fault in it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        # How many there are is left to the check, which finds more than was looked for here, such as missing folders.
        more = "there are more faults; `marcod config check` shows all" if len(self.faults) > 1 else ""
        super().__init__(f"{self.faults[0]} ({more or '`marcod config check` shows an example'})")

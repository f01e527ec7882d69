"""How the processes bore it: what they ended with, and what their logs tell that no fault excuses."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from chaos.lab import Lab
from chaos.reckoning import SHOWN, Line

_TRACEBACK: Final = re.compile(r'"exception": |Traceback \(most recent call last\)|Fatal Python error')
_ALARM: Final = re.compile(r'"event": "(?:loops hang|loop fails again and again|loop is dead|loops are silent)')
_EXAMPLE: Final = 300


def lines(lab: Lab) -> list[Line]:
    """To be asked when everything was stopped. No traceback and no alarm is allowed: every fault here is foreseen."""
    ends = [(process.name, end) for process in lab.processes for end in process.ended]
    wrong = [f"{name} ended with {end.code}: {end.said[-_EXAMPLE:]}" for name, end in ends if not end.is_in_order]
    told = [(log.name, line) for log in _logs(lab) for line in log.read_text(errors="replace").splitlines()]
    return [
        Line("ends that nobody asked for and no database excuses", 0, len(wrong), tuple(wrong[:SHOWN])),
        _found("tracebacks in the logs", _TRACEBACK, told),
        _found("loops in the logs that hang, die or fail again and again", _ALARM, told),
        Line("commands that did not end", 0, lab.people.stuck),
    ]


def _logs(lab: Lab) -> list[Path]:
    named = [process.log for process in lab.processes] + [lab.folder / "people.log"]
    return [log for log in named if log.exists()]


def _found(what: str, pattern: re.Pattern[str], told: Iterable[tuple[str, str]]) -> Line:
    wrong = [f"{name}: {line[-_EXAMPLE:]}" for name, line in told if pattern.search(line)]
    return Line(what, 0, len(wrong), tuple(wrong[:SHOWN]))

"""What the outside sees of a running marcod: log lines, systemd notifications, heartbeats of the loops.

Lines go to standard error: key=value on a terminal, JSON elsewhere (systemd, containers), as the configuration
wishes. Ids travel by context (:func:`bound`), so a call deep below logs its batch without being told. No line can
steer a terminal or look like several, whatever a file is called, and no traceback shows the values of variables,
among which passwords are.
"""

import logging
import socket
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import structlog

from marcod import settings

_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str, style: str) -> None:
    """Set up logging once per process. ``style`` is auto, console or json."""
    json_lines = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.UnicodeDecoder(),
    ]
    if json_lines:
        shared += [_TRACEBACKS, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        line = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=plain)
        shared += [structlog.processors.format_exc_info, _without_controls, line]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_to_standard_error,
        cache_logger_on_first_use=False,
    )
    settings.quiet_tensorflow()
    for noisy in ("alembic", "apscheduler", "watchdog", "tensorflow", "absl"):
        logging.getLogger(noisy).setLevel(max(_LEVELS[level], logging.WARNING))


def _without_controls(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a terminal would obey, written as escapes; JSON has its own."""
    kept = {"exception": "\n", "stack": "\n"}
    return {n: _escaped(v, kept.get(n, "")) if isinstance(v, str) else v for n, v in event.items()}


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def _to_standard_error(*_: object) -> structlog.PrintLogger:
    """Asked at each line, so that lines go where standard error is now."""
    return structlog.PrintLogger(sys.stderr)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module; every event is one short phrase with its values beside it."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(module=name.removeprefix("marcod.")))


def bound(**values: object) -> AbstractContextManager[None]:
    """Add values to every log line of this thread until the block ends."""
    return cast(AbstractContextManager[None], structlog.contextvars.bound_contextvars(**values))


def notify(state: str) -> bool:
    """Tell systemd something, such as ``READY=1`` (sd_notify(3)). False when nobody listens or can."""
    address = settings.notify_socket()
    if address is None:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return False
    return True


class Heartbeats:
    """When each loop last showed life, on a monotonic clock given by the caller. Thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def beat(self, loop: str, now: float) -> None:
        """The loop is alive."""
        with self._lock:
            self._last[loop] = now

    def forget(self, loop: str) -> None:
        """The loop ended in order and owes no more beats."""
        with self._lock:
            self._last.pop(loop, None)

    def stale(self, now: float, limits_s: Mapping[str, float], usual_s: float) -> list[str]:
        """Loops that were silent for longer than their limit, or than the usual one."""
        with self._lock:
            return sorted(name for name, last in self._last.items() if now - last > limits_s.get(name, usual_s))

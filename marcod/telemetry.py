"""Telemetry of a running marcod: log lines, systemd notifications, heartbeats of the loops.

Lines go to standard error: key=value on a terminal, JSON elsewhere (systemd, containers), as the configuration
wishes. Ids travel by context (:func:`bound`), so a call deep below logs its batch too. No line can
steer a terminal or look like several, whatever a file is called, and no traceback shows the values of variables,
among which passwords are.
"""

import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from marcod.settings.environment import notify_socket, quiet_tensorflow
from marcod.text import escaped

if TYPE_CHECKING:
    from structlog import PrintLogger
    from structlog.typing import FilteringBoundLogger

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


_chosen: tuple[str, str] | None = None
"""Level and style that :func:`configure` was given and no line has asked for yet."""


def configure(level: str, style: str) -> None:
    """Set up logging once per process. ``style`` is auto, console or json."""
    global _chosen
    _chosen = (level, style)
    quiet_tensorflow()
    for noisy in ("alembic", "apscheduler", "watchdog", "tensorflow", "absl"):
        logging.getLogger(noisy).setLevel(max(_LEVELS[level], logging.WARNING))


def _ensure_set_up() -> None:
    """Do what was chosen, once; two threads may both do it, which is the same."""
    global _chosen
    if (chosen := _chosen) is not None:
        _set_up(*chosen)
        _chosen = None


def _set_up(level: str, style: str) -> None:
    import structlog

    json_lines = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.UnicodeDecoder(),
    ]
    if json_lines:
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared += [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
    else:
        line = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
        shared += [structlog.processors.format_exc_info, _without_controls, line]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_to_standard_error,
        cache_logger_on_first_use=False,
    )


@contextmanager
def warnings_alone() -> Iterator[None]:
    """Leave out lines below warnings while a progress bar tells how work goes on; a log of level debug stays whole."""
    import structlog

    _ensure_set_up()
    before = structlog.get_config()["wrapper_class"]
    if before is not structlog.make_filtering_bound_logger(_LEVELS["debug"]):
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_LEVELS["warning"]))
    try:
        yield
    finally:
        structlog.configure(wrapper_class=before)


def _without_controls(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what a terminal would obey; JSON has its own."""
    kept = {"exception": "\n", "stack": "\n"}
    return {n: escaped(v, keep=kept.get(n, "")) if isinstance(v, str) else v for n, v in event.items()}


def _to_standard_error(*_: object) -> "PrintLogger":
    """Asked at each line, so that lines go where standard error is now."""
    from structlog import PrintLogger

    return PrintLogger(sys.stderr)


class _Logger:
    """Logger of a module that imports structlog with its first line: commands that only answer write none."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        import structlog

        _ensure_set_up()
        return getattr(structlog.get_logger(module=self._module), name)


def logger(name: str) -> "FilteringBoundLogger":
    """Return the logger of a module; every event is one short phrase with its values as fields."""
    return cast("FilteringBoundLogger", _Logger(name.removeprefix("marcod.")))


def bound(**values: object) -> AbstractContextManager[None]:
    """Add values to every log line of this thread until the block ends."""
    from structlog.contextvars import bound_contextvars

    return cast(AbstractContextManager[None], bound_contextvars(**values))


def notify(state: str) -> bool:
    """Tell systemd something, such as ``READY=1`` (sd_notify(3)). False when nobody listens or can."""
    address = notify_socket()
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
        """Record that the loop is alive."""
        with self._lock:
            self._last[loop] = now

    def forget(self, loop: str) -> None:
        """Forget a loop that ended in order."""
        with self._lock:
            self._last.pop(loop, None)

    def stale(self, now: float, limits_s: Mapping[str, float], usual_s: float) -> list[str]:
        """Loops that were silent for longer than their limit, or than the usual one."""
        with self._lock:
            return sorted(name for name, last in self._last.items() if now - last > limits_s.get(name, usual_s))

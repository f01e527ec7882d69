"""The service: builds the loops from settings, runs them as threads, and ends them in order.

``ground`` is what every program stands on, ``service`` the loops and their supervisor, ``duties`` what is done again
and again beside them. One event stops everything: nominating ends, the batch on the device is finished, unstarted
claims go back, and all threads are joined against one deadline. A second signal exits at once; the leases bring the
work back.
"""

import threading
from collections.abc import Sequence

from marcod import telemetry
from marcod.errors import ConfigError
from marcod.labels import files
from marcod.service.periodic import tend
from marcod.service.start import Ready, check_sources, opened, roots, stopped_by_signals, waited_for, worker_name
from marcod.service.supervisor import Service
from marcod.settings import Role, Settings
from marcod.training import trainer

__all__ = ["Ready", "check_sources", "opened", "roots", "run", "stopped_by_signals", "tend", "worker_name"]

log = telemetry.logger(__name__)


def run(settings: Settings, roles: Sequence[Role], program: Sequence[str] = ()) -> int:
    """Run these roles until a signal comes. Returns the exit code: 0, or 1 when it ended itself to be begun anew.

    ``program`` starts marcod with the same configuration, for work that has a process of its own. Everything that can
    be wrong is found before READY=1: configuration, schema, champion self-test.
    """
    check(settings, roles)
    # While the model loads nothing is leased, and nobody should have to wait for it.
    begun = threading.Event()
    with stopped_by_signals(begun) as stop, waited_for(settings) as ready:
        service = Service(settings, ready, roles, stop, program)
        loops = service.loops()
        begun.set()
        return service.supervise(loops)


def check(settings: Settings, roles: Sequence[Role]) -> None:
    """Raises ConfigError or LayoutError for what these roles cannot work with, before anything is written.

    A share that is not mounted yet is no such thing: its watcher waits for it.
    """
    if "watch" in roles:
        if not settings.sources:
            raise ConfigError(
                "no source is configured; `marcod setup FOLDER` adds what an imager writes to, and `marcod demo` shows "
                "marcod at work without"
            )
        check_sources(settings)
    if "schedule" in roles:
        files.tables_of(settings)
    if "trainer" in roles:
        trainer.check(settings.train)

"""The service: loops built from the settings, run as threads, and ended in order.

``supervisor`` holds the loops, ``periodic`` the scheduled work, ``systemd_units`` the files of systemd. One event
stops everything: nominating ends, the batch on the device is finished, unstarted claims go back, and all threads are
joined against one deadline. A second signal exits at once; the leases bring the work back.
"""

import threading
from collections.abc import Sequence

from marcod import telemetry
from marcod.app import check_sources, stop_event_on_signals, waited_for
from marcod.errors import ConfigError
from marcod.labels import files
from marcod.service.supervisor import Service
from marcod.settings import Role, Settings
from marcod.training import trainer

log = telemetry.logger(__name__)


def run(settings: Settings, roles: Sequence[Role], program: Sequence[str] = ()) -> int:
    """Run these roles until a signal comes. Returns the exit code: 0, or 1 when it ended itself to be restarted.

    ``program`` starts marcod with the same configuration, for work that has a process of its own. Everything that can
    be wrong is found before READY=1: configuration, schema, champion self-test.
    """
    check(settings, roles)
    # While the model loads nothing is leased, and nobody should have to wait for it.
    started = threading.Event()
    with stop_event_on_signals(started) as stop, waited_for(settings) as ready:
        service = Service(settings, ready, roles, stop, program)
        loops = service.loops()
        started.set()
        return service.supervise(loops)


def check(settings: Settings, roles: Sequence[Role]) -> None:
    """Raise ConfigError or LayoutError for what these roles cannot work with, before anything is written.

    A share that is not mounted yet is accepted: its watcher waits for it.
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

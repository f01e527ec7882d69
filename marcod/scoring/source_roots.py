"""Roots of sources on this host: which of them hold what was recorded, so that its images can be claimed here.

A share that is not mounted, or another one in its place, looks like files that are gone. So before its first claim a
worker looks for a few recorded files of each source; where it finds none, the source's work is left to other hosts. A
host that recorded the images from that root itself is believed: there a person sees by the images that wait what they
wait for, and files that are missing from a folder that lists others are gone.
"""

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from marcod import telemetry
from marcod.database.engine import Database
from marcod.deadline import ANSWER_S, SilentError, within
from marcod.domain import path_text
from marcod.errors import os_reason
from marcod.store import queue, sources
from marcod.store.sources import KnownSource

log = telemetry.logger(__name__)

SAMPLE: Final = 20
"""Recorded files that are looked for."""

AGAIN_S: Final = 60.0
"""Sources are looked at again after this."""


class SourceRoots:
    """Roots of sources; ``configured`` are those of this host, for others that of the database counts.

    One thread may ask while another doubts.
    """

    def __init__(self, db: Database, configured: Mapping[str, Path]) -> None:
        self._db, self._configured = db, configured
        self._reasons: dict[str, str] = {}
        self._looked = float("-inf")

    @property
    def reasons(self) -> Mapping[str, str]:
        """Reasons for which sources are left to other hosts, by their names."""
        return dict(self._reasons)

    def left_to_others(self) -> Collection[str]:
        """Return the names of sources that are to be left; every :data:`AGAIN_S` seconds all are looked at."""
        now = time.monotonic()
        if now - self._looked >= AGAIN_S:
            self._looked = now
            for source in self._db.read(sources.known):
                self._look(source)
        return tuple(dict(self._reasons))

    def without_fault(self, failures: Iterable[queue.Failure]) -> list[queue.Failure]:
        """Return failures such that no image counts as gone whose source is not there on this host."""
        failed = list(failures)
        doubted = {failure.claim.source for failure in failed if failure.error == queue.GONE or not failure.counts}
        for source in self._db.read(sources.known) if doubted else ():
            if source.name in doubted:
                self._look(source)
        # Another thread may look at a source now.
        reasons = dict(self._reasons)
        return [
            replace(failure, error=reasons[failure.claim.source], counts=False)
            if failure.error == queue.GONE and failure.claim.source in reasons
            else failure
            for failure in failed
        ]

    def _look(self, source: KnownSource) -> None:
        root = self._configured.get(source.name, Path(source.root))
        reason = why_not(self._db, source, root)
        before = self._reasons.pop(source.name, None)
        if reason is not None:
            self._reasons[source.name] = reason
        if reason is not None and before is None:
            log.warning("source is left to other hosts", source=source.name, reason=reason)
        elif reason is None and before is not None:
            log.info("source is there again", source=source.name)


def why_not(db: Database, source: KnownSource, root: Path) -> str | None:
    """Return why images of a source cannot be read below a root, as a sentence; None where they can."""
    if not source.has_images or (source.is_own and Path(source.root) == root):
        return None
    shown = path_text(os.fspath(root))
    files = [one.path for one in db.read(sources.sample, source.id, SAMPLE)]
    try:
        found = within(ANSWER_S, partial(_look_for, root, files))
    except SilentError as error:
        return f"its root {shown} {error}"
    except OSError as error:
        return f"its root {shown} cannot be listed: {os_reason(error)}"
    if found is None:
        return f"its root {shown} lists nothing, as where a share is not mounted"
    if not found:
        return f"its root {shown} holds none of {len(files)} recorded images; another share may be mounted there"
    return None


def _look_for(root: Path, files: Collection[str]) -> bool | None:
    """Tell if one of these files is there; None where the root lists nothing."""
    with os.scandir(root) as entries:
        if next(entries, None) is None:
            return None
    return any(os.path.lexists(root / path) for path in files)

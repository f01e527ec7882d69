"""Heat maps for the page: one is drawn at a time, in a process of its own, and kept like a small image."""

import asyncio
import hashlib
import subprocess
from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool

from marcod import telemetry
from marcod.errors import MarcodError
from marcod.model import bundle, engines
from marcod.model.heat_process import HeatOrder
from marcod.model.registry import Registry
from marcod.settings.environment import child_environment
from marcod.store.versions import Version
from marcod.web import drop_marks
from marcod.web.access import User
from marcod.web.drop_view import version_shown
from marcod.web.image_cache import ImageCache
from marcod.web.site import Site

log = telemetry.logger(__name__)

WAITING: Final = 4
"""Heat maps that may wait for their turn."""

LIMIT_S: Final = 300.0
"""A heat map takes ten seconds, and minutes on a host whose cores are all taken."""

ENVIRONMENT: Final = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
"""The card is the scorer's."""


class HeatUnavailableError(MarcodError):
    """The heat map cannot be drawn here."""


def heat_order(site: Site, user: User, drop_id: int, inspection_id: int) -> HeatOrder:
    """Order a heat map of the model shown for a drop. Raises HeatUnavailableError with one sentence."""

    def work(connection: Connection) -> tuple[Version, bool]:
        hidden = drop_id in drop_marks.asked_in_audit(connection, user, inspection_id)
        return version_shown(connection, drop_id), hidden

    version, hidden = site.db.read(work)
    if hidden:
        raise HeatUnavailableError("a random audit asks you about this drop; the model is not shown before your answer")
    if not engines.installed("tensorflow"):
        raise HeatUnavailableError("this host only scores, so it draws no heat map; a host with TensorFlow does")
    registry = Registry(site.db, site.settings.models.folder, site.settings.score.engine)
    try:
        folder = registry.path(version.name, version.version)
        record = bundle.read(folder)
        members = record.committee.members if record.committee else ()
        folders = {f"{m.name}:{m.version}": str(registry.member_folder(record, m)) for m in members}
    except MarcodError as error:
        raise HeatUnavailableError(
            f"this host has no copy of {version} that can be read, so it draws no heat map"
        ) from error
    return HeatOrder(str(folder), version.digest, folders)


class HeatMaps:
    """The drawer of heat maps; one is drawn at a time."""

    def __init__(self, cache: ImageCache) -> None:
        self._cache, self._turn, self._waiting = cache, asyncio.Lock(), 0

    async def draw(self, image: str, order: HeatOrder, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the heat map of an image, named by its bytes. Raises HeatUnavailableError, and as ``read``."""
        model = hashlib.sha256(order.digest.encode()).hexdigest()
        name = f"{image}-heat-{model[:12]}.jpg"
        if kept := await run_in_threadpool(self._cache.get, name):
            return kept
        if self._waiting >= WAITING:
            raise HeatUnavailableError("several heat maps are being drawn; ask again in a minute")
        self._waiting += 1
        try:
            async with self._turn:
                if kept := await run_in_threadpool(self._cache.get, name):
                    return kept
                drawn = await run_in_threadpool(_drawn, order, await read())
                await run_in_threadpool(self._cache.put, name, drawn)
                return drawn
        finally:
            self._waiting -= 1


def _drawn(order: HeatOrder, data: bytes) -> bytes:
    environment = child_environment(**ENVIRONMENT)
    try:
        done = subprocess.run(
            order.program(), input=data, capture_output=True, timeout=LIMIT_S, check=False, env=environment
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise HeatUnavailableError("the heat map took too long on this host") from error
    if done.returncode != 0 or not done.stdout:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        log.warning("heat map not drawn", error=lines[-1][:200] if lines else f"exit code {done.returncode}")
        raise HeatUnavailableError("the heat map could not be drawn; marcod's log says why")
    return done.stdout

"""Where images are, and so where nothing may be written."""

from pathlib import Path

from marcod import app
from marcod.settings import Settings
from marcod.store import sources


def roots(settings: Settings, ready: app.App) -> dict[str, Path]:
    """The folder of each source: where it is configured, else where marcod last looked."""
    return _recorded(ready) | app.roots(settings)


def closed(settings: Settings, ready: app.App) -> list[Path]:
    """All folders where only imagers write, also those where a source was before it moved."""
    return [*_recorded(ready).values(), *app.roots(settings).values()]


def _recorded(ready: app.App) -> dict[str, Path]:
    return {name: Path(root) for name, root in ready.db.read(sources.roots).items()}

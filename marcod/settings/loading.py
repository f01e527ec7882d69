"""Configuration loaded from all its sources; what loads is complete and valid.

Layers, strongest first: command line, ``MARCOD_SECTION__FIELD`` variables, systemd credentials of the same
names, the TOML file, defaults. Nothing else in marcod reads the environment. An unknown key, an unknown
``MARCOD_`` variable and a named file that is missing are errors, because a typo must not change what a lab
believes it configured. What belongs to a model (input size, thresholds) is in its bundle, never here.
"""

import os
import re
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from marcod.settings import Settings, examined, layers
from marcod.settings.examined import Examined
from marcod.settings.faults import Fault, FaultsError, in_order


def config_file(named: Path | None = None) -> Path | None:
    """Return the TOML file that :func:`load` reads: the named one, ``MARCOD_CONFIG``, or the first standard place.

    Raises FaultsError when a named file does not exist.
    """
    place = "the command line" if named is not None else "variable MARCOD_CONFIG"
    if (named := named or variable()) is None:
        return next((path for path in (user_file(), Path("/etc/marcod/marcod.toml")) if path.is_file()), None)
    if not named.is_file():
        text = f"configuration file {named} does not exist; name another or leave it out"
        raise FaultsError([Fault(place, None, text, word=str(named), nearest=_beside(named))])
    return named


def variable() -> Path | None:
    """Return the file that ``MARCOD_CONFIG`` names."""
    return Path(name) if (name := os.environ.get("MARCOD_CONFIG")) else None


def user_file() -> Path:
    """Return the configuration file of this user, whether it is there or not."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "marcod" / "marcod.toml"


def _beside(missing: Path) -> str | None:
    """Return the TOML file in the same folder whose name is most like that of one that is missing."""
    try:
        names = [path.name for path in missing.parent.glob("*.toml") if path.is_file()]
    except OSError:
        return None
    found = get_close_matches(missing.name, names, n=1)
    return str(missing.with_name(found[0])) if found else None


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the effective settings. ``overrides`` is a nested mapping of what the command line set.

    Raises FaultsError, whose ``faults`` name everything that is wrong: file, line, word, and what was meant.
    """
    found = examine(config, overrides)
    if found.faults:
        raise FaultsError(found.faults)
    return found.settings


def examine(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Examined:
    """Return the settings as far as they are right, and everything that is wrong. Raises nothing."""
    try:
        return examined.examine(config_file(config), overrides or {})
    except FaultsError as error:
        found = examined.examine(None, overrides or {})
        return Examined(found.settings, in_order([*error.faults, *found.faults]), found.layers)


def origins(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return where each value of :func:`load` came from, by dotted key; what is at its default is left out."""
    found = layers.read(config_file(config), overrides or {}, socket.gethostname())
    folder = f"a credential in {os.environ.get('CREDENTIALS_DIRECTORY')}"
    return {
        ".".join(key): folder if place.startswith(layers.CREDENTIAL) else place for key, place in found.places.items()
    }


def redacted_url(settings: Settings) -> str:
    """Return the database URL without its password, also where that holds what ends one or stands in the query."""
    scheme, _, rest = settings.store.url.get_secret_value().partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    place, mark, query = place.partition("?")
    shown = "&".join(re.sub(r"(?i)^([^=]*(pass|%)[^=]*)=.*", r"\1=***", part) for part in query.split("&"))
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}{mark}{shown}"

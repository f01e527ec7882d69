"""Typed configuration: hides where a value came from and promises that what loads is complete and sane.

Layers, strongest first: command line, ``MARCOD_SECTION__FIELD`` variables, systemd credentials of the same
names, the TOML file, defaults. Nothing else in marcod reads the environment. An unknown key, an unknown
``MARCOD_`` variable and a named file that is missing are errors, because a typo must not change what a lab
believes it configured. What belongs to a model (input size, thresholds) is in its bundle, never here.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from marcod.errors import ConfigError
from marcod.settings.sections import EVENT_KINDS as EVENT_KINDS
from marcod.settings.sections import ROLES as ROLES
from marcod.settings.sections import USUAL_ROLES as USUAL_ROLES
from marcod.settings.sections import DaemonSettings as DaemonSettings
from marcod.settings.sections import DriftSettings as DriftSettings
from marcod.settings.sections import EventKind as EventKind
from marcod.settings.sections import LabelSettings as LabelSettings
from marcod.settings.sections import LogSettings as LogSettings
from marcod.settings.sections import MailSettings as MailSettings
from marcod.settings.sections import MetricsSettings as MetricsSettings
from marcod.settings.sections import ModelSettings as ModelSettings
from marcod.settings.sections import NotifySettings as NotifySettings
from marcod.settings.sections import RetentionSettings as RetentionSettings
from marcod.settings.sections import ReviewSettings as ReviewSettings
from marcod.settings.sections import Role as Role
from marcod.settings.sections import ScoreSettings as ScoreSettings
from marcod.settings.sections import SourceSettings as SourceSettings
from marcod.settings.sections import StoreSettings as StoreSettings
from marcod.settings.sections import TrainSettings as TrainSettings
from marcod.settings.sections import WatchSettings as WatchSettings
from marcod.settings.surroundings import PREFIX as PREFIX
from marcod.settings.surroundings import cache_dir as cache_dir
from marcod.settings.surroundings import child_environment as child_environment
from marcod.settings.surroundings import notify_socket as notify_socket
from marcod.settings.surroundings import one_thread_an_operation as one_thread_an_operation
from marcod.settings.surroundings import published_wheel as published_wheel
from marcod.settings.surroundings import quiet_tensorflow as quiet_tensorflow
from marcod.settings.surroundings import state_dir as state_dir
from marcod.settings.surroundings import watchdog_s as watchdog_s

OUTSIDE: Final = frozenset(
    {
        "MARCOD_CONFIG",
        "MARCOD_PUBLISHED_WHEEL",
        "MARCOD_TEST_POSTGRES_URL",
        "MARCOD_REAL_PLATES",
        "MARCOD_MARCO_GRAPH",
        "MARCOD_MARCO_SAVED_MODEL",
    }
)
"""Variables with the prefix that are not settings: which files to read, and what tests and benchmarks use."""

T = TypeVar("T")

NAMED: Final[dict[str, type[BaseModel]]] = {"sources": SourceSettings, "notify": NotifySettings}
"""Sections of tables that an operator names."""


class Settings(BaseSettings):
    """Everything an operator can choose. Get one with :func:`load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    store: StoreSettings = Field(default_factory=StoreSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)
    score: ScoreSettings = Field(default_factory=ScoreSettings)
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    labels: LabelSettings = Field(default_factory=LabelSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    mail: MailSettings = Field(default_factory=MailSettings)
    notify: dict[str, NotifySettings] = Field(default_factory=dict)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    sources: dict[str, SourceSettings] = Field(default_factory=dict)

    @field_validator("sources", "notify")
    @classmethod
    def _plain_names(cls, named: dict[str, T]) -> dict[str, T]:
        for name in named:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(f"name {name!r}: use lower-case letters, digits, - and _")
        return named

    @model_validator(mode="after")
    def _told(self) -> "Settings":
        for name, target in self.notify.items():
            if target.to and self.mail.host is None:
                raise ValueError(f"notify.{name} sends e-mail, and mail.host is not set")
            if unknown := sorted(set(target.sources) - set(self.sources)):
                raise ValueError(f"notify.{name}: there is no source {unknown[0]}")
        return self


def config_file(named: Path | None = None) -> Path | None:
    """The TOML file that :func:`load` reads: the named one, ``MARCOD_CONFIG``, or the first standard place.

    Raises ConfigError when a named file does not exist.
    """
    if named is None and (variable := os.environ.get("MARCOD_CONFIG")):
        named = Path(variable)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"configuration file {named} does not exist; name another or leave it out")
        return named
    return next((path for path in (user_file(), Path("/etc/marcod/marcod.toml")) if path.is_file()), None)


def user_file() -> Path:
    """The configuration file of this user, whether it is there or not."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "marcod" / "marcod.toml"


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The effective settings.

    ``overrides`` is a nested mapping of what the command line set. Raises ConfigError with one sentence that
    names the key, the value's trouble and where it came from.
    """
    path = config_file(config)
    _refuse_unknown_variables()
    layered = _layered(path)
    try:
        return layered(**dict(overrides or {}))
    except ValidationError as error:
        raise ConfigError(_sentence(error, path)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path or 'a credential'} is not UTF-8 text: {error}") from error
    except SettingsError as error:
        raise ConfigError(f"{error}; a variable sets one field, such as MARCOD_WATCH__SETTLE_S=5") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def origins(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where each value of :func:`load` came from, by dotted key; what is at its default is left out."""
    found: dict[str, str] = {}
    if (path := config_file(config)) is not None:
        found |= dict.fromkeys(_flat(TomlConfigSettingsSource(Settings, toml_file=path)()), str(path))
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        found |= dict.fromkeys(_flat(_credentials(Settings, credentials)()), f"a credential in {credentials}")
    for key in _flat(EnvSettingsSource(Settings)()):
        found[key] = f"variable {PREFIX}{key.upper().replace('.', '__')}"
    return found | dict.fromkeys(_flat(overrides or {}), "the command line")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in values.items():
        below = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else []
        keys += below or [f"{prefix}{name}"]
    return keys


def _credentials(settings_cls: type[BaseSettings], folder: str) -> NestedSecretsSettingsSource:
    plain = SecretsSettingsSource(settings_cls, secrets_dir=folder)
    return NestedSecretsSettingsSource(plain, secrets_nested_delimiter="__")


def _layered(path: Path | None) -> type[Settings]:
    """A Settings class that reads this file; pydantic-settings binds its sources to a class."""

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = [init_settings, env_settings]
            if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
                sources.append(_credentials(settings_cls, credentials))
            if path is not None:
                sources.append(TomlConfigSettingsSource(settings_cls, toml_file=path))
            return tuple(sources)

    return Layered


def _refuse_unknown_variables() -> None:
    sections = {name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if not variable.startswith(PREFIX) or variable in OUTSIDE:
            continue
        section, _, field = variable.removeprefix(PREFIX).partition("__")
        if section not in sections or not _has_field(section.lower(), field.lower()):
            raise ConfigError(f"environment variable {variable} is not a setting; `marcod config show` lists them all")


def _has_field(section: str, field: str) -> bool:
    return section in NAMED or not field or field in _table(section).model_fields


def _table(section: str) -> type[BaseModel]:
    """The class of a section, or of each table in a section of named ones."""
    annotation = NAMED.get(section) or Settings.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return annotation


def _sentence(error: ValidationError, path: Path | None) -> str:
    where = f"{path}: " if path else ""
    parts = []
    for problem in error.errors():
        key = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{key} is not a setting")
        else:
            parts.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return where + "; ".join(parts) + ". See `marcod config show` for every key and its default"


def described() -> list[tuple[str, str, object]]:
    """Every key as (dotted name, description, default), for the documentation and `marcod config show`."""
    rows: list[tuple[str, str, object]] = []
    for section in Settings.model_fields:
        prefix = f"{section}.NAME" if section in NAMED else section
        for name, field in _table(section).model_fields.items():
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((f"{prefix}.{name}", field.description or "", default))
    return rows


def redacted_url(settings: Settings) -> str:
    """The database URL without its password, also where that holds what ends one or stands in the query."""
    scheme, _, rest = settings.store.url.get_secret_value().partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    place, mark, query = place.partition("?")
    shown = "&".join(re.sub(r"(?i)^([^=]*(pass|%)[^=]*)=.*", r"\1=***", part) for part in query.split("&"))
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}{mark}{shown}"

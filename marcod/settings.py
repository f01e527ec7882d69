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
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from marcod.domain import Modality
from marcod.errors import ConfigError

PREFIX: Final = "MARCOD_"
OUTSIDE: Final = frozenset(
    {
        "MARCOD_CONFIG",
        "MARCOD_TEST_POSTGRES_URL",
        "MARCOD_REAL_PLATES",
        "MARCOD_MARCO_GRAPH",
        "MARCOD_MARCO_SAVED_MODEL",
    }
)
"""Variables with the prefix that are not settings: which file to read, and what tests and benchmarks use."""

Role = Literal["watch", "score", "schedule", "trainer"]
ROLES: Final[tuple[Role, ...]] = ("watch", "score", "schedule", "trainer")
USUAL_ROLES: Final[tuple[Role, ...]] = ("watch", "score", "schedule")
"""What `marcod run` does unless told; training has a process of its own."""


def state_dir() -> Path:
    """Where the embedded database and models live by default: systemd's StateDirectory, else the user's own."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "marcod"


def notify_socket() -> str | None:
    """Where systemd listens for sd_notify(3) messages, if it does."""
    return os.environ.get("NOTIFY_SOCKET") or None


def quiet_tensorflow() -> None:
    """Keep TensorFlow's notes about missing graphics cards out of the log; it reads this when first imported."""
    graphics = Path("/dev/nvidiactl").exists()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if graphics else "3")


def one_thread_an_operation() -> None:
    """Let a process that only scores work on several parts of a batch at once, with one thread each on a CPU.

    TensorFlow reads it when it starts; by default all threads share every operation and wait for one another.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a marcod of its own: this one's without its settings, with ``changes``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**kept, **changes}


def watchdog_s() -> float | None:
    """How often systemd wants a sign of life (WatchdogSec), in seconds, if it does."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdigit() and int(usec) > 0 else None


def _expanded(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, (str, Path)) else value


FolderPath = Annotated[Path, BeforeValidator(_expanded)]


class Section(BaseModel):
    """One table of the configuration file; frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(Section):
    url: SecretStr = Field(
        default_factory=lambda: SecretStr(f"sqlite:///{state_dir() / 'marcod.sqlite'}"),
        description="Database: sqlite:///PATH (one host, local disk) or postgresql://USER:PASSWORD@HOST/NAME",
    )

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("sqlite:///", "postgresql://", "postgresql+psycopg2://")):
            raise ValueError("start it with sqlite:/// or postgresql://")
        return url


class ModelSettings(Section):
    folder: FolderPath = Field(
        default_factory=lambda: state_dir() / "models",
        description="Folder of the lab's own model bundles, beside the shipped ones",
    )


class WatchSettings(Section):
    settle_s: float = Field(
        default=10.0, ge=0, description="A file is read once its size and time stood still this long"
    )
    rescan_s: float = Field(default=60.0, gt=0, description="Pause between looks at folders whose time changed")
    full_rescan_s: float = Field(default=86_400.0, gt=0, description="Pause between looks at every file")
    quiet_s: float = Field(
        default=1_800.0,
        gt=0,
        description="An inspection without a new image for this long counts as complete",
    )


class ScoreSettings(Section):
    batch_size: int = Field(default=16, ge=1, le=1024, description="Images the model sees at a time")
    decode_threads: int = Field(default=2, ge=1, le=64, description="Threads that read and decode images ahead")
    lease_s: float = Field(default=120.0, gt=0, description="A batch held longer than this returns to the queue")
    max_attempts: int = Field(default=5, ge=1, description="Tries before an image is quarantined")
    retry_s: float = Field(default=30.0, ge=0, description="Pause before the second try; doubles with each further one")
    idle_s: float = Field(default=0.5, gt=0, description="Pause before asking an empty queue again")


class DaemonSettings(Section):
    stop_s: float = Field(default=60.0, gt=0, description="After the first signal, all loops must have ended by then")


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level written")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="key=value lines, JSON, or JSON unless on a terminal"
    )


class LabelSettings(Section):
    vocabularies: FolderPath | None = Field(
        default=None, description="TOML file whose words add to and replace the shipped vocabularies"
    )
    vocabulary: str = Field(
        default="marco", description="Vocabulary of labels that name none, from the inbox and from CSV"
    )


class ReviewSettings(Section):
    threshold_share: float = Field(
        default=0.5, ge=0, description="Share of drops to review that are near the threshold"
    )
    disagreement_share: float = Field(
        default=0.3, ge=0, description="Share of drops on which models or people disagree"
    )
    audit_share: float = Field(default=0.2, ge=0, description="Share of drops drawn at random to estimate the recall")
    audit_drops: int = Field(default=300, ge=10, description="Drops in one random draw of the audit")


class TrainSettings(Section):
    folder: FolderPath = Field(
        default_factory=lambda: state_dir() / "training", description="Folder of training runs: snapshots and curves"
    )
    name: str = Field(
        default="lab", pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the models that training makes"
    )
    schedule: str | None = Field(
        default="0 2 * * *", description="Cron expression, in UTC, of when the trainer looks whether to train"
    )
    min_new_labels: int = Field(default=100, ge=1, description="Labels since the last run that make the trainer train")
    on_drift: bool = Field(default=True, description="A new drift alarm makes the trainer train")
    recipe: Literal["adapt", "scratch"] = Field(
        default="adapt", description="Start from the champion's weights, or from random ones as the paper did"
    )
    promotion: Literal["gated", "manual"] = Field(
        default="gated", description="Whether a model that passes the gate becomes champion, or is only recommended"
    )
    shadow_images: int = Field(
        default=0, ge=0, description="New images that a model scores as challenger before it becomes champion"
    )
    head_crystals: int = Field(
        default=50, ge=1, description="Labelled drops with crystals from which the head is trained"
    )
    all_crystals: int = Field(
        default=300, ge=1, description="Labelled drops with crystals from which the whole network is trained"
    )
    base: Literal["auto", "rendered", "none"] = Field(
        default="auto",
        description="Trained on beside labels: rendered drops, nothing, or rendered for a synthetic champion",
    )
    base_folder: FolderPath | None = Field(
        default=None, description="Folder with labelled images and labels.csv to train on beside the labels, instead"
    )
    base_images: int = Field(default=2000, ge=100, description="Images of the base set that are used")
    epochs: int = Field(default=6, ge=1, description="Passes over the images when the whole network is adapted")
    scratch_epochs: int = Field(default=260, ge=1, description="Passes over the images from scratch; the paper's 260")
    batch_size: int = Field(default=64, ge=2, le=1024, description="Images of one training step")
    quarter_turns: bool = Field(default=True, description="Turn pictures by 90 degrees at random, beside flips")
    precision: Literal["auto", "float32"] = Field(
        default="auto", description="Half precision where the device has it, or float32 everywhere"
    )
    seed: int = Field(default=1, ge=0, description="Everything drawn at random in training follows from it")
    recall: float = Field(
        default=0.95, gt=0, lt=1, description="Share of crystals that a new threshold is chosen to find"
    )
    recall_margin: float = Field(
        default=0.02, ge=0, lt=1, description="Crystal recall that a new model may lose at most"
    )
    imager_margin: float = Field(default=0.05, ge=0, lt=1, description="Accuracy and recall it may lose on one imager")
    min_test_crystals: int = Field(default=15, ge=1, description="Test drops with crystals that a promotion takes")
    min_test_drops: int = Field(default=30, ge=1, description="Test drops that a promotion takes")
    min_test_plates: int = Field(default=2, ge=1, description="Test plates that a promotion takes")
    label_noise: float = Field(
        default=0.25, gt=0, le=1, description="Share of labels that look wrong from which nothing is promoted"
    )


class DriftSettings(Section):
    enabled: bool = Field(default=True, description="Compare each day's images with those of before")
    reference_images: int = Field(default=500, ge=50, description="First images of an imager that are the reference")
    window_days: int = Field(default=7, ge=1, description="Days that are looked at together")
    min_images: int = Field(default=100, ge=20, description="Images in the window below which nothing is said")
    p_value: float = Field(default=1e-4, gt=0, lt=1, description="Chance of a false alarm of one signal on one day")


class SourceSettings(Section):
    """One imager's export folder."""

    root: FolderPath = Field(description="Folder that the imager writes to")
    layout: str = Field(description="Path grammar, one of those `marcod explain` knows")
    observer: Literal["inotify", "polling"] = Field(
        default="inotify", description="inotify for local disks; polling for SMB and NFS shares"
    )
    poll_s: float = Field(default=30.0, gt=0, description="Pause between two polls of a polling observer")
    wells: Literal[24, 48, 96, 384, 1536] = Field(default=96, description="Wells of a plate, to read well numbers")
    profiles: dict[int, Modality] = Field(
        default_factory=dict, description="Formulatrix capture profile number to visible, uv, shg or unknown"
    )
    reservoir_subwells: list[int] = Field(
        default_factory=list,
        description="Rigaku subwells that hold no drop, such as [2] on three-lens plates",
    )
    pattern: str | None = Field(default=None, description="Regular expression with named groups, for layout regex")
    date_format: str | None = Field(default=None, description="strptime format of the group `date`, for layout regex")
    timezone: str = Field(default="UTC", description="Zone of the imager's clock, such as Europe/Berlin")
    expected_drops: int | None = Field(
        default=None,
        ge=1,
        description="Drops in one inspection of a plate; without it the quiet period decides",
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{name!r} is not a time zone name such as Europe/Berlin") from error
        return name


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
    sources: dict[str, SourceSettings] = Field(default_factory=dict)

    @field_validator("sources")
    @classmethod
    def _source_names(cls, sources: dict[str, SourceSettings]) -> dict[str, SourceSettings]:
        for name in sources:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(f"source name {name!r}: use lower-case letters, digits, - and _")
        return sources


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
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "marcod" / "marcod.toml"
    return next((path for path in (user, Path("/etc/marcod/marcod.toml")) if path.is_file()), None)


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
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except SettingsError as error:
        raise ConfigError(f"{error}; a variable sets one field, such as MARCOD_WATCH__SETTLE_S=5") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


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
                plain = SecretsSettingsSource(settings_cls, secrets_dir=credentials)
                sources.append(NestedSecretsSettingsSource(plain, secrets_nested_delimiter="__"))
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
    if section == "sources":
        return True
    table = Settings.model_fields[section].annotation
    if not field:
        return True
    return isinstance(table, type) and issubclass(table, BaseModel) and field in table.model_fields


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
    for section, info in Settings.model_fields.items():
        table = SourceSettings if section == "sources" else info.annotation
        prefix = "sources.NAME" if section == "sources" else section
        assert isinstance(table, type)
        assert issubclass(table, BaseModel)
        for name, field in table.model_fields.items():
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((f"{prefix}.{name}", field.description or "", default))
    return rows


def redacted_url(settings: Settings) -> str:
    """The database URL without its password, for logs and people."""
    url = re.sub(r"(://[^:/@]+):.*@", r"\1:***@", settings.store.url.get_secret_value())
    return re.sub(r"(password=)[^&]*", r"\1***", url)

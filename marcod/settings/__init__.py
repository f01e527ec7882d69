"""The tables of the configuration, one class each: every key with its type, its default and what it means.

``loading`` reads them from all their places; ``environment`` has the variables of a process that are no settings.
"""

import os
import re
from ipaddress import ip_network
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from marcod.settings import hosts, well_cells
from marcod.settings.environment import state_dir
from marcod.settings.imagers import USED_BY as USED_BY
from marcod.settings.imagers import HostSettings
from marcod.settings.imagers import SourceSettings as SourceSettings
from marcod.settings.key_maps import KeyAction, KeyMap, keys_of
from marcod.settings.sections import FolderPath
from marcod.settings.sections import Section as Section

MOST_IMAGES: Final = 64
"""Most images of a batch where its size is measured."""

Role = Literal["watch", "score", "schedule", "trainer", "web"]
ROLES: Final[tuple[Role, ...]] = ("watch", "score", "schedule", "trainer", "web")
USUAL_ROLES: Final[tuple[Role, ...]] = ("watch", "score", "schedule")
"""Roles of `marcod run` without --roles; training and the page have processes of their own."""


class StoreSettings(Section):
    url: SecretStr = Field(
        default_factory=lambda: SecretStr(f"sqlite:///{state_dir() / 'marcod.sqlite'}"),
        examples=["postgresql://marcod@db.example.org/marcod"],
        description="Database: sqlite:///PATH (one host, local disk) or postgresql://USER:PASSWORD@HOST/NAME",
    )

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("sqlite:///", "postgresql://", "postgresql+psycopg2://")):
            raise ValueError("start it with sqlite:/// or postgresql://")
        scheme, _, rest = url.get_secret_value().partition("://")
        if scheme == "sqlite" and os.path.isdir(rest[1:].partition("?")[0]):  # noqa: PTH112 - a Path raises on names that are too long
            raise ValueError("it names a folder; name a file in it, such as marcod.sqlite")
        port = re.match(r"[^/?]*:(\d+)(?:[/?]|$)", rest.rpartition("@")[2])
        if scheme != "sqlite" and port and not 1 <= int(port[1]) <= 65535:
            raise ValueError("a port is a number from 1 to 65535, such as 5432")
        return url


class ModelSettings(Section):
    folder: FolderPath = Field(
        default_factory=lambda: state_dir() / "models",
        description="Folder of the lab's own model bundles, in addition to the shipped ones",
    )


class WatchSettings(Section):
    settle_s: float = Field(10.0, ge=0, description="A file is read once its size and time stood still this long")
    rescan_s: float = Field(60.0, gt=0, description="Pause between looks at folders whose time changed")
    full_rescan_s: float = Field(86_400.0, gt=0, description="Pause between looks at every file")
    quiet_s: float = Field(
        1_800.0, gt=0, description="An inspection without a new image for this long counts as complete"
    )


class ScoreSettings(Section):
    engine: Literal["auto", "tensorflow", "openvino"] = Field(
        "auto", description="What calculates scores here; `auto` is TensorFlow where it is installed, else OpenVINO"
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="Images the model sees at a time; `auto` doubles them until more are no faster"
    )
    decode_threads: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto", description="Threads that read and decode images ahead; `auto` is one for each core"
    )
    lease_s: float = Field(
        120.0, gt=0, description="Work of a process that died returns to the queue after this; one that lives renews it"
    )
    max_attempts: int = Field(5, ge=1, description="Tries before an image is quarantined")
    retry_s: float = Field(30.0, ge=0, description="Pause before the second try; doubles with each further one")
    idle_s: float = Field(
        2.0, gt=0, description="Longest pause before asking an empty queue again; what is queued ends it at once"
    )
    accept_gone: bool = Field(
        False, description="Do not report images whose files go before they are scored, as a clean-up makes them"
    )

    @property
    def most_images(self) -> int:
        """Most images of one batch."""
        return MOST_IMAGES if self.batch_size == "auto" else self.batch_size

    @property
    def tried_images(self) -> int:
        """Images that a device is tried with."""
        return 16 if self.batch_size == "auto" else self.batch_size

    @property
    def threads(self) -> int:
        """Threads that decode on this host."""
        cores = len(os.sched_getaffinity(0))
        return min(max(2, cores), 64) if self.decode_threads == "auto" else self.decode_threads


class DaemonSettings(Section):
    stop_s: float = Field(60.0, gt=0, description="After the first signal, all loops must have ended by then")
    batch_limit_s: float = Field(
        600.0, gt=0, description="A batch that takes longer hangs on its device, and the process ends"
    )
    restarts: int = Field(
        10, ge=0, description="Unforeseen failures of a loop within an hour after which it is restarted"
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="key=value lines, JSON, or JSON unless on a terminal"
    )


class LabelSettings(Section):
    vocabularies: FolderPath | None = Field(
        None,
        examples=["/etc/marcod/vocabularies.toml"],
        description="TOML file whose labels add to and replace those of the shipped vocabularies",
    )
    vocabulary: str = Field("marco", description="Vocabulary of labels that name none, from the inbox and from CSV")


class ReviewSettings(Section):
    threshold_share: float = Field(0.5, ge=0, description="Share of drops to review that are near the threshold")
    disagreement_share: float = Field(0.3, ge=0, description="Share of drops on which models or people disagree")
    audit_share: float = Field(0.2, ge=0, description="Share of drops drawn at random to estimate the recall")
    audit_drops: int = Field(300, ge=10, description="Drops in one random draw of the audit")


class TrainSettings(Section):
    folder: FolderPath = Field(
        default_factory=lambda: state_dir() / "training", description="Folder of training runs: snapshots and curves"
    )
    name: str = Field("lab", pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the models that training makes")
    member: str | None = Field(
        None,
        examples=["lite0"],
        description="Member that learns where a committee is champion, by name; by default the one that learned from "
        "this lab before, else the smallest",
    )
    schedule: str | None = Field(
        "0 2 * * *", description="Cron expression, in UTC, of when the trainer looks whether to train"
    )
    min_new_labels: int = Field(100, ge=1, description="Labels since the last run that make the trainer train")
    on_drift: bool = Field(True, description="A new drift alarm makes the trainer train")
    recipe: Literal["adapt", "scratch"] = Field(
        "adapt", description="Start from the champion's weights, or from random ones as the paper did"
    )
    promotion: Literal["gated", "manual"] = Field(
        "gated", description="Whether a model that passes the gate becomes champion, or is only recommended"
    )
    shadow_images: int = Field(
        0, ge=0, description="New images that a model scores as challenger before it becomes champion"
    )
    head_crystals: int = Field(
        5, ge=1, description="Labelled drops with crystals from which the last layer may change what is a crystal"
    )
    all_crystals: int = Field(
        300, ge=1, description="Labelled drops with crystals from which the whole network is trained"
    )
    base: Literal["auto", "rendered", "none"] = Field(
        "auto",
        description="Rehearsal set: rendered drops, none, or rendered for a model of visible light",
    )
    base_folder: FolderPath | None = Field(
        None,
        examples=["/data/labelled"],
        description="Folder with labelled images and labels.csv as the rehearsal set, instead",
    )
    pack: FolderPath | None = Field(
        None,
        examples=["/data/packs"],
        description="Folder that `marcod dataset pack` wrote; what it lacks is read from the imagers' files",
    )
    base_images: int = Field(2000, ge=100, description="Images of the rehearsal set that are used")
    epochs: int = Field(6, ge=1, description="Passes over the images when the whole network is adapted")
    scratch_epochs: int = Field(260, ge=1, description="Passes over the images from scratch; the paper's 260")
    batch_size: int = Field(64, ge=2, le=1024, description="Images of one training step")
    quarter_turns: bool = Field(True, description="Turn images by 90 degrees at random, in addition to flips")
    precision: Literal["auto", "float32"] = Field(
        "auto", description="Half precision where the device has it, or float32 everywhere"
    )
    seed: int = Field(1, ge=0, description="Everything drawn at random in training follows from it")
    recall: float = Field(0.95, gt=0, lt=1, description="Share of crystals that a new threshold is chosen to find")
    recall_margin: float = Field(0.02, ge=0, lt=1, description="Crystal recall that a new model may lose at most")
    imager_margin: float = Field(0.05, ge=0, lt=1, description="Accuracy and recall it may lose on one imager")
    min_test_crystals: int = Field(15, ge=1, description="Test drops with crystals that a promotion takes")
    min_test_drops: int = Field(30, ge=1, description="Test drops that a promotion takes")
    min_test_plates: int = Field(2, ge=1, description="Test plates that a promotion takes")
    label_noise: float = Field(
        0.25, gt=0, le=1, description="Share of labels that look wrong from which nothing is promoted"
    )


class DriftSettings(Section):
    enabled: bool = Field(True, description="Compare each day's images with those of before")
    reference_images: int = Field(500, ge=50, description="First images of an imager that are the reference")
    window_days: int = Field(7, ge=1, description="Days that are looked at together")
    min_images: int = Field(100, ge=20, description="Images in the window below which nothing is said")
    p_value: float = Field(1e-4, gt=0, lt=1, description="Chance of a false alarm of one signal on one day")


class MetricsSettings(Section):
    port: int | None = Field(
        None, ge=1, le=65535, examples=[9112], description="Port where Prometheus reads; none by default"
    )
    address: str = Field("127.0.0.1", description="Address that the port is bound to")
    textfile: FolderPath | None = Field(
        None,
        examples=["/var/lib/node_exporter/marcod.prom"],
        description="File for node-exporter's text collector, such as /var/lib/node_exporter/marcod.prom",
    )
    every_s: float = Field(15.0, gt=0, description="Pause between two looks at the database for metrics")


EventKind = Literal["hits", "complete", "quarantine", "drift"]
EVENT_KINDS: Final[tuple[EventKind, ...]] = ("hits", "complete", "quarantine", "drift")


def _mailbox(text: str) -> str:
    if text.count("@") != 1 or not text.isprintable() or text != text.strip():
        raise ValueError(f"{text!r} is no address such as lab@example.org")
    return text


Mailbox = Annotated[str, AfterValidator(_mailbox)]


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no address such as 10.0.0.5 and no network such as 10.0.0.0/24") from error


Network = Annotated[str, AfterValidator(_network)]


class NotifySettings(Section):
    """One target of notifications: a webhook (``url``) or people's mailboxes (``to``)."""

    url: SecretStr | None = Field(
        None,
        examples=["https://lims.example.org/marcod"],
        description="Webhook that gets a POST; https, or http on this host",
    )
    secret: SecretStr | None = Field(
        None, examples=["CHANGE-ME"], description="Key of the signature in X-Marcod-Signature"
    )
    to: list[Mailbox] = Field(
        default_factory=list, examples=[["lab@example.org"]], description="Addresses that get an e-mail, through [mail]"
    )
    events: list[EventKind] = Field(
        default_factory=lambda: list(EVENT_KINDS), description="Events that are sent: hits, complete, quarantine, drift"
    )
    sources: list[str] = Field(
        default_factory=list, examples=[["minstrel"]], description="Only of these sources; empty means all"
    )
    projects: list[str] = Field(
        default_factory=list, examples=[["lysozyme"]], description="Only of plates of these projects; empty means all"
    )
    format: Literal["json", "text"] = Field("json", description="How the body of a webhook is written")
    every_s: float = Field(30.0, ge=0, description="Events within this time are sent in one message")

    @model_validator(mode="after")
    def _one_way(self) -> "NotifySettings":
        if (self.url is None) == (not self.to):
            raise ValueError("give either url, for a webhook, or to, for e-mail")
        if self.url is not None and not _guarded(self.url.get_secret_value()):
            raise ValueError("url must begin with https://; plain http:// only reaches this host")
        return self


def _guarded(url: str) -> bool:
    """Tell if no other host can read or change what is sent."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))


class MailSettings(Section):
    host: str | None = Field(
        None, examples=["mail.example.org"], description="Mail server; needed where [notify] names addresses"
    )
    port: int = Field(25, ge=1, le=65535, description="Its port: 25, 587 with starttls, 465 with tls")
    security: Literal["none", "starttls", "tls"] = Field("none", description="How the connection is guarded")
    user: str | None = Field(None, examples=["marcod"], description="Who logs in; needs starttls or tls")
    password: SecretStr | None = Field(None, examples=["CHANGE-ME"], description="The password of that user")
    sender: Mailbox = Field("marcod@localhost", description="Address that e-mails come from")

    @model_validator(mode="after")
    def _no_password_in_the_open(self) -> "MailSettings":
        if self.user is not None and self.security == "none":
            raise ValueError("a login needs security = 'starttls' or 'tls'")
        return self


class WebSettings(Section):
    """The page: who may see it, where it listens, its keys."""

    access: Literal["local", "proxy", "accounts"] = Field(
        "local",
        description="Who sees the page: this host's users (local), whom a reverse proxy names (proxy), or whom "
        "`marcod web user` knows (accounts)",
    )
    address: str = Field("127.0.0.1", description="Address that the page's port is bound to")
    port: int = Field(8750, ge=1, le=65535, description="Port of the page")
    socket: FolderPath | None = Field(
        None, examples=["/run/marcod-web/page.sock"], description="Unix socket of the page, instead of address and port"
    )
    public_url: str | None = Field(
        None,
        examples=["https://marcod.example.org"],
        description="Address of the page in browsers, where a proxy or another host stands between",
    )
    trusted_proxies: list[Network] = Field(
        default_factory=list,
        examples=[["127.0.0.1"]],
        description="Addresses or networks of proxies whose header is believed, with access proxy",
    )
    header: str = Field(
        "X-Remote-User",
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="Header in which a trusted proxy names the person; it must replace what browsers send",
    )
    role: Literal["viewer", "labeller"] = Field(
        "labeller", description="Role of whom the proxy names and `marcod web user` does not know"
    )
    session_h: float = Field(12.0, gt=0, description="Hours without use after which a login ends, with access accounts")
    cache_folder: FolderPath = Field(
        default_factory=lambda: state_dir() / "page", description="Folder of the small images that the page keeps"
    )
    cache_mb: int = Field(2_000, ge=10, description="Megabytes of small images that are kept at most")
    key_map: KeyMap = Field("letters", description="Keys of the page: letters for classes, or digits for classes")
    keys: dict[KeyAction, Annotated[str, Field(min_length=1, max_length=20)]] = Field(
        default_factory=dict,
        examples=[{"crystals": "y"}],
        description="Other keys for single actions, by the browser's name of the key",
    )
    cells: dict[int, str] = Field(
        default_factory=dict,
        examples=[{3: "1 ./2 3"}],
        description="Where the drops of a well lie on the map, by their number: rows with / between, a dot is empty",
    )
    advance: bool = Field(True, description="A label on the drop page goes on to the next drop")

    @field_validator("public_url")
    @classmethod
    def _plain_origin(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError("write it as https://HOST or https://HOST:PORT, without a path")
        return f"{parts.scheme}://{parts.netloc.lower()}"

    @field_validator("cells")
    @classmethod
    def _possible_cells(cls, cells: dict[int, str]) -> dict[int, str]:
        for count, text in cells.items():
            if len(well_cells.parse(text).places) != count:
                raise ValueError(f"{text!r} does not place {count} drops; write rows such as '1 ./2 3'")
        return cells

    @field_validator("keys")
    @classmethod
    def _one_action_a_key(cls, changed: dict[KeyAction, str], given: ValidationInfo) -> dict[KeyAction, str]:
        keys_of(given.data.get("key_map", "letters"), changed)
        return changed

    @property
    def is_loopback(self) -> bool:
        """Tell if no other host reaches the port."""
        return self.socket is None and self.address in ("127.0.0.1", "::1", "localhost")

    @model_validator(mode="after")
    def _closed(self) -> "WebSettings":
        if self.access == "local" and not self.is_loopback:
            key = "address" if self.socket is None else "socket"
            text = "access local listens on 127.0.0.1 alone; choose access proxy or accounts for others"
            raise PydanticCustomError("unused", "{text}", {"text": text, "key": (key,)})
        if self.access == "proxy" and self.socket is None and not self.trusted_proxies:
            text = "the header is believed from trusted_proxies or over a socket alone, and neither is set"
            raise _lacking(("access",), text, ("web", "trusted_proxies"))
        if self.public_url is None and (self.access == "proxy" or not self.is_loopback):
            text = "public_url is needed, the address of the page in browsers, such as https://HOST"
            key = "address" if self.access == "accounts" and self.socket is None else "access"
            raise _lacking((key,), text, ("web", "public_url"))
        return self


class RetentionSettings(Section):
    scores_days: int | None = Field(
        None, ge=1, examples=[365], description="Scores that a newer one replaced are kept so long; none: for ever"
    )
    audit_days: int | None = Field(
        None,
        ge=30,
        examples=[3650],
        description="Audit rows are kept so long, those of models and roles for ever; none: all",
    )
    events_days: int = Field(30, ge=1, description="Notifications that were sent are kept so long")


NAMED: Final[dict[str, type[Section]]] = {
    "sources": SourceSettings,
    "hosts": HostSettings,
    "notify": NotifySettings,
}
"""Sections of tables that an operator names."""

T = TypeVar("T")


def is_plain_name(name: str) -> bool:
    """Tell if a source or a notification may have this name."""
    return re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) is not None


class Settings(BaseModel):
    """Everything an operator can choose. Get one with :func:`marcod.settings.loading.load`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    web: WebSettings = Field(default_factory=WebSettings)
    notify: dict[str, NotifySettings] = Field(default_factory=dict)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    hosts: dict[str, HostSettings] = Field(default_factory=dict)

    @field_validator("sources", "notify")
    @classmethod
    def _plain_names(cls, named: dict[str, T]) -> dict[str, T]:
        for name in named:
            if not is_plain_name(name):
                text = "write this name with lower-case letters, digits, - and _"
                raise PydanticCustomError("name", "{text}", {"text": text, "key": (name,)})
        return named

    @field_validator("hosts")
    @classmethod
    def _patterns(cls, named: dict[str, HostSettings]) -> dict[str, HostSettings]:
        for pattern in named:
            try:
                hosts.require(pattern)
            except ValueError as error:
                raise PydanticCustomError("name", "{text}", {"text": str(error), "key": (pattern,)}) from error
        return named

    @model_validator(mode="after")
    def _of_sources_that_there_are(self) -> "Settings":
        for pattern, host in self.hosts.items():
            if unknown := sorted(set(host.sources) - set(self.sources)):
                text, needs = f"there is no source {unknown[0]!r}", ("sources", unknown[0])
                raise _lacking(("hosts", pattern, "sources", unknown[0]), text, needs)
        return self

    @model_validator(mode="after")
    def _told(self) -> "Settings":
        for name, target in self.notify.items():
            if unknown := sorted(set(target.sources) - set(self.sources)):
                text, needs = f"there is no source {unknown[0]!r}", ("sources", unknown[0])
                raise _lacking(("notify", name, "sources"), text, needs)
        for name, target in self.notify.items():
            if target.to and self.mail.host is None:
                raise _lacking(("notify", name, "to"), "addresses need mail.host, which is not set", ("mail", "host"))
        return self


def _lacking(key: tuple[str, ...], text: str, needs: tuple[str, ...]) -> PydanticCustomError:
    """Make an error about a key that is wrong because of ``needs``, another key."""
    return PydanticCustomError("needs", "{text}", {"text": text, "key": key, "needs": needs})

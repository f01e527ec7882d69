"""Model registry: the bundles on this host and the versions in the database.

The database decides which version is champion; folders only tell what exists on this host.

Guarantees:

* A version's scores come from the very bundle registered under its name; digests are compared before it serves.
* No version becomes champion that cannot serve here.
* A committee's members are registered with it, and stay as long as it is here.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from marcod import files
from marcod.database.engine import Database
from marcod.errors import BundleError, ConfigError, NotFoundError, StoreError, os_reason
from marcod.model import bundle
from marcod.model.committee import Member
from marcod.store import audit_log, serving, versions
from marcod.store.promotions import Promotion
from marcod.text import offer

if TYPE_CHECKING:
    from marcod.model import engines
    from marcod.model.bundle import BundleRecord
    from marcod.model.predictor import Predictor

SHIPPED: Final = ("lite0", "1")
"""The version that serves until a lab promotes another."""

CHECK_BATCH: Final = 4
"""Batch size while a model only proves that it can serve."""

AT_ONCE_S: Final = 3.0
"""Time for which a promotion works on what is to be worked out before it; what takes longer goes on elsewhere."""


def shipped_folder() -> Path:
    """Return the folder of shipped bundles: inside the installed package, else next to it in a checkout."""
    return files.shipped("models")


def companion(family: str | None) -> str | None:
    """Return the shipped version where it makes a committee with a network of this family, else None.

    Networks of one family err on the same drops.
    """
    shipped = bundle.read(shipped_folder().joinpath(*SHIPPED)).family
    return ":".join(SHIPPED) if None not in (family, shipped) and family != shipped else None


def parse(text: str) -> tuple[str, str]:
    """Split ``NAME:VERSION`` into name and version. Raises ConfigError."""
    match = re.fullmatch(r"([a-z0-9][a-z0-9._-]*):([0-9]+)", text)
    if match is None:
        raise ConfigError(
            f"{text!r} does not name a model; write NAME:VERSION, as `marcod model list` shows them, "
            f"or {', '.join(versions.ALIASES[:-1])} or {versions.ALIASES[-1]}"
        )
    return match[1], match[2]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Model version: registered in the database, or a bundle on this host, or both.

    ``problem`` is why it cannot serve here although it should; :meth:`Registry.why_unusable` looks closer.
    """

    name: str
    registered: versions.Registered | None
    folder: Path | None
    record: "BundleRecord | None"
    problem: str | None


class Registry:
    """Bundles of this host, own folder first, and their rows in one database."""

    def __init__(self, db: Database, own_folder: Path | None = None, engine: "engines.Setting" = "auto") -> None:
        self._db = db
        self._own, self._engine = own_folder, engine
        self._folders: Sequence[Path] = [f for f in (own_folder, shipped_folder()) if f is not None]
        self._loaded: WeakValueDictionary[tuple[str, int], Predictor] = WeakValueDictionary()

    def on_disk(self) -> list[tuple[str, str, Path]]:
        """List every bundle folder here as (name, version, path), registered or not."""
        found = {
            (path.parent.parent.name, path.parent.name): path.parent
            for folder in reversed(self._folders)
            for path in sorted(folder.glob("*/*/bundle.toml"))
        }
        return [(name, version, path) for (name, version), path in sorted(found.items())]

    def path(self, name: str, version: str) -> Path:
        """Return the folder of a bundle. Raises NotFoundError, and BundleError for an unreadable folder."""
        for folder in self._folders:
            try:
                if (folder / name / version / "bundle.toml").is_file():
                    return folder / name / version
            except OSError as error:
                text = f"{folder} cannot be looked at: {os_reason(error)}"
                raise BundleError(f"{text}; let this user read and search it (models.folder)") from error
        places = " or ".join(str(f) for f in self._folders)
        raise NotFoundError(f"there is no bundle {name}:{version} in {places}; {self._offered(f'{name}:{version}')}")

    def _offered(self, name: str) -> str:
        return offer(name, (f"{known}:{version}" for known, version, _ in self.on_disk()), "models here")

    def resolve(self, text: str) -> tuple[str, str]:
        """Return name and version of what a person wrote: ``NAME:VERSION`` or an alias.

        Raises ConfigError when it is neither, NotFoundError when no version has that alias.
        """
        if text not in versions.ALIASES:
            return parse(text)
        found = self._db.read(versions.aliased, text)
        if found is None:
            raise NotFoundError(f"no model is {text}; `marcod model list` shows the models and their aliases")
        return found.name, found.version

    def find(self, text: str) -> versions.Version:
        """Return the registered version that a person means, bundle here or not. Raises as :meth:`resolve`."""
        name, version = self.resolve(text)
        return self._db.read(versions.find, name, version)

    def resolve_registered(self, text: str, now: datetime) -> versions.Version:
        """Return the version that a person means and whose bundle is here and intact; register it if new."""
        return self.register(*self.resolve(text), now)

    def look_up(self, text: str) -> versions.Version | None:
        """Resolve like :meth:`resolve_registered`, without registering: None for a bundle that only lies here."""
        name, version = self.resolve(text)
        path, record = self._verified(name, version)
        try:
            found = self._db.read(versions.find, name, version)
        except NotFoundError:
            return None
        if found.digest != record.digest:
            raise BundleError(f"{_not_registered(path, str(found))}; restore the original folder")
        return found

    def register(self, name: str, version: str, now: datetime) -> versions.Version:
        """Return the row of a bundle that exists here, inserted if new; a committee's after those of its members.

        Raises BundleError when it is damaged or lacks a member.
        """
        _, record = self._verified(name, version)
        with _of_committee(record):
            members = [self._verified(m.name, str(m.version))[1] for m in _members(record)]

        def add(connection: Any) -> versions.Version:
            for member in members:
                _register(connection, member, now)
            return _register(connection, record, now)

        return self._db.write(add)

    def _verified(self, name: str, version: str) -> tuple[Path, "BundleRecord"]:
        path = self.path(name, version)
        record = bundle.verify(path)
        if problem := _misplaced(path, record):
            raise BundleError(problem)
        if lacking := self._lacks(record):
            raise BundleError(f"{name}:{version} cannot serve here: {lacking}")
        return path, record

    def _lacks(self, record: "BundleRecord") -> str | None:
        """Return which member of a committee is not here as it must be; None of a network."""
        problems = (bundle.member_problem(m, self._folder(m.name, str(m.version))) for m in _members(record))
        return next((problem for problem in problems if problem is not None), None)

    def _folder(self, name: str, version: str) -> Path | None:
        try:
            return self.path(name, version)
        except NotFoundError:
            return None

    def known(self) -> list[ModelInfo]:
        """List every version in the database or on this host, unreadable ones with their problem."""
        rows = {str(r.version): r for r in self._db.read(versions.listed)}
        folders = {f"{name}:{version}": path for name, version, path in self.on_disk()}
        return [self._known(name, rows.get(name), folders.get(name)) for name in sorted({*rows, *folders})]

    def _known(self, name: str, row: versions.Registered | None, folder: Path | None) -> ModelInfo:
        if folder is None:
            serves = row is not None and row.aliases
            return ModelInfo(name, row, None, None, "it is not on this host" if serves else None)
        try:
            record = bundle.read(folder)
        except BundleError as error:
            return ModelInfo(name, row, folder, None, str(error))
        try:
            problem = _misplaced(folder, record) or self._lacks(record)
        except BundleError as error:
            # The record stays, since it names the members, which must not be removed.
            problem = str(error)
        if problem is None and row is not None and row.version.digest != record.digest:
            problem = _not_registered(folder, name)
        return ModelInfo(name, row, folder, record, problem)

    def next_number(self, name: str, taken: Sequence[str] = ()) -> int:
        """Return the version number after all that a name ever had, here, in the database or among ``taken``."""
        named = [(n, v) for n, _, v in (full.rpartition(":") for full in (*(k.name for k in self.known()), *taken))]
        return 1 + max((int(number) for known, number in named if known == name and number.isdigit()), default=0)

    def describe(self, text: str) -> ModelInfo:
        """Return one of :meth:`known`. Raises ConfigError or NotFoundError."""
        wanted = ":".join(self.resolve(text))
        for model in self.known():
            if model.name == wanted:
                return model
        raise NotFoundError(f"there is no model {wanted}; {self._offered(wanted)}")

    def history(self, model: ModelInfo) -> list[audit_log.AuditEntry]:
        """List the audit entries of a version, the latest first."""
        return self._db.read(audit_log.history, model.name)

    def why_unusable(self, model: ModelInfo) -> str | None:
        """Return why a version cannot serve here, by digest, checksums and golden images; None if it can."""
        if model.problem is not None or model.folder is None:
            return model.problem or "it is not on this host"
        try:
            bundle.load(model.folder, CHECK_BATCH, self._member_loader(CHECK_BATCH), self._engine)
        except BundleError as error:
            return str(error)
        except OSError as error:
            return f"{model.folder} cannot be read: {error.strerror}"
        return None

    def ensure_champion(self, now: datetime) -> versions.Version:
        """Return the champion; in a new database the shipped bundle is promoted."""
        if self._db.read(versions.has_champion):
            return self._db.read(versions.champion)
        first = self.register(*SHIPPED, now)
        # Not loaded here: scorers load it first, and readers must not wait for it.
        self._db.write(serving.promote, first, actor="marcod", now=now)
        return first

    def promote(
        self, version: versions.Version, *, actor: str, now: datetime, instead_of: str | None = None
    ) -> Promotion | None:
        """Make a version champion that proves here that it can serve; scorers change over between two batches.

        Returns None when it is. Of a version that scored much before, only the first plates are worked out here: then
        how far that is, and the former champion speaks until ``serving.advance`` is at its end.

        With ``instead_of``, a ``NAME:VERSION``, only in that one's place. Raises BundleError, also for a version of
        lower precision that loses crystals, NotFoundError, or StoreError when another became champion meanwhile; then
        nothing has changed.
        """
        record = self.load(version, CHECK_BATCH).record
        if record.conversion is not None and record.conversion.refusal is not None:
            raise BundleError(
                f"{version} may not become champion, compared with {record.parent}: {record.conversion.refusal}"
            )
        self._db.write(serving.promote, version, actor=actor, now=now, instead_of=instead_of)
        ends = time.monotonic() + AT_ONCE_S
        return self.go_on(version, lambda: now, stop=lambda: time.monotonic() >= ends)

    def go_on(
        self,
        version: versions.Version,
        clock: Callable[[], datetime],
        *,
        stop: Callable[[], bool],
        report: Callable[[Promotion], None] = lambda _: None,
    ) -> Promotion | None:
        """Work on the promotion of a version until it is champion, and return None, or until ``stop`` says so.

        Raises StoreError when somebody made another one champion meanwhile, or is about to.
        """
        left = serving.advance(self._db, clock, stop=stop, report=report)
        found = left.version if left is not None else self._db.read(versions.champion)
        if found != version:
            is_now = "is champion" if left is None else "is becoming champion"
            raise StoreError(f"{found} {is_now} meanwhile; somebody promoted it instead of {version}")
        return left

    def rollback(self, *, actor: str, now: datetime) -> tuple[versions.Version, versions.Version]:
        """Make the previous champion champion again. Returns the former one and the new one.

        Raises StoreError when there is none, BundleError or NotFoundError when it cannot serve here.
        """
        version = self._db.read(versions.previous)
        self.load(version, CHECK_BATCH)
        return self._db.write(serving.rollback, version, actor=actor, now=now), version

    def challenge(self, version: versions.Version | None, *, actor: str, now: datetime) -> versions.Version | None:
        """Let a version that can serve here score every new image next to the champion; None ends it.

        Returns the former challenger. Raises as :meth:`promote`, and StoreError for the champion itself.
        """
        if version is not None:
            self.load(version, CHECK_BATCH)
        return self._db.write(serving.challenge, version, actor=actor, now=now)

    def remove(self, model: ModelInfo, *, force: bool, actor: str, now: datetime) -> bool:
        """Remove a version: its bundle from the lab's own folder, and its rows unless it has scores, which stay.

        Returns whether scores stay. Raises BundleError for a shipped bundle, StoreError for a member of a committee
        that is here, and as :func:`serving.remove`.
        """
        name, version = parse(model.name)
        if (shipped_folder() / name / version).is_dir():
            raise BundleError(
                f"{model.name} came with marcod in {shipped_folder()}; only a lab's own bundles are removed"
            )
        row = model.registered
        unregistered = row is None or row.removed_at is not None
        if unregistered and model.folder is None:
            raise StoreError(f"{model.name} was removed already")

        if (committee := next(self._committees_of(model), None)) is not None:
            raise StoreError(
                f"{model.name} is a member of {committee}, which would not serve without it; "
                f"`marcod model remove {committee}` comes first"
            )

        def forget(connection: Any) -> bool:
            if row is None or unregistered:
                audit_log.write(connection, actor, "remove", model.name, {"folder": str(model.folder)}, now)
                return row is not None
            return serving.remove(connection, row.version, force=force, actor=actor, now=now)

        # The database first: after a kill here an unused folder is left, which the same command removes.
        # The other way round a version would have work and no bundle.
        kept = self._db.write(forget)
        if model.folder is not None:
            _discard(model.folder)
        return kept

    def champion_view(self) -> str:
        """Return a name of the pixels that the champion takes of an image; "" where its bundle is not readable here."""
        version = self._db.read(versions.champion)
        try:
            record = bundle.read(self.path(version.name, version.version))
            if record.committee is not None:
                # The first member's pixels are those that brightness, contrast and focus are measured on.
                record = bundle.read(self.member_folder(record, record.committee.members[0]))
        except (BundleError, NotFoundError):
            return ""
        return json.dumps(record.preprocessing, sort_keys=True)

    def _committees_of(self, model: ModelInfo) -> Iterator[str]:
        """Yield the committees here that have a bundle as member."""
        for known in self.known():
            members = () if known.record is None else _members(known.record)
            if any(str(member) == model.name for member in members):
                yield known.name

    def load(self, version: versions.Version, batch_size: int) -> "Predictor":
        """Load a predictor for a registered version. Raises BundleError when the bundle here is another one.

        What this registry loaded before at the same batch size and somebody still holds, as a version of its own or as
        a committee's member, is not loaded a second time.
        """
        path = self.path(version.name, version.version)
        if bundle.read(path).digest != version.digest:
            raise BundleError(f"{_not_registered(path, str(version))}; restore the original folder")
        return self._load(path, version.digest, batch_size)

    def _load(self, path: Path, digest: str, batch_size: int) -> "Predictor":
        held = self._loaded.get((digest, batch_size))
        if held is not None:
            self._verify_files(path)
            return held
        loaded = bundle.load(path, batch_size, self._member_loader(batch_size), self._engine)
        self._loaded[digest, batch_size] = loaded
        return loaded

    def _verify_files(self, path: Path) -> None:
        """Compare the files of a bundle, and of a committee's members, with their checksums. Raises BundleError."""
        record = bundle.verify(path)
        folders = [self.member_folder(record, member) for member in _members(record)]
        with _of_committee(record):
            for folder in folders:
                bundle.verify(folder)

    def _member_loader(self, batch_size: int) -> bundle.LoadMember:
        def load(committee: "BundleRecord", member: Member) -> "Predictor":
            folder = self.member_folder(committee, member)
            with _of_committee(committee):
                return self._load(folder, member.digest, batch_size)

        return load

    def load_new(self, path: Path, batch_size: int) -> "Predictor":
        """Load a bundle that is not installed yet; members of a committee lie next to it, else here."""
        members = bundle.members_in([path.parent.parent, *self._folders], batch_size, self._engine)
        return bundle.load(path, batch_size, members, self._engine)

    def member_folder(self, committee: "BundleRecord", member: Member) -> Path:
        """Return the folder of a committee's member. Raises BundleError where it is not here or another one is."""
        return bundle.member_folder(committee, member, self._folder(member.name, str(member.version)))


def metrics(model: ModelInfo) -> dict[str, Any] | None:
    """Return the contents of a bundle's ``metrics.json``; None where it cannot be read."""
    if model.folder is None:
        return None
    try:
        found = json.loads((model.folder / bundle.METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _of_committee(record: "BundleRecord") -> Iterator[None]:
    """Say of a member's damage which version it keeps from serving."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{record.name}:{record.version} cannot serve here: {error}") from error


def _members(record: "BundleRecord") -> tuple[Member, ...]:
    return () if record.committee is None else record.committee.members


def _register(connection: Any, record: "BundleRecord", now: datetime) -> versions.Version:
    return versions.register(
        connection,
        name=record.name,
        version=str(record.version),
        digest=record.digest,
        modality=str(record.modality),
        crystal_threshold=record.threshold.crystal,
        synthetic=record.synthetic,
        trained_on=record.trained_on,
        now=now,
    )


def _misplaced(folder: Path, record: "BundleRecord") -> str | None:
    if (record.name, str(record.version)) == (folder.parent.name, folder.name):
        return None
    return f"the bundle in {folder} calls itself {record.name}:{record.version}; a bundle's folder has its name"


def _not_registered(path: Path, name: str) -> str:
    return f"the bundle in {path} is not the one registered as {name}"


def _discard(folder: Path) -> None:
    """Remove a bundle's folder: in one step from where bundles are looked for, then file by file."""
    try:
        with bundle.scratch_beside(folder) as scratch:
            folder.rename(scratch / "bundle")
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    except OSError as error:
        raise BundleError(
            f"the database has let go of it, but {folder} cannot be removed: {error.strerror}; delete it by hand"
        ) from error

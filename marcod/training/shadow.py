"""Decision about a candidate that scores new images together with the champion first.

A challenger becomes champion only if it scored what the champion scored, flags no flood of drops, and misses no more of
the crystals that people labelled meanwhile. TensorFlow loads only when a model is promoted.
"""

from datetime import datetime
from typing import Final

from marcod import telemetry
from marcod.database.engine import Database
from marcod.errors import NotFoundError, StoreError
from marcod.model.registry import Registry
from marcod.settings import TrainSettings
from marcod.store import versions
from marcod.store.versions import Version
from marcod.text import count
from marcod.training import run_rows, shadow_counts
from marcod.training.run_rows import Run
from marcod.training.shadow_counts import Both

log = telemetry.logger(__name__)

MOST_FAILED: Final = 0.01
FLOOD: Final = 3.0
"""A challenger may flag so many times as many images as the champion, or :data:`FEW` of all, whichever is more."""

FEW: Final = 0.35


def ripe(db: Database) -> bool:
    """Check for a run in shadow that can be decided: its images are scored, or it has ceased to be challenger."""
    for run in db.read(run_rows.shadows):
        version = _candidate(db, run)
        if version is None or _challenger(db) != version or _both(db, run, version).images >= _wanted(run):
            return True
    return False


def settle(db: Database, registry: Registry, *, actor: str, now: datetime) -> list[Run]:
    """Decide every run in shadow whose time is over. Returns them as they ended."""
    return [done for run in db.read(run_rows.shadows) if (done := _settled(db, registry, run, actor, now)) is not None]


def _settled(db: Database, registry: Registry, run: Run, actor: str, now: datetime) -> Run | None:
    version, champion = _candidate(db, run), db.read(versions.champion)
    if version is None or _challenger(db) != version:
        promoted = version is not None and champion == version
        reason = f"{run.candidate} is challenger no more; a person decided" + (" for it" if promoted else "")
        return _ended(db, run, "promoted" if promoted else "refused", [reason], None, now)
    both = _both(db, run, version)
    if both.images < _wanted(run):
        return None
    settings = TrainSettings(**run.options["train"])
    problems = _problems(both, settings)
    meanwhile = f"{champion} became champion meanwhile; the gate compared with {run.parent}"
    if not problems and str(champion) == run.parent:
        try:
            left = registry.promote(version, actor=actor, now=now, instead_of=run.parent)
        except StoreError as error:
            meanwhile = str(error)
        else:
            coming = [] if left is None else [left.sentence]
            return _ended(db, run, "promoted", [*coming, _sentence(both)], both, now)
    registry.challenge(None, actor=actor, now=now)
    return _ended(db, run, "refused" if problems else "recommended", problems or [meanwhile], both, now)


def _problems(both: Both, settings: TrainSettings) -> list[str]:
    """List in sentences why a challenger must not become champion."""
    found = []
    if both.failed > MOST_FAILED * both.images:
        found.append(f"it could not score {count(both.failed, 'image')} that the champion scored")
    if both.challenger_hits > max(FLOOD * both.champion_hits, FEW * both.images):
        images = count(both.images, "new image")
        found.append(f"it calls {both.challenger_hits} of {images} hits, the champion {both.champion_hits}")
    if both.crystals and both.challenger_found < both.champion_found - settings.recall_margin * both.crystals:
        found.append(
            f"it found {both.challenger_found} of the {count(both.crystals, 'drop')} that people called crystals "
            f"meanwhile, the champion {both.champion_found}"
        )
    return found


def _sentence(both: Both) -> str:
    return (
        f"in shadow it called {both.challenger_hits} of {count(both.images, 'new image')} hits, "
        f"the champion {both.champion_hits}; of {count(both.crystals, 'drop')} called crystals meanwhile it found "
        f"{both.challenger_found}, the champion {both.champion_found}"
    )


def _ended(db: Database, run: Run, state: str, reasons: list[str], both: Both | None, now: datetime) -> Run:
    counts = {} if both is None else {"shadow": {name: getattr(both, name) for name in Both.__dataclass_fields__}}
    numbers, sentences = (run.numbers or {}) | counts, [*reasons, *(run.reasons or [])]
    db.write(run_rows.settle, run.id, state=state, reasons=sentences, numbers=numbers, now=now)
    log.info("shadow ended", run=run.id, candidate=run.candidate, state=state, why=reasons[0])
    return db.read(run_rows.get, run.id)


def _both(db: Database, run: Run, challenger: Version) -> Both:
    """Count what the champion and a challenger predicted for images since a run ended its training."""
    since = run.ended_at or run.beat_at
    return db.read(lambda c: shadow_counts.compare(c, versions.champion(c), challenger, since))


def _candidate(db: Database, run: Run) -> Version | None:
    name, _, version = str(run.candidate).rpartition(":")
    try:
        return db.read(versions.find, name, version)
    except NotFoundError:
        return None


def _challenger(db: Database) -> Version | None:
    return db.read(versions.aliased, versions.CHALLENGER)


def _wanted(run: Run) -> int:
    return int(run.options["train"]["shadow_images"])

"""Pages that report: the models with their training, recall and drift, and the status of everything."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from marcod.app import App
from marcod.drift import monitor
from marcod.errors import ConfigError, NotFoundError, StoreError
from marcod.health import checks, snapshot, words
from marcod.model import registry
from marcod.model.bundle import BundleRecord
from marcod.model.registry import ModelInfo, Registry
from marcod.review import desk
from marcod.store import promotions
from marcod.store.versions import SYNTHETIC_NOTICE
from marcod.training import run_rows, run_words
from marcod.web.site import Site, render, site_of

RUNS: Final = 20


def models(request: Request) -> Response:
    """Show the versions, the champion, its recall, the latest training runs, and the drift of each imager."""
    site = site_of(request)
    values: dict[str, Any] = {
        "versions": sorted(_registry(site).known(), key=_newest_first),
        "coming": site.db.read(promotions.pending),
        "runs": site.db.read(run_rows.listed, RUNS),
        "recall": _unless_missing(lambda: desk.report(site.db)),
        "drift": _unless_missing(lambda: _drift(site)),
        "now": site.db.now(),
    }
    return render(request, "models.html", synthetic_notice=SYNTHETIC_NOTICE, **values)


def _newest_first(model: ModelInfo) -> tuple[bool, float, str]:
    """Put what serves first, then what was registered last."""
    row = model.registered
    return (not (row and row.aliases), -row.registered_at.timestamp() if row else 0.0, model.name)


def _unless_missing(work: Any) -> Any:
    """Return what there is to report, None where there is no champion yet."""
    try:
        return work()
    except (NotFoundError, StoreError):
        return None


def _registry(site: Site) -> Registry:
    return App(site.db, site.settings.models.folder).registry


def _drift(site: Site) -> monitor.DriftReport:
    return monitor.look(site.db, site.settings.drift, site.db.now(), _registry(site).champion_view())


def model(request: Request) -> Response:
    """Show one version: what it is made of, its evaluation, and what became of it."""
    try:
        known = _registry(site_of(request)).describe(request.path_params["name"])
    except ConfigError as error:
        raise NotFoundError(str(error)) from error
    history = _registry(site_of(request)).history(known)
    its = registry.metrics(known) or {}
    # What the bundle says in sentences stands above its numbers.
    metrics = [(name, run_words.number(value)) for name, value in _flat(its) if name != "notice"]
    architecture = "" if known.record is None else _architecture(known.record)
    values: dict[str, Any] = {"metrics": metrics, "history": history, "architecture": architecture}
    return render(request, "model.html", model=known, **values)


def _architecture(record: BundleRecord) -> str:
    """Name a network by its family and the square of pixels that it sees."""
    side = record.architecture.get("input_size")
    whole = " of each square of the whole image" if record.preprocessing.get("coverage") == "whole" else ""
    return f"{record.family}, {side} x {side} pixels{whole}" if side else str(record.family)


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        words_of = f"{before}{name}".replace("_", " ")
        found += _flat(value, f"{words_of}, ") if isinstance(value, dict) else [(words_of, value)]
    return found


def run(request: Request) -> Response:
    """Show one training run: its data, every check of the gate with its numbers, and the reasons."""
    text, site = request.path_params["run"], site_of(request)
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise NotFoundError("there is no such training run")
    found = site.db.read(run_rows.get, int(text))
    data = None if found.dataset_id is None else site.db.read(run_rows.data, found.dataset_id)
    numbers = found.numbers or {}
    gate = numbers.get("gate", numbers)
    sides = [gate.get(side) or {} for side in run_words.SIDES]
    headline = [
        (title, *(run_words.number(side.get(key)) for side in sides))
        for key, title in run_words.HEADLINE.items()
        if any(key in side for side in sides)
    ]
    tested = [(c["name"], c["passed"], run_words.numbers(c["numbers"])) for c in gate.get("checks") or ()]
    meaning = run_words.MEANING.get(found.state, "").format(candidate=found.candidate)
    return render(request, "run.html", run=found, data=data, headline=headline, tested=tested, meaning=meaning)


def status(request: Request) -> Response:
    """Show what `marcod status` shows."""
    site = site_of(request)
    seen = site.db.read(snapshot.take_snapshot, site.db.now())
    found = checks.troubles(seen)
    severity, phrase = words.verdict(seen, found)
    standing = {name: words.standing(name, seen, found) for name in seen.sources}
    return render(
        request, "status.html", seen=seen, troubles=found, severity=severity, phrase=phrase, standing=standing,
        facts=list(words.facts(seen)), sources=words.sources(seen), workers=words.workers(seen),
        source_columns=words.SOURCE_COLUMNS, worker_columns=words.WORKER_COLUMNS,
    )  # fmt: skip


ROUTES: Final[list[BaseRoute]] = [
    Route("/models", models),
    Route("/models/run/{run}", run),
    Route("/models/{name}", model),
    Route("/status", status),
]

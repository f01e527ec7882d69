"""Labs in which every list that a command prints has something in it. Everything is synthetic."""

import csv
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import factories
import imager_days
import learner
import numpy as np
import populated
import sqlalchemy as sa
import standings
from factories import utc
from lab import Site, commands

from marcod import layouts
from marcod.cli import cli
from marcod.cli.common import output
from marcod.database import migrate, roles, schema
from marcod.database.engine import Database
from marcod.domain import CLASSES, PLATE_FORMATS, DropClass, Modality
from marcod.evaluate import gate, results
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Predictions
from marcod.model import bundle, published, registry
from marcod.model.bundle import BundleRecord, Threshold
from marcod.model.committee import Committee, Member
from marcod.model.registry import Registry
from marcod.store import campaigns, promotions, serving, versions
from marcod.synthetic import ImagerStyle, PlateSpec, plate_files
from marcod.training import run_rows, snapshot


@dataclass
class Lab:
    """A site, and the documents that it gave so far, each with its title: the command, or what else it is."""

    site: Site
    documents: list[tuple[str, Any]] = field(default_factory=list)

    def ask(self, *arguments: object) -> None:
        """Call a command with ``--json`` and keep its answer."""
        words = tuple(map(str, arguments))
        result = self.site.call(*words, "--json")
        assert isinstance(result.exception, SystemExit | None), (words, result.exception)
        assert result.stdout.strip(), (words, result.output)
        self.documents.append((_title(words), json.loads(result.stdout)))


def _title(words: tuple[str, ...]) -> str:
    known = commands(cli)
    return "marcod " + next(name for n in (3, 2, 1) if (name := " ".join(words[:n])) in known)


def _site(folder: Path) -> tuple[Site, Database]:
    """A site with an empty database of the current schema; the first one's is copied for the others."""
    file, template = folder / "marcod.sqlite", folder.parent / "empty.sqlite"
    if not template.exists():
        with closing(Database(f"sqlite:///{template}")) as db:
            migrate.upgrade(db)
    shutil.copy(template, file)
    site = Site(folder, f"sqlite:///{file}")
    return site, Database(site.url)


def asked_by_a_lims(folder: Path) -> Lab:
    """Plates of three inspections, scored by two models, labelled by people."""
    site, db = _site(folder)
    with closing(db):
        populated.populate(db)
    site.write(models={"folder": str(folder / "models")}, retention={"scores_days": 30, "audit_days": 30})
    for word in ("waiting", "resolved"):
        _inbox(site, word)
    _write_rows(site, "update model_version set removed_at = registered_at where version = '1'")
    lab, plate = Lab(site), populated.PLATE
    lab.ask("hits")
    lab.ask("plate", "list")
    lab.ask("plate", "show", plate)
    lab.ask("plate", "show", plate, "--history")
    lab.ask("label", "list")
    lab.ask("label", "inbox")
    lab.ask("label", "vocabularies")
    lab.ask("queue", "status")
    lab.ask("queue", "failed")
    lab.ask("rescore", "--plate", plate, "--no-wait")
    lab.ask("rescore", "--all", "--no-wait")
    counts = "images, done, scored"
    _write_rows(
        site,
        f"insert into campaign (model_version_id, state, actor, created_at, {counts}) "
        "select id, 'running', 'ann', registered_at, 9, 3, 3 from model_version limit 1",
    )
    lab.ask("rescore", "list")
    lab.ask("source", "list")
    lab.ask("source", "show", "minstrel")
    lab.ask("source", "rename", "minstrel", "m3", "--dry-run")
    lab.ask("source", "merge", "minstrel", "rock-imager", "--dry-run")
    lab.ask("source", "forget", "minstrel", "--dry-run")
    lab.ask("model", "list")
    lab.ask("model", "show", "champion")
    lab.ask("model", "show", "marco:1")
    lab.ask("model", "verify", "marco:1")
    lab.ask("model", "fetch", "--list")
    lab.ask("db", "thin", "--dry-run")
    lab.ask("doctor", "--no-device")
    site.ok("web", "user", "add", "ann", "--no-password")
    lab.ask("web", "user", "list")
    # SQLite has no roles, so this is what is printed of them on PostgreSQL.
    made = roles.Made("lims", "app", *(("x",),) * 5)
    lab.documents.append(("marcod db roles", json.loads(output.json_text(made))))
    lab.ask("db", "check")
    _import_plates(lab, folder)
    _recount(lab)
    lab.ask("db", "backup", folder / "copy.sqlite")
    lab.ask("db", "restore", folder / "copy.sqlite", "--yes", "--force")
    return lab


def _inbox(site: Site, state: str) -> None:
    row = "select source, plate, well, drop_number, inspection, label, person, labelled_at from label_inbox limit 1"
    names = "source, plate, well, drop_number, inspection, label, person, labelled_at, state"
    _write_rows(site, f"insert into label_inbox ({names}) select *, '{state}' from ({row})")


def _write_rows(site: Site, *statements: str) -> None:
    """What no command does."""
    with closing(sqlite3.connect(site.folder / "marcod.sqlite")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def _import_plates(lab: Lab, folder: Path) -> None:
    table = folder / "plates.csv"
    table.write_text(
        f"plate,source,barcode,project,remark\n{populated.PLATE},minstrel,SAME,other,x\nP9,minstrel,SAME,p,x\n"
    )
    lab.ask("plate", "import", table, "--dry-run")
    table.write_text(f"plate,source,format\n{populated.UNFINISHED},rock-imager,96x1\n")
    lab.ask("plate", "import", table)
    lab.ask("plate", "show", populated.UNFINISHED)
    table.write_text("plate,source,format\nP9,nobody,round\n")
    lab.ask("plate", "import", table)


def _recount(lab: Lab) -> None:
    """A row that differs from what follows from the others."""
    _write_rows(lab.site, "update inspection_summary set hits = 99")
    lab.ask("db", "check", "--deep")


def busy(folder: Path) -> Lab:
    """Two watched imagers, one trouble of each kind, and messages."""
    site, db = _site(folder)
    with closing(db):
        standings.populate(db, datetime.now(UTC))
    site.lines += ["[notify.lims]", "url = 'http://127.0.0.1:9/hook'"]
    site.write()
    waits = "select max(id) from job where lease is null and attempts = 0"
    _write_rows(
        site,
        "update delivery set message = 'm' || id",
        f"update job set error = 'no memory' where id = ({waits})",
        "update image set gone_at = seen_at where id = (select max(id) from image)",
    )
    lab = Lab(site)
    lab.ask("status")
    lab.ask("queue", "status")
    lab.ask("queue", "gone", "--all")
    lab.ask("notify", "list")
    lab.ask("source", "list")
    lab.ask("source", "show", "minstrel")
    return lab


def dimmed(folder: Path) -> Lab:
    """A minstrel whose lamp dims."""
    site, db = _site(folder)
    site.write(drift={"reference_images": 50, "min_images": 20, "window_days": 2})
    now = datetime.now(UTC)
    with closing(db):
        champion = Registry(db).ensure_champion(now - timedelta(days=20))
        minstrel = factories.register_source(db, "minstrel")
        for age, light in ((6, 1.0), (5, 1.0), (1, 0.7), (0, 0.7)):
            imager_days.day(db, minstrel, champion, now - timedelta(days=age, minutes=5), light=light)
    lab = Lab(site)
    lab.ask("drift", "--days", "9")
    return lab


def delivered(folder: Path) -> Lab:
    """Files of a minstrel that are scanned, scored, reviewed and labelled."""
    site, db = _site(folder)
    root = folder / "export"
    drops = learner.deliver(root, 5)
    _write(root / drops[0].path.replace("_01_01_HF", "_0x_01_HF"), root / "a/b/RMM3_strange.jpg")
    _export(root, "formulatrix")
    site.add_source(learner.SOURCE, root, "rigaku")
    site.write(
        models={"folder": str(folder / "models")}, train={"folder": str(folder / "training")},
        review={"audit_drops": 60},
    )  # fmt: skip
    lab = Lab(site)
    lab.ask("scan", "--settle", "0")
    with_crystals = {drop.path for drop in drops if drop.truth is DropClass.CRYSTALS}
    with closing(db):
        champion = db.read(versions.champion)

        def content(claim: Any) -> str:
            return hashlib.sha256((root / claim.path).read_bytes()).hexdigest()

        factories.drain(
            db, champion, datetime.now(UTC), hashes=content,
            scores=lambda claim: factories.CRYSTALS if claim.path in with_crystals else factories.CLEAR,
        )  # fmt: skip
        _reviewed(lab, folder, {(drop.plate, drop.well): drop.truth for drop in drops})
        _labelled(lab, drops)
        lab.ask("model", "evaluate", "champion", "--from-database", "--split", "all")
        _manifest(lab, db, root)
    lab.ask("model", "show", "champion")
    _published(lab, folder)
    broken = Path(shutil.copytree(registry.shipped_folder().joinpath(*registry.SHIPPED), folder / "models/broken/1"))
    (broken / "weights.npz").write_bytes(b"nothing")
    lab.ask("model", "list")
    lab.ask("model", "verify", "broken:1")
    _looked_at(lab, root)
    return lab


def _published(lab: Lab, folder: Path) -> None:
    """A bundle that says it came from the published model, which is therefore not fetched again."""
    shipped, weights = bundle.load_weights(registry.shipped_folder().joinpath(*registry.SHIPPED))
    marco = published.find("marco")
    facts = {name: getattr(marco, name) for name in ("distribution", "version", "file", "sha256")}
    network = {
        "family": "inception", "input_size": 599, "classes": 4, "auxiliary": False, "entry": True, "width": 1.0,
        "depths": {"Mixed_5b": 64}, "limits": {"Conv2d_1a_3x3": 32},
    }  # fmt: skip
    changed = {"name": "marco", "origin": bundle.Origin(**facts), "citation": marco.citation, "architecture": network}
    record = shipped.model_copy(update=changed | {"parent": None})
    bundle.write(folder / "models", record, weights, {}, [])
    derived = record.model_copy(update={"name": "lab", "parent": "marco:1"})
    bundle.write(folder / "models", derived, weights, {}, [])
    lab.ask("model", "fetch", "marco", "--no-promote")
    lab.ask("model", "show", "lab:1")
    members = tuple(
        Member(name=n, version=1, digest=bundle.read(folder / "models" / n / "1").digest, mean=0, deviation=1, weight=1)
        for n in ("marco", "lab")
    )
    rule = Committee(members=members, clip=10, mean=0, deviation=1, offsets={CLASSES[0]: 0.5}, fixed_on="nothing")
    values = {"name": "committee", "architecture": {}, "preprocessing": {}, "committee": rule}
    bundle.write(folder / "models", record.model_copy(update=values), {}, {}, [])
    lab.ask("model", "show", "committee:1")


def _labelled(lab: Lab, drops: list[learner.Drop]) -> None:
    learner.teach(lab.site, drops)
    learner.teach(lab.site, drops[:4], "bob", lambda drop: CLASSES[0])
    file = lab.site.folder / "words.csv"
    file.write_text(f"plate,well,label\n{drops[0].plate},A01,strange word\n{drops[0].plate},Z99,Clear\n")
    lab.ask("label", "import", file)
    lab.ask("label", "list")


def _manifest(lab: Lab, db: Database, root: Path) -> None:
    """Manifests of data sets: files are gone, others are no longer what was labelled, and then all are away."""
    gone, other, broken = sorted(root.rglob("*_HF_*.jpg"))[:3]
    gone.unlink()
    other.write_bytes(learner.image(CLASSES[0], 9))
    broken.write_bytes(b"no image")
    for there in (root, root / "away"):
        file = lab.site.folder / "manifest.jsonl"
        taken = snapshot.take(db, modality=Modality.VISIBLE, roots={learner.SOURCE: there}, now=datetime.now(UTC))
        snapshot.write(taken, file)
        header, *images = map(json.loads, file.read_text(encoding="ascii").splitlines())
        lab.documents.append(("header of a data set's manifest", header))
        lab.documents += [("image in a data set's manifest", image) for image in images]
        lab.documents.append(("counts of a data set", taken.counts()))


def _reviewed(lab: Lab, folder: Path, truth: dict[tuple[str, str], DropClass]) -> None:
    lab.ask("review", "queue", "--new-audit", "--limit", 1000)
    lab.ask("review", "next", "--person", "ann")
    lab.ask("review", "export", folder / "look", "--person", "bob", "--limit", 40)
    table = folder / "look" / "review.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = truth[row["plate"], row["well"]]
    with table.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lab.ask("review", "import", folder / "look")
    lab.ask("review", "queue", "--limit", 1000)
    lab.ask("review", "recall")


def _looked_at(lab: Lab, root: Path) -> None:
    """What is said of paths and of a folder."""
    image = next(root.rglob("*_HF_*.jpg"))
    lab.ask(
        "explain", "CI20000000/1/strange.jpg", image, root,
        "WellImages/70/plateID_1070/batchID_5/wellNum_30/profileID_1/d1_r70300_ef.jpg", f"CI1/1/{image.name}",
    )  # fmt: skip
    lab.ask("install-systemd", "--prefix", lab.site.folder / "host", "--exec", "/usr/bin/marcod", "--dry-run")


def _write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def _export(root: Path, layout: str) -> None:
    """Every file that an imager writes of a plate of 24 wells; no image has content."""
    key = "1041" if layout == "formulatrix" else "CI030117"
    spec = PlateSpec(ImagerStyle.FORMULATRIX, key, (utc(),), PLATE_FORMATS[24], (1, 3))
    for planned in plate_files(spec, layouts.make(layout, layouts.LayoutOptions(plate_format=PLATE_FORMATS[24]))):
        _write(root / planned.path)
        if planned.content is not None:
            (root / planned.path).write_bytes(planned.content)


def set_up(folder: Path) -> Lab:
    """A host that is set up, whose folders are sure, near, mixed and strange; and configurations, whole and broken."""
    sure, near, mixed, strange = (folder / name for name in ("sure", "near", "mixed", "strange"))
    _export(sure / "images", "rigaku")
    _export(sure / "store", "formulatrix")
    _export(near, "rockmaker-export")
    (near / "CI030117" / "report.csv").unlink()
    _write(near / "002s" / "Clear" / "002s_C6_ImagerDefaults_9.jpg")
    for layout in ("rigaku", "ami"):
        _export(mixed, layout)
    _write(*(strange / f"{number:03}.jpg" for number in range(5)))
    site, db = _site(folder)
    db.close()
    site.add_source("minstrel", sure / "images", "rigaku")
    site.write()
    lab = Lab(site)
    lab.ask("setup", sure, near, mixed, strange, "--dry-run")
    lab.ask("explain", sure, near, mixed, strange)
    for text in (WHOLE, site.config.read_text() + "[log]\nlevl = 'info'\n[nothing]\nat = 'all'\n"):
        site.config.write_text(text)
        lab.ask("config", "show")
        lab.ask("config", "check")
    return lab


WHOLE: Final = """
[score]
device = "cpu"
[labels]
vocabularies = "/etc/marcod/words.toml"
[retention]
scores_days = 30
audit_days = 30
[metrics]
port = 9100
textfile = "/var/lib/marcod.prom"
[mail]
host = "mail.example.org"
security = "tls"
port = 465
user = "marcod"
password = "word"
[train]
base_folder = "/base"
pack = "/packs"
[notify.lims]
url = "https://lims.example.org/marcod"
secret = "word"
sources = ["minstrel"]
projects = ["lysozyme"]
[notify.lab]
to = ["lab@example.org"]
[sources.minstrel]
root = "/minstrel"
layout = "rigaku"
profiles = { HF = "visible" }
light = "visible"
reservoir_subwells = [2]
expected_drops = 288
accept = ["blank"]
grid = "8x12"
[sources.other]
root = "/other"
layout = "regex"
pattern = "(?P<plate>.*)"
date_format = "%Y"
"""
"""A configuration in which every key has a value."""


def trained(folder: Path) -> Lab:
    """Training runs that ended, and one whose candidate scored in shadow long enough."""
    site, db = _site(folder)
    site.write()
    lab = Lab(site)
    with closing(db):
        champion = factories.register(db)
        factories.promote(db, champion)
        challenger = factories.register(db, name="lab", version="2")
        db.write(lambda c: serving.challenge(c, challenger, actor="ann", now=utc()))
        _runs(db, folder)
    lab.ask("train", "list")
    for number in (1, 3, 4):
        lab.ask("train", "show", number)
    lab.ask("train", "settle")
    with closing(Database(site.url)) as db:
        coming = factories.register(db, name="lab", version="3")
        db.write(lambda c: promotions.begin(c, coming, actor="ann", now=utc()))
        owed = [campaigns.Owed(1, 1)]
        db.write(lambda c: campaigns.begin(c, coming.id, campaigns.Archive(), owed, "ann", utc()))
    lab.ask("model", "list")
    lab.ask("model", "show", "lab:3")
    lab.ask("status")
    (settled,) = (document for title, document in lab.documents if title == "marcod train settle")
    lab.documents.append(("numbers of a training run whose candidate scored in shadow", settled[0]["numbers"]))
    for title, verdict in _verdicts():
        lab.documents.append((f"numbers of the gate that {title}", verdict.numbers))
    lab.documents.append(("marcod model evaluate", _evaluation()))
    return lab


def _runs(db: Database, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "curve.png").write_bytes(b"")
    values = {
        "digest": "dd", "gate_digest": "gg", "images": 400, "drops": 300, "crystals": 70, "missing": 1,
        "changed": 2, "counts": {}, "taken_at": utc(), "last_label_id": 1,
    }  # fmt: skip
    made = sa.insert(schema.dataset).values(**values).returning(schema.dataset.c.id)
    data_id = db.write(lambda c: int(c.execute(made).scalar_one()))
    for token, state in (("a", "refused"), ("b", "shadow"), ("c", "failed"), ("d", "running")):
        db.write(lambda c, t=token, s=state: _run(c, t, s, data_id, folder / "run"))


def _run(connection: sa.Connection, token: str, state: str, data_id: int, folder: Path) -> None:
    run = run_rows.begin(
        connection, cause="person", actor="ann", recipe="adapt", options={"train": {"shadow_images": 0}},
        parent="other:1", folder=str(folder), host="here", pid=7, token=token, now=utc(),
    )  # fmt: skip
    noted = {"dataset_id": data_id, "candidate": "lab:2", "candidate_digest": "cc", "tier": "head"}
    run_rows.note(connection, run.id, token, **noted)
    run_rows.beat(connection, run.id, token, step="begins", now=utc())
    error = "the disk is full" if state == "failed" else None
    if state != run_rows.RUNNING:
        run_rows.end(connection, run.id, token, state=state, reasons=["so"], error=error, now=utc(hours=1))


def _verdicts() -> Iterator[tuple[str, gate.GateResult]]:
    """The gate on models that say better and worse things of the same drops, and where no drop is the lab's own."""
    own, strange = _images("minstrel"), _images("")
    yield "passed a candidate", gate.judge(_said(own, 1.0), _said(own, 3.5), gate.Rules())
    yield "refused a candidate", gate.judge(_said(own, 3.5), _said(own, 1.0), gate.Rules())
    yield "had no drop to judge", gate.judge(_said(strange, 3.5), _said(strange, 1.0), gate.Rules())


def _evaluation() -> Any:
    """An evaluation of a model with classes of its own, on images that several labs labelled in these."""
    classes = {"clear": 0, "crystals": 1, "skin": 2, "light": 3, "dry": 0, "needles": 1}
    record = _record(1, {name: CLASSES[folded] for name, folded in classes.items()})
    own = np.arange(240) % len(classes)
    labels = [CLASSES[list(classes.values())[word]] for word in own]
    images = tuple(
        replace(image, label=label, own=int(word), source=f"lab {n % 3}")
        for n, (image, label, word) in enumerate(zip(_images("minstrel"), labels, own, strict=True))
    )
    logits = np.eye(len(classes))[own] + np.random.default_rng(1).normal(0, 1, (240, len(classes)))
    said = Predictions(images, logits, ("broken.jpg",))
    judged = results.evaluate(said, record, "a set", missing=("gone.jpg",), seed=1, now=utc())
    return json.loads(output.json_text(judged))


def _images(source: str) -> tuple[Labelled, ...]:
    return tuple(
        Labelled(
            Path(f"{n}.jpg"), CLASSES[n % 4], own=None, source=source, imager="rigaku" if source else "base",
            drop=f"d{n}", inspection="1", unit=f"u{n}", group=f"p{n // 20}",
        )
        for n in range(240)
    )  # fmt: skip


def _said(images: tuple[Labelled, ...], skill: float) -> tuple[BundleRecord, Predictions]:
    logits = skill * np.eye(4)[[CLASSES.index(p.label) for p in images]]
    noise = np.random.default_rng(1).normal(0, 1, logits.shape)
    return _record(int(skill), {str(c): c for c in CLASSES}), Predictions(images, logits + noise, ())


def _record(version: int, folding: dict[str, DropClass]) -> BundleRecord:
    return BundleRecord(
        name="lab", version=version, classes=tuple(folding), temperature=1.0, training_data="none",
        licence="Apache-2.0", synthetic=True, created_at=utc(), architecture={"family": "none"},
        preprocessing={"size": 1}, folding=folding, threshold=Threshold(crystal=0.2, measured_on="nothing"),
    )  # fmt: skip


def taught(folder: Path) -> Lab:
    """A lab that teaches the shipped network, which takes TensorFlow and a minute."""
    site = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    drops = learner.make(site, promotion="manual", all_crystals=10, epochs=1)
    lab = Lab(site)
    learner.teach(site, drops[:4])
    _retrain(lab, "too few labels to be judged")
    learner.teach(site, drops)
    _retrain(lab, "a candidate")
    _retrain(lab, "nothing new")
    lab.ask("retrain", "--again", "--tier", "head")
    learner.teach(site, drops[::5], "bob", lambda drop: CLASSES[CLASSES.index(drop.truth) - 1])
    lab.ask("label", "suspects")
    lab.ask("dataset", "pack", folder / "packs")
    lab.ask("score")
    lab.ask("model", "calibrate", "champion", "--from-database", "--recall", "0.6")
    lab.ask("model", "import", registry.shipped_folder().joinpath(*registry.SHIPPED), "--name", "other")
    lab.documents.append(("metrics of an imported bundle", lab.documents[-1][1]["report"]))
    lab.ask("model", "combine", ":".join(registry.SHIPPED), "other:1", "--drops", "8")
    lab.ask("model", "convert", ":".join(registry.SHIPPED), "--coverage", "whole")
    lab.ask("plate", "heatmap", drops[0].plate, "A01", "--samples", "1", "--out", folder / "heat.png")
    for words, path in (
        ("trained", "training/run-*/candidate/lab/1"),
        ("taught", "training/run-*/candidate/lab/2"),
        ("calibrated", "models/small/2"),
    ):
        text = next(folder.glob(f"{path}/metrics.json")).read_text()
        lab.documents.append((f"metrics of a {words} bundle", json.loads(text)))
    return lab


def _retrain(lab: Lab, words: str) -> None:
    lab.ask("retrain")
    run = lab.documents[-1][1]
    lab.documents.append((f"numbers of a training run with {words}", run["numbers"]))
    lab.documents.append(("options of a training run", run["options"]))


QUICK: Final = (asked_by_a_lims, busy, dimmed, delivered, set_up, trained)
SLOW: Final = (taught,)

ASKED_SLOWLY: Final = {
    f"marcod {name}"
    for name in (
        "dataset pack",
        "label suspects",
        "model calibrate",
        "model combine",
        "model convert",
        "model import",
        "plate heatmap",
        "retrain",
    )
} | {"marcod score"}
"""Commands that only the slow labs ask."""

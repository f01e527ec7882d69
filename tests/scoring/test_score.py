"""The scoring loop with a real network on real files: what is an image is scored, what is not fails alone."""

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import factories
import numpy as np
import pytest
import sqlalchemy as sa
from doubles import OneNetwork
from factories import utc
from PIL import Image

from marcod.catalog import deliveries, registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import image, job, score
from marcod.domain import DropClass, DropImage, Modality
from marcod.errors import BundleError, HostLacksError, StoreError
from marcod.model import bundle, engines
from marcod.model.predictor import Predictor
from marcod.model.registry import Registry
from marcod.plates import reports
from marcod.scoring.outcomes import BatchReport
from marcod.scoring.scorer import Scorer, ShortOfMemoryError
from marcod.settings import ScoreSettings
from marcod.store import backlog, queue, versions
from marcod.store.versions import Version

SETTINGS = ScoreSettings(batch_size=4, decode_threads=2, lease_s=60, max_attempts=3, retry_s=10, idle_s=0.01)


def photograph(seed: int, mode: str = "RGB", format_: str = "JPEG", size: tuple[int, int] = (96, 80)) -> bytes:
    """A small image of noise over a gradient."""
    rng = np.random.default_rng(seed)
    grey = np.linspace(60, 200, size[0])[None, :] + rng.normal(0, 12, (size[1], size[0]))
    made = Image.fromarray(grey.clip(0, 255).astype(np.uint8), "L").convert(mode)
    buffer = io.BytesIO()
    made.save(buffer, format_)
    return buffer.getvalue()


def sixteen_bit(format_: str) -> bytes:
    """A 16-bit grey image."""
    values = np.linspace(0, 65535, 80 * 96).reshape(80, 96).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format_)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of few bytes that claims to be 40,000 pixels wide and high."""
    data = bytearray(photograph(0, "L", "PNG"))
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


class Lab:
    """A source folder with its row, and scorers over it."""

    def __init__(self, db: Database, registry: Registry, root: Path) -> None:
        self.db = db
        self.registry = registry
        self.root = root
        root.mkdir()
        self.source_id = db.write(lambda c: registration.register_source(c, "imager", str(root), "rigaku", None, utc()))
        self.reports: list[BatchReport] = []
        self._wells = 0

    def deliver(self, name: str, data: bytes, now: datetime | None = None) -> None:
        """Write a file and record it as the watcher would."""
        path = self.root / name
        path.write_bytes(data)
        self.record(name, now)

    def record(self, name: str, now: datetime | None = None) -> None:
        stat = (self.root / name).stat()
        self._wells += 1
        row, column = divmod(self._wells - 1, 12)
        seen = DropImage("rigaku", "P1", "1", row + 1, column + 1, 1, Modality.VISIBLE)
        factories.record(self.db, self.source_id, [Sighting(name, stat.st_size, stat.st_mtime_ns, seen)], now)

    def scorer(
        self,
        now: datetime | None = None,
        load: Callable[[Version], object] | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        settings: ScoreSettings = SETTINGS,
    ) -> Scorer:
        return Scorer(
            self.db,
            load or (lambda version: self.registry.load(version, settings.most_images)),
            settings,
            worker="test",
            roots={"imager": self.root},
            on_batch=on_batch or self.reports.append,
            clock=lambda: now or utc(1),
        )

    def drain(self, now: datetime | None = None) -> None:
        self.scorer(now).drain(threading.Event())

    def scores(self) -> dict[str, list[str]]:
        """Labels by path."""
        found: dict[str, list[str]] = {}
        statement = sa.select(image.c.path, score.c.label).join(score, score.c.image_id == image.c.id)
        for path, label in factories.rows(self.db, statement):
            found.setdefault(path, []).append(label)
        return found

    def failed(self) -> dict[str, str]:
        """Quarantined errors by path."""
        return {f.path: f.error for f in self.db.read(lambda c: backlog.quarantined(c, 100))}

    def waiting(self) -> dict[str, tuple[int, str]]:
        """Attempts and errors of unfinished jobs by path."""
        statement = (
            sa.select(image.c.path, job.c.attempts, job.c.error)
            .join(image, image.c.id == job.c.image_id)
            .where(job.c.failed_at.is_(None))
        )
        return {path: (attempts, error) for path, attempts, error in factories.rows(self.db, statement)}


@pytest.fixture
def lab(db: Database, registry: Registry, tmp_path: Path) -> Iterator[Lab]:
    return Lab(db, registry, tmp_path / "root")


GOOD = {
    "rgb.jpg": photograph(1),
    "grey.jpg": photograph(2, "L"),
    "cmyk.jpg": photograph(3, "CMYK"),
    "rgb.png": photograph(4, format_="PNG"),
    "palette.png": photograph(5, "P", "PNG"),
    "alpha.png": photograph(6, "RGBA", "PNG"),
    "rgb.tif": photograph(7, format_="TIFF"),
    "grey.bmp": photograph(8, "L", "BMP"),
    "sixteen.png": sixteen_bit("PNG"),
    "sixteen.tif": sixteen_bit("TIFF"),
}
BAD = {
    "empty.jpg": b"",
    "text.jpg": b"this is not an image",
    "truncated.jpg": photograph(9)[:-600],
    "truncated.png": photograph(10, format_="PNG")[:900],
    "bomb.png": bomb(),
}


def test_images_are_scored_and_everything_else_fails_alone(lab: Lab) -> None:
    for name, data in {**GOOD, **BAD}.items():
        lab.deliver(name, data)
    lab.drain()
    assert {path: len(labels) for path, labels in lab.scores().items()} == dict.fromkeys(GOOD, 1)
    assert lab.failed().keys() | lab.waiting().keys() == set(BAD)
    assert "bomb.png" in lab.failed()
    for attempt in range(1, 6):
        lab.drain(utc(hours=attempt))
    assert lab.failed().keys() == set(BAD)
    assert not lab.waiting()
    assert all(error for error in lab.failed().values())


def test_a_truncated_file_that_arrives_in_full_is_scored(lab: Lab) -> None:
    whole = photograph(20)
    lab.deliver("late.jpg", whole[:-700])
    lab.drain()
    assert lab.waiting()["late.jpg"][0] == 1
    (lab.root / "late.jpg").write_bytes(whole)
    lab.drain(utc(minutes=5))
    assert list(lab.scores()) == ["late.jpg"]
    assert not lab.waiting()


def test_the_score_carries_the_hash_of_the_bytes_it_was_made_from(lab: Lab) -> None:
    lab.deliver("a.jpg", photograph(30))
    lab.drain()
    [(content_hash, image_hash)] = factories.rows(
        lab.db, sa.select(score.c.content_hash, image.c.content_hash).join(image, image.c.id == score.c.image_id)
    )
    assert content_hash == image_hash == hashlib.sha256(photograph(30)).hexdigest()


def test_the_score_says_how_its_image_looks(lab: Lab) -> None:
    even = io.BytesIO()
    Image.new("RGB", (96, 80), (102, 102, 102)).save(even, "PNG")
    lab.deliver("even.png", even.getvalue())
    lab.deliver("noisy.jpg", photograph(31))
    lab.drain()
    columns = (score.c.brightness, score.c.contrast, score.c.focus)
    statement = sa.select(*columns).join(image, image.c.id == score.c.image_id).order_by(image.c.path)
    [flat, noisy] = factories.rows(lab.db, statement)
    assert tuple(flat) == (pytest.approx(0.4, abs=1e-3), pytest.approx(0.0, abs=1e-3), pytest.approx(-6.0, abs=0.05))
    assert noisy.brightness == pytest.approx(130 / 255, abs=0.02)
    assert noisy.contrast > 0.1
    assert -5 < noisy.focus < -1


def test_an_image_keeps_what_its_bytes_warn_of_as_long_as_they_are_its_bytes(lab: Lab) -> None:
    black = io.BytesIO()
    Image.new("RGB", (96, 80)).save(black, "PNG")
    files = {"black.png": black.getvalue(), "cut.jpg": photograph(32)[:-2], "plain.jpg": photograph(33)}
    for name, data in files.items():
        lab.deliver(name, data)
    lab.drain()
    kept = sa.select(image.c.path, image.c.warnings).order_by(image.c.path)
    expected = {"black.png": "blank", "cut.jpg": "no_end_marker", "plain.jpg": None}
    assert dict(factories.rows(lab.db, kept)) == expected
    files["black.png"] = photograph(34, format_="PNG")
    (lab.root / "black.png").write_bytes(files["black.png"])
    stat = (lab.root / "black.png").stat()
    seen = DropImage("rigaku", "P1", "1", 1, 1, 1, Modality.VISIBLE)
    factories.record(lab.db, lab.source_id, [Sighting("black.png", stat.st_size, stat.st_mtime_ns, seen)], utc(2))
    assert dict(factories.rows(lab.db, kept)) == expected
    lab.drain(utc(3))
    assert dict(factories.rows(lab.db, kept)) == {**expected, "black.png": None}


def test_scores_equal_the_predictors_own(lab: Lab, registry: Registry) -> None:
    predictor = registry.load(lab.db.read(versions.champion), 4)
    for seed in range(7):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    lab.drain()
    columns = (image.c.path, score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate)
    for path, *stored in factories.rows(lab.db, sa.select(*columns).join(score, score.c.image_id == image.c.id)):
        pixels = predictor.prepare((lab.root / path).read_bytes())
        expected = predictor.fold(predictor.predict(pixels[None]))[0]
        assert stored == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_vanished_file_is_gone_and_scored_when_it_returns(lab: Lab) -> None:
    lab.deliver("stays.jpg", photograph(40))
    lab.deliver("gone.jpg", photograph(41))
    (lab.root / "gone.jpg").rename(lab.root.parent / "gone.jpg")
    for attempt in range(4):
        lab.drain(utc(hours=attempt))
    assert lab.failed() == {}
    assert [image.path for image in lab.db.read(lambda c: backlog.gone(c, 10))] == ["gone.jpg"]
    (lab.root.parent / "gone.jpg").rename(lab.root / "gone.jpg")
    stat = (lab.root / "gone.jpg").stat()
    known = lab.db.read(lambda c: deliveries.known(c, lab.source_id, ["gone.jpg", "stays.jpg"]))
    assert known["gone.jpg"][:2] != (stat.st_size, stat.st_mtime_ns)
    lab.record("gone.jpg", utc(hours=9))
    lab.drain(utc(hours=9))
    assert set(lab.scores()) == {"stays.jpg", "gone.jpg"}
    assert not lab.failed()


def test_a_source_that_is_offline_costs_no_attempts(lab: Lab) -> None:
    lab.deliver("a.jpg", photograph(50))
    away = lab.root.rename(lab.root.parent / "away")
    for attempt in range(6):
        lab.drain(utc(days=attempt))
    assert lab.waiting() == {"a.jpg": (0, "source imager is away")}
    away.rename(lab.root)
    lab.drain(utc(days=9))
    assert set(lab.scores()) == {"a.jpg"}


def test_a_promotion_takes_effect_between_two_batches(lab: Lab, registry: Registry, second: Version) -> None:
    for seed in range(12):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    seen: list[str] = []

    def promote_after_the_first(report: BatchReport) -> None:
        seen.append(report.model)
        registry.promote(second, actor="test", now=utc(1))

    lab.scorer(on_batch=promote_after_the_first).drain(threading.Event())
    assert seen[0] == "random:1"
    assert seen[-1] == "random:2"
    rows = factories.rows(lab.db, sa.select(score.c.image_id, score.c.model_version_id))
    assert len(rows) == len(set(rows))
    assert {image_id for image_id, version in rows if version == second.id} >= {image_id for image_id, _ in rows} - {
        image_id for image_id, version in rows if version != second.id
    }
    assert len({image_id for image_id, _ in rows}) == 12
    assert not lab.waiting()


def test_a_stopped_scorer_gives_back_what_it_did_not_start(lab: Lab) -> None:
    for seed in range(12):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    stop = threading.Event()
    lab.scorer(on_batch=lambda _: stop.set()).run(stop)
    status = lab.db.read(lambda c: backlog.status(c, utc(2)))
    assert status.leased == 0
    assert status.waiting + len(lab.scores()) == 12
    assert {attempts for attempts, _ in lab.waiting().values()} == {0}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (BundleError, "the bundle of random:1 is damaged"),
        (MemoryError, str(ShortOfMemoryError())),
        (RuntimeError, "RuntimeError: the bundle of random:1 is damaged"),
    ],
)
def test_jobs_go_back_with_the_cause_when_the_champion_cannot_be_loaded(
    lab: Lab, kind: type[Exception], told: str
) -> None:
    lab.deliver("a.jpg", photograph(1))

    def refuse(version: Version) -> object:
        raise kind(f"the bundle of {version} is damaged")

    with pytest.raises(kind, match="random:1 is damaged"):
        lab.scorer(load=refuse).drain(threading.Event())
    assert lab.waiting() == {"a.jpg": (0, told)}


@pytest.mark.parametrize(
    ("error", "told"),
    [(BundleError("not on this host"), "not on this host"), (MemoryError("no room"), str(ShortOfMemoryError()))],
)
def test_a_rescoring_model_that_is_not_here_holds_up_nothing(
    lab: Lab, registry: Registry, second: Version, error: Exception, told: str
) -> None:
    for seed in range(6):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    lab.drain()
    lab.db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2)))
    for seed in range(6, 12):
        lab.deliver(f"{seed}.jpg", photograph(seed), utc(3))

    def only_the_champion(version: Version) -> object:
        if version.id == second.id:
            raise error
        return registry.load(version, 4)

    lab.scorer(utc(4), load=only_the_champion).drain(threading.Event())
    assert {path: len(labels) for path, labels in lab.scores().items()} == {f"{n}.jpg": 1 for n in range(12)}
    assert set(lab.waiting().values()) == {(0, told), (0, None)}
    lab.drain(utc(minutes=10))
    assert not lab.waiting()


def test_a_champion_that_needs_another_host_waits_for_one(lab: Lab) -> None:
    """A service keeps on asking; a single command says what is lacking."""
    lab.deliver("a.jpg", photograph(1))
    stop = threading.Event()

    def lacking(version: Version) -> object:
        stop.set()
        raise HostLacksError("host-1 cannot calculate in bfloat16")

    lab.scorer(load=lacking).run(stop)
    assert lab.waiting() == {"a.jpg": (0, "host-1 cannot calculate in bfloat16")}
    with pytest.raises(HostLacksError, match="host-1 cannot"):
        lab.scorer(utc(minutes=10), load=lacking).drain(threading.Event())
    lab.drain(utc(minutes=20))
    assert not lab.waiting()


class Flaky(OneNetwork):
    """A predictor on a device that fails when told; everything else is the real one's."""

    def __init__(self, predictor: Predictor, fails: Callable[[np.ndarray], bool]) -> None:
        self._predictor = predictor
        self._fails = fails
        self.record = predictor.record

    def prepare(self, data: bytes) -> np.ndarray:
        return self._predictor.prepare(data)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        if self._fails(batch):
            raise RuntimeError("device fault")
        return self._predictor.predict(batch)

    def fold(self, probabilities: np.ndarray) -> np.ndarray:
        return self._predictor.fold(probabilities)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_every_score_says_which_engine_gave_it(lab: Lab, models: Path, engine: engines.Setting) -> None:
    lab.deliver("one.jpg", photograph(1))
    registry = Registry(lab.db, models, engine)
    lab.scorer(load=lambda version: registry.load(version, 4)).drain(threading.Event())
    wanted = engines.facts(engine)[0]
    assert lab.db.read(lambda c: c.execute(sa.select(score.c.engine)).scalars().all()) == [wanted]
    shown = sa.text("select engine from lims_image_score_v1")
    assert lab.db.read(lambda c: c.execute(shown).scalars().all()) == [wanted]


def test_a_device_that_fails_costs_no_image_an_attempt(lab: Lab) -> None:
    for seed in range(9):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    broken = Flaky(lab.registry.load(lab.db.read(versions.champion), 4), lambda batch: True)
    for attempt in range(5):
        with pytest.raises(RuntimeError, match="device fault"):
            lab.scorer(utc(hours=attempt), load=lambda _: broken).drain(threading.Event())
    assert set(lab.waiting().values()) == {(0, "RuntimeError: device fault")}
    assert not lab.failed()
    lab.drain(utc(days=1))
    assert len(lab.scores()) == 9


def test_an_image_on_which_the_device_fails_is_quarantined_alone(lab: Lab) -> None:
    for seed in range(4):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    real = lab.registry.load(lab.db.read(versions.champion), 4)
    poison = real.prepare(photograph(2))
    fails_on_it = Flaky(real, lambda batch: any(np.array_equal(pixels, poison) for pixels in batch))
    lab.scorer(load=lambda _: fails_on_it).drain(threading.Event())
    assert set(lab.scores()) == {"0.jpg", "1.jpg", "3.jpg"}
    assert lab.failed() == {"2.jpg": "the model cannot score it"}


def test_a_pipe_where_an_image_was_holds_up_nothing(lab: Lab) -> None:
    lab.deliver("a.jpg", photograph(1))
    lab.deliver("b.jpg", photograph(2))
    (lab.root / "a.jpg").unlink()
    os.mkfifo(lab.root / "a.jpg")
    lab.drain()
    assert set(lab.scores()) == {"b.jpg"}
    assert lab.failed() == {"a.jpg": "not a regular file"}


def test_an_old_score_does_not_count_for_a_file_that_became_unreadable(lab: Lab) -> None:
    lab.deliver("a.jpg", photograph(1))
    lab.drain()
    (lab.root / "a.jpg").write_bytes(b"not an image any more")
    stat = (lab.root / "a.jpg").stat()
    seen = DropImage("rigaku", "P1", "1", 1, 1, 1, Modality.VISIBLE)
    factories.record(lab.db, lab.source_id, [Sighting("a.jpg", stat.st_size, stat.st_mtime_ns, seen)], utc(2))
    for attempt in range(1, 5):
        lab.drain(utc(hours=attempt))
    [row] = factories.rows(lab.db, sa.text("select is_current from lims_image_score_v1"))
    assert not row.is_current
    [summary] = lab.db.read(reports.summaries)
    assert (summary.scored, summary.failed) == (0, 1)


def test_a_lapsed_batch_changes_nothing(lab: Lab) -> None:
    """Another worker takes the jobs over while the first one still decodes."""
    for seed in range(4):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    slow_now = utc(1)

    def slow(version: Version) -> object:
        predictor = lab.registry.load(version, 4)
        lab.scorer(now=utc(minutes=10)).drain(threading.Event())
        return predictor

    lab.scorer(now=slow_now, load=slow).drain(threading.Event())
    assert {path: len(labels) for path, labels in lab.scores().items()} == {f"{n}.jpg": 1 for n in range(4)}
    assert lab.reports[-1].stale == 4


def test_a_model_with_own_classes_keeps_its_vector(lab: Lab, registry: Registry) -> None:
    six = registry.register("six", "1", utc())
    registry.promote(six, actor="test", now=utc())
    lab.deliver("a.jpg", photograph(60))
    lab.drain()
    columns = (score.c.vector, score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate)
    [(vector, *folded)] = factories.rows(lab.db, sa.select(*columns))
    assert set(vector) == {"clear", "crystals", "skin", "light", "dry", "needles"}
    assert folded[0] == pytest.approx(vector["clear"] + vector["dry"], abs=1e-6)
    assert folded[1] == pytest.approx(vector["crystals"] + vector["needles"], abs=1e-6)
    assert sum(folded) == pytest.approx(1.0, abs=1e-5)


def test_rescoring_adds_scores_and_keeps_the_old_ones(lab: Lab, second: Version) -> None:
    for seed in range(5):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    lab.drain()
    before = factories.rows(lab.db, sa.select(score))
    [plate] = lab.db.read(lambda c: reports.find_plates(c, "P1"))
    assert lab.db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2), [plate.id])) == 5
    lab.drain(utc(3))
    after = factories.rows(lab.db, sa.select(score))
    assert set(before) < set(after)
    assert len(after) == 10
    assert lab.db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(4), [plate.id])) == 0


def test_a_bundle_that_is_not_the_registered_one_does_not_serve(lab: Lab, registry: Registry, models: Path) -> None:
    champion = lab.db.read(versions.champion)
    with pytest.raises(BundleError, match="not the one registered"):
        Registry(registry._db, models).load(replace(champion, digest="0" * 64), 4)


def test_a_database_that_fails_stops_the_loop_with_its_error(lab: Lab, tmp_path: Path) -> None:
    lab.deliver("a.jpg", photograph(1))
    scorer = lab.scorer()
    scorer.warm()
    broken = Database(f"sqlite:///{tmp_path / 'other.sqlite'}")
    scorer._db = broken
    with pytest.raises((StoreError, sa.exc.OperationalError)):
        scorer.drain(threading.Event())
    broken.close()


def test_labels_are_the_most_probable_class() -> None:
    from marcod.store.results import Scored

    claim = queue.Claim(1, 1, 1, "s", "/", "p", 1, utc())
    assert Scored(claim, "h", (0.1, 0.2, 0.3, 0.4)).label is DropClass.PRECIPITATE


def test_an_image_for_which_the_model_gives_no_number_is_quarantined_alone(lab: Lab, models: Path) -> None:
    """Overflow in half precision or a broken device can do that."""
    lab.deliver("a.jpg", photograph(1))
    lab.deliver("b.jpg", photograph(2))
    predictor = bundle.load(models / "random" / "1", 4)
    blind = predictor.predict

    def overflowing(batch: np.ndarray) -> np.ndarray:
        vectors = blind(batch).copy()
        vectors[0] = np.nan
        return vectors

    predictor.predict = overflowing  # type: ignore[method-assign]
    lab.scorer(load=lambda _: predictor).drain(threading.Event())
    assert lab.failed() == {"a.jpg": "the model gave no number for it"}
    assert set(lab.scores()) == {"b.jpg"}

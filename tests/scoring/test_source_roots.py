"""Roots on hosts that only score: a wrong mount leaves images to others, and makes none of them gone."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from test_score import Lab, photograph

from marcod.database import workers
from marcod.database.engine import Database
from marcod.database.schema import image, job
from marcod.model.registry import Registry
from marcod.scoring import source_roots
from marcod.scoring.scorer import Scorer
from marcod.scoring.source_roots import SourceRoots
from marcod.settings import ScoreSettings
from marcod.store import campaigns, sources
from marcod.store.campaigns import Archive
from marcod.store.versions import Version

pytestmark = pytest.mark.parametrize("backend", ["postgres"], indirect=True)


@pytest.fixture
def lab(db: Database, registry: Registry, tmp_path: Path) -> Lab:
    """Images that this host recorded."""
    made = Lab(db, registry, tmp_path / "root")
    for number in range(3):
        made.deliver(f"{number}.jpg", photograph(number), db.now())
    return made


@pytest.fixture
def elsewhere(lab: Lab) -> Iterator[Database]:
    """The database as a host sees it that recorded nothing."""
    url = lab.db.url.render_as_string(hide_password=False)
    with closing(Database(url, host="gpu07")) as db:
        yield db


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """Where that host should find the images."""
    path = tmp_path / "mount"
    path.mkdir()
    return path


def scorer(lab: Lab, db: Database, root: Path) -> Scorer:
    settings = ScoreSettings(batch_size=4, decode_threads=1, idle_s=0.05)
    return Scorer(
        db,
        lambda version: lab.registry.load(version, 4),
        settings,
        worker="gpu07:1:a",
        roots={"imager": root},
        on_batch=lab.reports.append,
    )


def jobs(lab: Lab) -> list[tuple[int, str | None]]:
    return [tuple(row) for row in factories.rows(lab.db, sa.select(job.c.attempts, job.c.error))]


def test_a_host_that_finds_the_images_scores_them(lab: Lab, elsewhere: Database) -> None:
    pilot = scorer(lab, elsewhere, lab.root)
    assert pilot.until_empty(threading.Event()).scored == 3
    assert pilot.left_to_others == {}


@pytest.mark.parametrize("wrong", ["missing", "empty", "other", "file"])
def test_a_host_with_a_wrong_mount_takes_nothing(lab: Lab, elsewhere: Database, mount: Path, wrong: str) -> None:
    if wrong == "missing":
        mount.rmdir()
    elif wrong == "other":
        (mount / "lost+found").mkdir()
    elif wrong == "file":
        mount.rmdir()
        mount.touch()
    pilot = scorer(lab, elsewhere, mount)
    assert pilot.until_empty(threading.Event()).scored == 0
    assert jobs(lab) == [(0, None)] * 3
    said = {"empty": "lists nothing", "other": "holds none of 3 recorded images"}.get(wrong, "cannot be listed")
    assert said in pilot.left_to_others["imager"]


def test_a_mount_that_breaks_while_it_is_used_makes_no_image_gone(
    lab: Lab, elsewhere: Database, mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root goes on listing something, as a mount point with a folder in it does."""
    monkeypatch.setattr(source_roots, "AGAIN_S", 0.0)
    for path in lab.root.iterdir():
        os.link(path, mount / path.name)
    pilot = scorer(lab, elsewhere, mount)
    assert pilot.left_to_others == {}
    claimed = SourceRoots(elsewhere, {"imager": mount})
    assert claimed.left_to_others() == ()
    for path in mount.iterdir():
        path.unlink()
    (mount / "lost+found").mkdir()
    # It was well when it was looked at last; only the images' absence shows that it is not.
    pilot._places = claimed
    claimed._looked = float("inf")
    monkeypatch.setattr(source_roots, "AGAIN_S", 60.0)
    assert pilot.drain(threading.Event()).failed == 3
    assert [attempts for attempts, _ in jobs(lab)] == [0, 0, 0]
    assert all(error is not None and "holds none of 3 recorded images" in error for _, error in jobs(lab))
    assert factories.rows(lab.db, sa.select(image.c.gone_at).where(image.c.gone_at.is_not(None))) == []
    assert claimed.reasons.keys() == {"imager"}


def test_a_file_that_is_missing_among_others_is_gone(lab: Lab, elsewhere: Database) -> None:
    (lab.root / "1.jpg").unlink()
    scorer(lab, elsewhere, lab.root).drain(threading.Event())
    assert jobs(lab) == [(1, "the file is gone")]


def test_a_source_that_comes_back_is_scored(
    lab: Lab, elsewhere: Database, mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_roots, "AGAIN_S", 0.0)
    pilot = scorer(lab, elsewhere, mount)
    assert pilot.until_empty(threading.Event()).scored == 0
    for path in lab.root.iterdir():
        os.link(path, mount / path.name)
    assert pilot.until_empty(threading.Event()).scored == 3
    assert pilot.left_to_others == {}


def test_ranges_with_images_of_a_source_that_is_not_there_are_left(
    lab: Lab, elsewhere: Database, mount: Path, second: Version
) -> None:
    lab.drain(lab.db.now())
    found = lab.db.read(campaigns.survey, second.id, Archive(), 0)
    assert found is not None
    lab.db.write(campaigns.begin, second.id, Archive(), found.owed, "test", lab.db.now())
    pilot = scorer(lab, elsewhere, mount)
    assert pilot.until_empty(threading.Event()).scored == 0
    assert pilot.is_done()
    assert scorer(lab, elsewhere, lab.root).until_empty(threading.Event()).scored == 3


def test_the_host_that_recorded_a_root_is_believed(lab: Lab, mount: Path) -> None:
    [known] = lab.db.read(sources.known)
    assert source_roots.why_not(lab.db, known, Path(known.root)) is None
    assert source_roots.why_not(lab.db, known, mount) is not None


def test_a_worker_says_what_it_leaves(lab: Lab, elsewhere: Database) -> None:
    reasons = {"imager": "its root lists nothing"}
    elsewhere.write(workers.beat, "w", elsewhere.host, 1, "score", elsewhere.now(), reasons)
    [found] = lab.db.read(workers.alive, lab.db.now())
    assert (found.host, found.left_to_others) == ("gpu07", reasons)
    elsewhere.write(workers.beat, "w", elsewhere.host, 1, "score", elsewhere.now(), {})
    assert lab.db.read(workers.alive, lab.db.now())[0].left_to_others is None

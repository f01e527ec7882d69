"""Scoring with a version that looks at whole images: one score an image, whatever its shape and its batch."""

from dataclasses import replace
from pathlib import Path

import factories
import pytest
import random_bundles
import sqlalchemy as sa
from factories import utc
from test_score import Lab, photograph

from marcod.database.engine import Database
from marcod.database.schema import image, score
from marcod.images import appearance
from marcod.model import bundle
from marcod.model.predictor import Predictor
from marcod.model.preprocess import Preprocessing
from marcod.store import queue

SIZES = {"wide.jpg": (200, 90), "high.jpg": (90, 120), "square.jpg": (90, 90), "panorama.jpg": (500, 80)}


@pytest.fixture
def registry(db: Database, members: Path) -> random_bundles.LoadOnce:
    """left:1 and own:1, and left:2, which looks at whole images and is champion."""
    parent = bundle.read(members / "left" / "1")
    seen = replace(Preprocessing.from_dict(parent.preprocessing), coverage="whole").to_dict()
    derived = parent.model_copy(update={"version": 2, "parent": "left:1", "preprocessing": seen})
    bundle.write_derived(members, derived, members / "left" / "1", {}, [])
    found = random_bundles.LoadOnce(db, members)
    found.promote(found.register("left", "2", utc()), actor="test", now=utc())
    return found


@pytest.fixture
def lab(db: Database, registry: random_bundles.LoadOnce, tmp_path: Path) -> Lab:
    made = Lab(db, registry, tmp_path / "root")
    for seed, (name, size) in enumerate(SIZES.items()):
        made.deliver(name, photograph(seed, size=size))
    return made


def stored(lab: Lab) -> dict[str, tuple[float, ...]]:
    columns = (score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate, score.c.focus)
    statement = sa.select(image.c.path, *columns).join(score, score.c.image_id == image.c.id)
    return {path: tuple(values) for path, *values in factories.rows(lab.db, statement)}


def alone(lab: Lab, network: Predictor, name: str) -> list[float]:
    pixels = network.prepare((lab.root / name).read_bytes())
    return [float(p) for p in network.fold(network.predict([pixels]))[0]] + [appearance(pixels).focus]


def test_images_of_every_shape_are_scored_once(lab: Lab, registry: random_bundles.LoadOnce) -> None:
    lab.deliver("broken.jpg", b"no image")
    lab.drain()
    found = stored(lab)
    network = registry.load(registry.resolve_registered("left:2", utc()), 4)
    assert found == {name: pytest.approx(alone(lab, network, name), abs=1e-7) for name in SIZES}
    assert set(lab.failed()) == {"broken.jpg"}
    central = registry.load(registry.resolve_registered("left:1", utc()), 4)
    assert found["square.jpg"] == pytest.approx(alone(lab, central, "square.jpg"), abs=1e-7)
    assert found["wide.jpg"] != pytest.approx(alone(lab, central, "wide.jpg"), abs=1e-4)


def test_a_committee_takes_the_stored_scores_of_a_member_for_whole_images(
    lab: Lab, registry: random_bundles.LoadOnce, members: Path
) -> None:
    lab.drain()
    before = stored(lab)
    made = random_bundles.combine(registry, members, "left:2", "own:1")
    lab.db.write(lambda c: queue.enqueue_rescore(c, made.id, utc(1)))
    lab.drain(utc(2))
    statement = sa.select(image.c.path, score.c.p_crystals).join(score).where(score.c.model_version_id == made.id)
    found = dict(tuple(row) for row in factories.rows(lab.db, statement))
    committee, own = (registry.load(registry.resolve_registered(name, utc()), 4) for name in ("committee:1", "own:1"))
    for name in SIZES:
        given = [[before[name][:4], alone(lab, own, name)[:4]]]
        assert committee.combine(given)[0][1] == pytest.approx(found[name], abs=1e-6)  # type: ignore[attr-defined]


def test_the_look_of_an_image_is_the_mean_of_its_squares(lab: Lab, registry: random_bundles.LoadOnce) -> None:
    network = registry.load(registry.resolve_registered("left:2", utc()), 4)
    looks = appearance(network.prepare(photograph(9, size=(200, 90))))
    parts = [appearance(square) for square in network.prepare(photograph(9, size=(200, 90)))]
    assert looks.brightness == pytest.approx(sum(p.brightness for p in parts) / len(parts))

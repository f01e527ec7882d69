"""What a lab must never see: a lost image, a doubled score, a job that stays leased."""

import hashlib
import random
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import random_bundles
import sqlalchemy as sa
from lab import Delivery, Site, terminate
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import score
from marcod.domain import CLASSES, COLUMN_OF_CLASS
from marcod.model import bundle
from marcod.model.probabilities import softmax
from marcod.store.versions import Version
from marcod.synthetic import write_file

pytestmark = pytest.mark.story


def _doubled(site: Site) -> list[object]:
    return site.rows("select image_id, model_version_id, count(*) from score group by 1, 2 having count(*) > 1")


def _prepare(site: Site, deliveries: dict[str, Delivery], **sections: dict[str, Any]) -> int:
    for name, delivered in deliveries.items():
        root = site.folder / name
        root.mkdir()
        site.add_source(name, root, delivered.layout)
    site.write(**sections)
    return sum(len(delivered.composites()) for delivered in deliveries.values())


def _deliver_slowly(site: Site, deliveries: dict[str, Delivery]) -> threading.Thread:
    """The imagers go on writing, whatever happens to the daemon."""

    def work() -> None:
        pace = threading.Event()
        for name, delivered in deliveries.items():
            for file in delivered.files():
                write_file(site.folder / name, file, (204, 171))
                pace.wait(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_killed_again_and_again_every_image_has_exactly_one_score(site: Site, deliveries: dict[str, Delivery]) -> None:
    total = _prepare(site, deliveries)
    imagers = _deliver_slowly(site, deliveries)
    rng = random.Random(5)
    for _ in range(3):
        scored = site.count("score")
        with site.daemon() as process:
            enough = scored + rng.randint(1, 8)
            wait_until(lambda enough=enough: site.count("score") >= min(enough, total), "some scores")
            process.kill()
            process.wait()
    imagers.join()
    with site.daemon() as process:
        site.wait_until_running(process)
        wait_until(lambda: site.count("score") >= total and site.count("job") == 0, "all scores")
        assert terminate(process) == 0
    assert site.count("image") == site.count("score") == total
    assert not _doubled(site)
    assert site.count("job") == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_stop_in_the_middle_leaves_nothing_leased(site: Site, deliveries: dict[str, Delivery]) -> None:
    total = _prepare(site, deliveries)
    for name, delivered in deliveries.items():
        delivered.write(site.folder / name)
    with site.daemon() as process:
        wait_until(lambda: site.count("score") > 0, "the first scores")
        assert terminate(process) == 0
    assert site.rows("select count(*) from job where lease is not null")[0][0] == 0
    assert site.count("score") + site.count("job") <= total
    assert site.count("worker") == 0
    assert site.log.count("champion is synthetic") == 1
    assert not _doubled(site)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_stop_while_the_model_loads_ends_at_once(site: Site, deliveries: dict[str, Delivery]) -> None:
    _prepare(site, deliveries)
    with site.daemon() as process:
        # Sources are written just before the model is loaded.
        wait_until(lambda: site.count("source") == len(deliveries), "the sources to be known")
        assert terminate(process) == 0
    assert "stopped" not in site.log
    assert site.count("worker") == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_share_that_comes_after_the_service_is_watched(site: Site, deliveries: dict[str, Delivery]) -> None:
    name, delivered = next(iter(deliveries.items()))
    site.add_source(name, site.folder / name, delivered.layout)
    site.write()
    with site.daemon("watch") as process:
        site.wait_until_running(process)
        assert not (site.folder / name).exists()
        delivered.write(site.folder / name)
        wait_until(lambda: site.count("image") >= len(delivered.composites()), "the images to be recorded")
        assert terminate(process) == 0


@pytest.fixture
def total(site: Site, deliveries: dict[str, Delivery], pristine_members: Path) -> int:
    """How many images a lab has under a committee one of whose members scored a plate before, and the other none.

    What that member is said to have given no network gives, so a committee that asks it again is found out.
    """
    models = Path(shutil.copytree(pristine_members, site.folder / "models"))
    number = _prepare(site, deliveries, models={"folder": str(models)})
    db = Database(site.url)
    registry = random_bundles.LoadOnce(db, models)
    left = registry.register("left", "1", db.now())
    registry.promote(left, actor="test", now=db.now())
    deliveries["minstrel"].write(site.folder / "minstrel")
    site.ok("scan", "--source", "minstrel")
    _score(db, left)
    registry.promote(random_bundles.combine(registry, models, "left:1", "own:1"), actor="test", now=db.now())
    db.close()
    # A member with jobs of its own: what the committee asks it for is not to be computed or counted twice.
    for text in ("committee:1", "own:1"):
        site.ok("rescore", "--all", "--no-wait", "--model", text)
    for name in ("rock-imager", "hwi"):
        deliveries[name].write(site.folder / name)
    return number


def _score(db: Database, version: Version) -> None:
    """Give everything that waits a score of its own."""
    for lease in factories.leases(db, db.now()):
        crystals = iter(np.linspace(0.1, 0.8, len(lease.claims)).tolist())
        factories.finish(
            db, lease, version, db.now(),
            hashes=lambda c: hashlib.sha256((Path(c.root) / c.path).read_bytes()).hexdigest(),
            scores=lambda c, crystals=crystals: ((p := next(crystals)), 0.9 - p, 0.06, 0.04),
        )  # fmt: skip
    db.write(lambda c: c.execute(sa.update(score).values(brightness=0.5, contrast=0.2, focus=0.1)))


def _by_version(site: Site) -> dict[str, dict[int, list[float]]]:
    """The four probabilities by version and image."""
    columns = ", ".join(COLUMN_OF_CLASS[c] for c in CLASSES)
    found: dict[str, dict[int, list[float]]] = {}
    joined = "score join model_version on model_version.id = model_version_id"
    for name, image_id, *values in site.rows(f"select name, image_id, {columns} from {joined}"):
        found.setdefault(name, {})[image_id] = list(values)
    return found


def test_a_committee_that_is_killed_has_one_score_of_each_member_for_every_image(site: Site, total: int) -> None:
    """On PostgreSQL beside a second scorer that lives on, and may compute the same score at the same time."""
    before = _by_version(site)["left"]
    rng = random.Random(7)
    with ExitStack() as others:
        second = others.enter_context(site.daemon("score")) if site.url.startswith("postgres") else None
        for _ in range(2 if second is None else 1):
            with site.daemon() as process:
                enough = site.count("score") + rng.randint(3, 12)
                wait_until(lambda enough=enough: site.count("score") >= min(enough, 3 * total), "some scores")
                process.kill()
                process.wait()
        with site.daemon() as process:
            site.wait_until_running(process)
            wait_until(lambda: site.count("image") == total and site.count("job") == 0, "all scores")
            assert terminate(process) == 0
        assert second is None or terminate(second) == 0
    found = _by_version(site)
    assert not _doubled(site)
    assert {name: len(its) for name, its in found.items()} == {"committee": total, "left": total, "own": total}
    assert {image_id: found["left"][image_id] for image_id in before} == before
    record = bundle.read(site.folder / "models" / "committee" / "1")
    assert record.committee is not None
    images = sorted(found["committee"])
    own = softmax(record.committee.logits([[found[n][i] for n in ("left", "own")] for i in images]))
    assert np.array([found["committee"][i] for i in images]) == pytest.approx(own, abs=1e-5)

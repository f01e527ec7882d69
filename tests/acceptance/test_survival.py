"""What a lab must never see: a lost image, a doubled score, a job that stays leased."""

import random
import threading

import pytest
from lab import Delivery, Site, terminate
from waiting import wait_until

from marcod.synthetic import write_file

pytestmark = pytest.mark.story


def _doubled(site: Site) -> list[object]:
    return site.rows("select image_id, model_version_id, count(*) from score group by 1, 2 having count(*) > 1")


def _prepare(site: Site, deliveries: dict[str, Delivery]) -> int:
    for name, delivered in deliveries.items():
        root = site.folder / name
        root.mkdir()
        site.add_source(name, root, delivered.layout)
    site.write()
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

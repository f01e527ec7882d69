"""The real program on a terminal of 80 columns: nothing cut, nothing but words, no chatter and no log in a bar."""

import re

import factories
import pytest
from factories import utc
from lab import Delivery, Site
from terminal import Seen, on_terminal

from marcod.database.engine import Database
from marcod.model.registry import Registry
from marcod.store import queue

pytestmark = [pytest.mark.story, pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]

PLATE = "90j8_2018-04-11_RI1000-0081-2drop"
INSPECTION = "2018-04-11_afternoon"
BAD = f"{PLATE}/{INSPECTION}/visible/D12.jpg"
WHY = "the file ends in the middle of a row of pixels, so that half of the image is missing from the drop"
CHATTER = re.compile(r"absl|cuda|oneDNN|TensorFlow|\[info|\[debug", re.IGNORECASE)


def run(site: Site, *arguments: str) -> Seen:
    return on_terminal(["--config", str(site.config), *arguments])


@pytest.fixture
def lab(site: Site) -> Site:
    """A plate whose key and inspection are long, with a hit of another class, and an image that is given up."""
    site.write()
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db, "imager-of-the-second-floor")
    factories.record(db, source_id, factories.sightings(48, plate=PLATE, inspection=INSPECTION))
    lease = factories.claimed(db)
    bad = [queue.Failure(c, WHY, retryable=False) for c in lease.claims if c.path == BAD]
    hit = f"{PLATE}/{INSPECTION}/visible/B03.jpg"
    factories.finish(
        db, lease, champion, scores=lambda c: (0.6, 0.3, 0.1, 0.0) if c.path == hit else (0.99, 0.01, 0.0, 0.0),
        failures=bad,
    )  # fmt: skip
    db.close()
    site.ok("label", "add", PLATE, "A01", "Other", "--person", "ann")
    return site


def test_keys_and_paths_are_whole(lab: Site) -> None:
    seen = {words: run(lab, *words.split()) for words in ("plate list", "hits", "queue failed")}
    for words, shown in seen.items():
        assert shown.exit_code == 0, shown.text
        assert "…" not in shown.text, words
        assert not CHATTER.search(shown.text), words
    assert any(PLATE in line and INSPECTION in line for line in seen["plate list"].lines)
    assert any(PLATE in line and "B03.1" in line and "Clear" in line for line in seen["hits"].lines)
    assert "1 hit (crystals >= 0.07), best first" in seen["hits"].text
    assert any(BAD in line for line in seen["queue failed"].lines)
    assert WHY in " ".join(seen["queue failed"].text.replace(BAD, "").split())
    # What needs more than the width is a key or the heading above it, and the terminal itself wraps it.
    heads = ("plate ", "p(crystals) ", "image ")
    for shown in seen.values():
        assert all(len(line) <= 80 for line in shown.lines if PLATE not in line and not line.startswith(heads))


def test_a_hit_of_another_class_counts_once(lab: Site) -> None:
    shown = run(lab, "plate", "show", PLATE)
    assert all(len(line) <= 80 for line in shown.lines)
    told = " ".join(shown.text.split())
    assert "48 drops: 1 hit (crystals >= 0.07); others by likeliest class: 45 Clear, 1 Other; 1 failed" in told
    assert "labelled by people (underlined): A01.1 Other (ann)" in told


def test_a_bar_alone_while_images_are_scored(site: Site, deliveries: dict[str, Delivery]) -> None:
    delivered = deliveries["minstrel"]
    root = site.folder / "minstrel"
    delivered.write(root)
    site.add_source("minstrel", root, "rigaku")
    site.write()
    count = len(delivered.composites())
    site.ok("scan")
    scored = run(site, "score")
    assert scored.exit_code == 0, scored.text
    assert f"{count}/{count}" in scored.text
    assert f"{count} scored, 0 failed" in scored.text
    # Not even what the bar wrote over.
    assert not CHATTER.search(scored.raw.replace(str(site.folder), "")), scored.raw
    assert all(len(line) <= 80 for line in scored.lines)


def test_refusals_and_examples_fit_and_can_be_copied(site: Site) -> None:
    site.config.write_text('[watch]\nsetle_s = 5\n[sources.a]\nroot = "/nowhere"\nlayout = "rigaku"\n')
    refused, checked = run(site, "queue", "status"), run(site, "config", "check")
    assert (refused.exit_code, checked.exit_code) == (2, 2)
    lines = [line for shown in (refused, checked) for line in shown.lines if str(site.config) not in line]
    assert all(len(line) <= 80 for line in lines)
    assert "did you mean settle_s?" in " ".join(refused.text.split())
    assert "    settle_s = 10.0" in checked.lines

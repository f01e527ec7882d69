"""Images that a layout does not read or warns of: told by every command, counted once, gone when they are mended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Site, delivery
from waiting import wait_until

from marcod.database.engine import Database
from marcod.health import places
from marcod.health.doctor import Severity
from marcod.health.snapshot import take_snapshot
from marcod.settings import loading
from marcod.settings.environment import child_environment
from marcod.synthetic import ImagerStyle

pytestmark = pytest.mark.story

UNMAPPED = "WellImages/70/plateID_1070/batchID_3/wellNum_1/profileID_3/d1_r7_ef.png"


@pytest.fixture
def root(site: Site) -> Path:
    """The folder of a Minstrel imager, with 10 images of drops."""
    delivered = delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.1)
    assert len(delivered.composites()) == 10
    folder = site.folder / "in"
    delivered.write(folder)
    return folder


def configure(site: Site, root: Path, layout: str, name: str = "minstrel", **more: object) -> None:
    site.lines.clear()
    site.add_source(name, root, layout, **more)
    site.write(models={"folder": str(site.folder / "models")}, train={"folder": str(site.folder / "training")})


def examined(site: Site) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code of the doctor, and what it found about sources."""
    result = site.call("doctor", "--no-device", "--json")
    found = json.loads(result.stdout)["findings"]
    return result.exit_code, {one["subject"]: one for one in found if one["area"] == "sources"}


def looked_at(site: Site) -> dict[str, Severity]:
    """What the doctor finds about sources alone, which takes no model."""
    db = Database(site.url)
    try:
        found = places.sources(db, loading.load(site.config), db.read(take_snapshot, db.now()))
        return {one.subject: one.verdict for one in found}
    finally:
        db.close()


def test_a_wrong_layout_is_reported_until_it_is_corrected(site: Site, root: Path) -> None:
    configure(site, root, "xchem")
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), "scan"]
    scan = subprocess.run(command, capture_output=True, text=True, timeout=120, env=child_environment())
    told = "10 of 10 images not read (their paths are not those of layout xchem); 10 look like rigaku"
    assert scan.returncode == 3, scan.stderr
    assert f"  needs attention: {told}\n" in scan.stdout
    assert '    set layout = "rigaku"; an example: CI030117/' in scan.stdout

    again = site.call("scan", "--json")
    assert again.exit_code == 3
    [one] = json.loads(again.stdout)["minstrel"]["findings"]
    assert (one["reason"], one["files"], one["of_files"], one["hint"], one["attention"]) == (
        "not_this_layout", 10, 10, "rigaku", True,
    )  # fmt: skip

    shown = site.ok("status")
    assert "all is well" not in shown
    assert f'source minstrel: {told}; set layout = "rigaku"; an example: CI030117/' in shown
    status = json.loads(site.ok("status", "--json"))
    assert [found["files"] for found in status["findings"]] == [10]
    assert any(told in text for text in status["attention"])
    code, found = examined(site)
    assert (code, found["minstrel: not_this_layout"]["verdict"]) == (3, "attention")
    assert found["minstrel: not_this_layout"]["text"] == told
    assert 'set layout = "rigaku"' in found["minstrel: not_this_layout"]["advice"]

    configure(site, root, "rigaku")
    assert "10 new" in site.ok("scan")
    assert json.loads(site.ok("status", "--json"))["findings"] == []
    assert "minstrel: not_this_layout" not in looked_at(site)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_wrong_layout_is_mended_under_another_name_too(site: Site, root: Path) -> None:
    site.write(models={"folder": str(site.folder / "models")})
    assert site.call("scan", str(root), "--layout", "xchem").exit_code == 3
    # The doctor tells it although this source has no configuration.
    assert Severity.ATTENTION in {v for name, v in looked_at(site).items() if name.endswith(": not_this_layout")}
    configure(site, root, "rigaku", "robot")
    site.ok("scan")
    assert site.rows("select name, layout from source") == [("robot", "rigaku")]
    assert site.count("source_finding") == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_profile_that_is_not_mapped_is_reported(site: Site) -> None:
    root = site.folder / "in"
    file = root / UNMAPPED
    file.parent.mkdir(parents=True)
    file.write_bytes(b"synthetic")
    configure(site, root, "formulatrix")
    first = site.call("scan")
    assert first.exit_code == 3
    assert "needs attention: 1 of 1 image read with a warning (a .png of a capture profile that is not" in first.stdout
    assert f"add the profile to `profiles` of the source; an example: {UNMAPPED}" in first.stdout
    assert "image read with a warning" in site.ok("status")

    configure(site, root, "formulatrix", accept=["unmapped_profile"])
    accepted = site.ok("scan")
    assert "needs attention" not in accepted
    assert "1 of 1 image read with a warning" in accepted
    assert "accepted by the configuration" in accepted
    assert looked_at(site)["minstrel: unmapped_profile"] is Severity.OK

    site.lines[-1] = 'profiles = {3 = "uv"}'
    site.write(models={"folder": str(site.folder / "models")})
    assert "warning" not in site.ok("scan")
    assert site.count("source_finding") == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_daemon_counts_and_prometheus_reads(site: Site, root: Path) -> None:
    configure(site, root, "xchem")
    text = site.folder / "marcod.prom"
    site.write(models={"folder": str(site.folder / "models")}, metrics={"textfile": str(text), "every_s": 0.5})
    line = 'marcod_source_files{attention="true",kind="ignored",reason="not_this_layout",source="minstrel"} '

    def measured(files: int) -> bool:
        return text.exists() and f"{line}{files}.0\n" in text.read_text()

    with site.daemon("watch,schedule") as process:
        wait_until(lambda: measured(10), "the first walk to be counted")
        (root / "CI030117" / "odd.jpg").write_bytes(b"synthetic")
        wait_until(lambda: measured(11), "a new file to be counted")
        (root / "CI030117" / "odd.jpg").unlink()
        wait_until(lambda: measured(10), "a removed file to count no more")
        assert process.poll() is None
    assert site.log.count("files need attention") == 1

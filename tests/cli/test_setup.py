"""The first hour of a lab: a folder is looked at, configured, explained and scanned, as a person does it."""

import json
import os
import pty
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lab import Site, delivery
from test_refusals import _one_sentence

from marcod.domain import PLATE_FORMATS
from marcod.settings import loading
from marcod.settings.environment import child_environment
from marcod.synthetic import ImagerStyle

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

PLATE = "CI030117"


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of a Minstrel and of a Rock Imager side by side."""
    base = tmp_path_factory.mktemp("share")
    delivery("rigaku", ImagerStyle.RIGAKU, PLATE, 2, PLATE_FORMATS[24]).write(base / "minstrel" / "images")
    delivery("formulatrix", ImagerStyle.FORMULATRIX, "2041", 1, PLATE_FORMATS[24]).write(base / "rock-imager")
    return base


@pytest.fixture
def share(delivered: Path, tmp_path: Path) -> Path:
    """A copy of the exports."""
    return Path(shutil.copytree(delivered, tmp_path / "share"))


def process(site: Site, *arguments: str, **more: object) -> "subprocess.CompletedProcess[str]":
    """The real program, away from a terminal."""
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=child_environment(), check=False
    )


def at_terminal(site: Site, *arguments: str, answers: str) -> tuple[int, str]:
    """The real program at a terminal on which a person types these answers; its exit code and what was shown."""
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), *arguments]
    ours, theirs = pty.openpty()
    os.write(ours, answers.encode())
    environment = child_environment(TERM="dumb", COLUMNS="80")
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    return running.wait(60), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


def test_from_a_folder_to_scanned_plates(site: Site, share: Path) -> None:
    root = share / "minstrel" / "images"
    done = process(site, "setup", str(root), "--yes")
    assert done.returncode == 0, done.stderr
    assert "marcod model fetch marco" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= max(80, len(str(site.config)) + 30)
    [(name, source)] = tomllib.loads(site.config.read_text())["sources"].items()
    assert (name, source["root"], source["layout"]) == ("minstrel", str(root), "rigaku")
    assert "configuration is fine" in site.ok("config", "check")
    written = site.config.read_text()
    site.config.write_text(f"store.url = {site.url!r}\nwatch.settle_s = 0\n{written}")
    [report] = json.loads(site.ok("scan", "--json")).values()
    assert report["new"] == len(list(root.rglob("*.jpg")))


def test_a_second_time_changes_nothing(site: Site, share: Path) -> None:
    root = str(share / "rock-imager")
    site.ok("setup", root, "--yes")
    before = site.config.read_bytes()
    assert "configured already, as source 'rock-imager'" in site.ok("setup", root, "--yes")
    assert site.config.read_bytes() == before


def test_what_a_person_wrote_stays(site: Site, share: Path) -> None:
    site.config.write_text("# ours\nwatch.settle_s = 3   # slow share\n\n[sources.old]\nroot = '/old'\nlayout = 'hwi'")
    site.config.chmod(0o640)
    before = site.config.read_text()
    site.ok("setup", str(share), "--yes")
    assert site.config.read_text().startswith(before)
    assert site.config.stat().st_mode & 0o777 == 0o640
    assert set(loading.load(site.config).sources) == {"old", "minstrel", "rock-imager"}
    assert list(site.folder.iterdir()) == [site.config]


def test_the_root_above_a_plate_is_configured(site: Site, share: Path) -> None:
    root = share / "minstrel" / "images"
    assert "its root is above it" in site.ok("setup", str(root / PLATE), "--yes")
    assert loading.load(site.config).sources["minstrel"].root == root


def test_nothing_is_written_unasked(site: Site, share: Path) -> None:
    _one_sentence(site.call("setup", str(share)), 2, "--yes", "--dry-run")
    assert "[sources.minstrel]" in site.ok("setup", str(share), "--dry-run")
    seen = json.loads(site.ok("setup", str(share), "--dry-run", "--json"))
    assert (seen["written"], [source["name"] for source in seen["sources"]]) == (False, ["minstrel", "rock-imager"])
    assert seen["sources"][0]["settings"]["layout"] == "rigaku"
    assert not site.config.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[watch]\nsetle_s = 1\n", ("setle_s", "Correct that first")),
        ("[sources.other]\nroot = '{share}'\nlayout = 'rigaku'\n", ("lies inside", "'other'")),
        ("[sources.other]\nroot = '{root}'\nlayout = 'xchem'\n", ("'other'", "layout xchem", "rigaku reads it")),
        ("sources = {{ other = {{ root = '/other', layout = 'rigaku' }} }}\n", ("TOML",)),
    ],
)
def test_a_configuration_that_would_not_work_is_left_alone(
    site: Site, share: Path, text: str, words: tuple[str, ...]
) -> None:
    root = share / "minstrel" / "images"
    site.config.write_text(text.format(share=share, root=root))
    before = site.config.read_bytes()
    result = site.call("setup", str(root), "--yes")
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert site.config.read_bytes() == before


def test_a_broken_configuration_does_not_keep_anybody_from_looking(site: Site, share: Path) -> None:
    site.config.write_text("[watch]\nsetle_s = 1\n[sources.left]\nroot = '/left'\nlayout = 'hwi'\n")
    result = site.call("setup", str(share), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "[sources.minstrel]" in result.stdout
    assert "`marcod config check`" in result.stderr


def test_a_name_of_a_person_s_choice(site: Site, share: Path) -> None:
    site.ok("setup", str(share / "minstrel" / "images"), "--yes", "--name", "left")
    assert list(loading.load(site.config).sources) == ["left"]
    _one_sentence_of_error(site, "'left'", "setup", str(share / "rock-imager"), "--yes", "--name", "left")
    _one_sentence_of_error(site, "lower-case", "setup", str(share / "rock-imager"), "--yes", "--name", "Right One")
    assert list(loading.load(site.config).sources) == ["left"]


def _one_sentence_of_error(site: Site, word: str, *arguments: str) -> None:
    result = site.call(*arguments)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_folders_without_an_imager(site: Site, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.jpg").touch()
    result = site.call("setup", str(tmp_path / "album"), "--yes")
    assert result.exit_code == 2
    assert "1 image files that no layout reads" in result.stdout
    _one_sentence(site.call("setup", str(tmp_path / "nowhere"), "--yes"), 2, "nowhere", "No such file")
    assert not site.config.exists()


def test_a_place_that_cannot_be_written(site: Site, share: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lab = Site(tmp_path / "file", site.url)
    result = lab.call("setup", str(share), "--yes")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_a_person_is_asked(site: Site, share: Path) -> None:
    store = share / "rock-imager"
    for number, image in enumerate(list(store.rglob("*_ef.jpg"))):
        glow = image.parents[1] / "profileID_7" / f"d1_r{number}_ef.png"
        glow.parent.mkdir()
        glow.touch()
    code, shown = at_terminal(site, "setup", str(store), answers="\nshg\ny\n")
    assert code == 0, shown
    assert "Light of profile 7" in shown
    [source] = loading.load(site.config).sources.values()
    assert source.profiles == {1: "visible", 7: "shg"}


def test_a_person_says_no(site: Site, share: Path) -> None:
    code, shown = at_terminal(site, "setup", answers=f"{share / 'minstrel'}\n\nnowhere\nEurope/Berlin\nn\n")
    assert code == 1, shown
    assert "nowhere is not a time zone" in shown
    assert 'timezone = "Europe/Berlin"' in shown
    assert "nothing was written" in shown
    assert not site.config.exists()


def test_explain_looks_into_a_folder(site: Site, share: Path) -> None:
    site.config.write_text("[broken")
    shown = " ".join(site.ok("explain", str(share)).split())
    assert "rigaku" in shown
    assert "formulatrix" in shown
    assert f"the root to name is {share}/minstrel/images" in shown
    seen = json.loads(site.ok("explain", str(share), "--json"))[str(share)]
    assert {imager["layout"] for imager in seen["imagers"]} == {"rigaku", "formulatrix"}


def test_explain_of_a_path_that_is_not_here_says_so(site: Site, share: Path) -> None:
    nowhere = site.call("explain", str(share / "minstrell"))
    assert (nowhere.exit_code, "there is no such file or folder here" in nowhere.stdout) == (2, True)
    (share / "empty").mkdir()
    empty = site.call("explain", str(share / "empty"))
    assert (empty.exit_code, "it holds no files, as an unmounted share does" in empty.stdout) == (2, True)
    assert "there is no such" not in site.ok("explain", str(next(share.rglob("*.jpg"))))


def test_explain_tells_the_root_of_a_whole_path(site: Site, share: Path) -> None:
    image = next((share / "minstrel").rglob("*.jpg"))
    shown = site.ok("explain", str(image))
    root = str(share / "minstrel" / "images")
    assert [line.split()[1] for line in shown.splitlines() if line.split()[0] == "root"] == [root]
    [row] = [row for row in json.loads(site.ok("explain", str(image), "--json"))[str(image)] if row["drop_image"]]
    assert (row["root"], row["path"]) == (root, str(image.relative_to(root)))


def test_a_folder_is_scanned_without_a_layout(site: Site, share: Path) -> None:
    site.write(watch={"settle_s": 0.0})
    result = site.call("scan", str(share / "rock-imager"), "--json")
    assert result.exit_code == 0, result.output
    assert 'layout = "formulatrix"' in result.stderr
    assert site.rows("select layout from source") == [("formulatrix",)]


def test_a_folder_that_is_not_clear_is_not_scanned(site: Site, share: Path) -> None:
    site.write()
    several = site.call("scan", str(share))
    assert several.exit_code == 2
    assert f"`marcod scan {share}/rock-imager --layout formulatrix`" in several.stderr
    part = site.call("scan", str(share / "minstrel" / "images" / PLATE))
    assert part.exit_code == 2
    assert f"say `marcod scan {share}/minstrel/images --layout rigaku`" in part.stderr
    assert site.count("source") == 0

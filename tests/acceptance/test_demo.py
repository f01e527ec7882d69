"""`marcod demo` as its own process, on a few wells of each plate."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from marcod import demo
from marcod.cli import cli
from marcod.domain import DropClass
from marcod.settings.environment import child_environment

pytestmark = pytest.mark.story


def test_without_the_published_model_it_says_so_loudly_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "marcod", "demo", "--folder", str(folder), "--wells", "2"],
        env=child_environment(MARCOD_PUBLISHED_WHEEL=str(tmp_path / "none.whl"), NO_COLOR="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert shown.count("The published MARCO could not be had.") == 2
    assert f"there is no file or folder {tmp_path / 'none.whl'}" in shown
    assert "8 images of 12 files scored by lite0:1" in shown
    assert "(the other 4 are small copies, `_th`, that a Rock Imager writes beside its images)" in shown
    assert shown.count("drawn as drops crystals precipitate clear other") == 4
    assert "setup FOLDER" in shown
    again = CliRunner().invoke(cli, ["demo", "--folder", str(folder)])
    assert (again.exit_code, again.stderr) == (1, f"marcod: {folder} is not empty; give another folder with --folder\n")


def test_its_plates_are_on_a_page_until_ctrl_c(tmp_path: Path) -> None:
    variables = {"MARCOD_PUBLISHED_WHEEL": str(tmp_path / "none.whl"), "NO_COLOR": "1", "BROWSER": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "marcod", "demo", "--folder", str(tmp_path / "demo"), "--wells", "1", "--web"],
        env=child_environment(**variables), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = next(match for line in process.stdout if (match := re.search(r"The page is at (http\S+);", line)))
        with urlopen(found[1]) as answer:
            assert "CI030117" in answer.read().decode()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    with pytest.raises(URLError):
        urlopen(found[1])


def test_crystals_are_drawn_on_every_plate() -> None:
    for plate in demo.exports():
        drawn = list(demo.drawn([plate]).values())
        assert drawn.count(DropClass.CRYSTALS) >= 10
        assert len(drawn) == len(plate.spec.positions()) * len(plate.spec.inspections)

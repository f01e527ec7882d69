"""`marcod demo` as its own process, on a few wells of each plate."""

import subprocess
import sys
from pathlib import Path

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


def test_crystals_are_drawn_on_every_plate() -> None:
    for plate in demo.exports():
        drawn = list(demo.drawn([plate]).values())
        assert drawn.count(DropClass.CRYSTALS) >= 10
        assert len(drawn) == len(plate.spec.positions()) * len(plate.spec.inspections)

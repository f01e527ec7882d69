"""Build ``marcod-light``: the same code for hosts that only score, which requires OpenVINO in the place of TensorFlow.

``python wheels/light.py FOLDER`` writes the wheel there. Its project file is made of this checkout's own and of
``[tool.marcod.light]`` in it, so version, code and all other requirements have one source.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("marcod", "migrations", "models", "systemd", "README.md", "LICENSE")


def project(whole: dict[str, Any]) -> dict[str, Any]:
    """Make the light distribution's project file of the whole one's."""
    light = whole["tool"]["marcod"]["light"]
    kept = [one for one in whole["project"]["dependencies"] if _name(one) not in light["without"]]
    extras = {key: whole["project"]["optional-dependencies"][key] for key in light["extras"]}
    about = {
        "name": light["name"],
        "description": light["description"],
        "dependencies": sorted([*kept, *light["with"]]),
    }
    return {
        "build-system": whole["build-system"],
        "project": {**whole["project"], **about, "optional-dependencies": extras},
        "tool": {"hatch": whole["tool"]["hatch"]},
    }


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]


def build(folder: Path) -> None:
    """Build the wheel into ``folder``."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="marcod-light-") as made:
        place = Path(made)
        (place / "pyproject.toml").write_text(tomli_w.dumps(project(whole)), encoding="utf-8")
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, place / part)
        command = [
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "--target",
            "wheel",
            "--directory",
            str(folder.resolve()),
        ]
        subprocess.run(command, cwd=place, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))

"""The wheel carries everything an installation needs, and works away from the checkout."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from marcod.settings.environment import child_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as an installation lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_migrations_units_and_the_shipped_bundle_travel_inside(unpacked: Path) -> None:
    for source, target in (("migrations", "_migrations"), ("models", "_models"), ("systemd", "_systemd")):
        expected = {
            path.relative_to(ROOT / source).as_posix()
            for path in (ROOT / source).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        inside = unpacked / "marcod" / target
        assert {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()} == expected
    assert (unpacked / "marcod" / "_models" / "lite0" / "1" / "bundle.toml").is_file()
    assert (unpacked / "marcod" / "model" / "published" / "catalogue.toml").is_file()


@pytest.mark.slow
def test_an_installation_makes_its_database_and_knows_its_model(unpacked: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-P", "-m", "marcod", "--database", f"sqlite:///{tmp_path}/marcod.sqlite"]
    for command in (("db", "upgrade"), ("model", "list")):
        done = subprocess.run(
            [*program, *command],
            cwd=tmp_path,
            env=child_environment(PYTHONPATH=str(unpacked)),
            capture_output=True,
            text=True,
            check=True,
        )
    assert "lite0:1" in done.stdout
    assert str(unpacked) in done.stdout


def test_a_visitor_reads_what_takes_minutes_before_it_starts() -> None:
    shown = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "which takes minutes" in shown[: shown.index("pip install")]


@pytest.mark.slow
def test_the_light_wheel_is_the_same_code_and_requires_openvino_for_tensorflow(unpacked: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "wheels" / "light.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("marcod_light-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    about = next(data.decode() for name, data in inside.items() if name.endswith("/METADATA"))
    lines = [line for line in about.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    required = {re.split("[<>]", line.split()[1])[0] for line in lines}
    assert {"openvino", "simplejpeg", "sqlalchemy"} <= required
    assert not required & {"tensorflow", "keras", "scipy", "scikit-learn", "matplotlib"}
    code = {name: data for name, data in inside.items() if name.startswith("marcod/")}
    assert code == {
        path.relative_to(unpacked).as_posix(): path.read_bytes()
        for path in (unpacked / "marcod").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

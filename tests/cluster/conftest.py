"""A Slurm of its own, where this host has its programs; the lab of `lab_fixtures`."""

import getpass
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm as programs
from lab_fixtures import deliveries, site  # noqa: F401


@pytest.fixture
def slurm() -> Iterator[programs.Slurm]:
    """A controller and a node that run nothing yet."""
    lacking = programs.missing()
    assert not lacking, f"there is no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    # Not below pytest's own folder: the path of a socket is short.
    temporary = tempfile.TemporaryDirectory(prefix="marcod-slurm-")
    with temporary as folder, programs.Slurm(Path(folder), getpass.getuser()) as running:
        yield running

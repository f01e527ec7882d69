"""A training's state on disk: there whole or not at all, and never half believed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod.errors import MarcodError
from marcod.fitting import checkpoint
from marcod.fitting.checkpoint import TrainingState

WEIGHTS = {"Inception/a/weights": np.arange(6, dtype=np.float32).reshape(2, 3), "Inception/b": np.ones(2, np.float32)}
STATE = TrainingState(
    epoch=2,
    step=7,
    weights=WEIGHTS,
    average={name: value + 1 for name, value in WEIGHTS.items()},
    best={},
    optimizer=[np.array(i, np.int64) for i in range(12)],
    best_loss=0.25,
    curve=[{"epoch": 1, "loss": 0.5}],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "fit.npz"
    checkpoint.save(path, STATE)
    return path


def test_a_state_comes_back_as_it_was(written: Path, tmp_path: Path) -> None:
    found = checkpoint.load(written)
    assert found is not None
    for group in ("weights", "average", "best"):
        before, after = getattr(STATE, group), getattr(found, group)
        assert before.keys() == after.keys()
        assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert [value.tolist() for value in found.optimizer] == list(range(12))
    assert (found.epoch, found.step, found.best_loss, found.curve) == (2, 7, 0.25, STATE.curve)
    assert checkpoint.load(tmp_path / "none.npz") is None


def test_a_save_that_was_cut_short_leaves_the_former_state(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    checkpoint.save(path, STATE)
    path.with_suffix(".part").write_bytes(path.read_bytes()[:100])
    assert checkpoint.load(path) is not None
    checkpoint.save(path, STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["fit.npz"]


@given(st.data())
def test_damage_is_a_sentence_or_does_not_matter(written: Path, data: st.DataObject) -> None:
    """Cut short or with one other bit; some bits of a zip file mean nothing."""
    good = written.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    broken = bytearray(good)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    path = written.with_name("broken.npz")
    path.write_bytes(good[:at] if data.draw(st.booleans()) else broken)
    try:
        said = None if checkpoint.load(path) else "no state"
    except MarcodError as error:
        said = str(error)
    assert said is None or said.startswith(f"the checkpoint {path} is damaged: ")
    assert said is None or said.endswith("; remove it to start again")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(MarcodError, match="is damaged"):
        checkpoint.load(path)
    checkpoint.save_arrays(path, {"features": np.ones(3)})
    with pytest.raises(MarcodError, match="is damaged"):
        checkpoint.load(path)

"""Two processes train the smallest network as one does, and go on where they were when one of them is killed."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, random_weights
from training_images import paper

from marcod.domain import CLASSES
from marcod.errors import TRY_AGAIN, MarcodError
from marcod.fitting import batches, checkpoint, jobs, together
from marcod.fitting.checkpoint import TrainingState, Weights
from marcod.fitting.fit import Fitted, LostProcessError, StoppedError
from marcod.fitting.jobs import FitJob, Judges, Taught
from marcod.fitting.together import Board, Team
from marcod.model.preprocess import Preprocessing

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

BATCH, STEPS = 8, 4
RATE = 1e-4
CLOSE = 1e-6
"""Part of what a training changes. This network, with batches of eight, makes much of any rounding: in float32 a
hundredth of a first step, and as much as the change itself after a few. So the test calculates in float64."""


@pytest.fixture(autouse=True, scope="module")
def _float64(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("keras")
    (home / "keras.json").write_text('{"floatx": "float64", "backend": "jax"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        patch.setenv("JAX_ENABLE_X64", "1")
        yield


def colourful(count: int, side: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 9, 9, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def job_in(folder: Path, batch_size: int = BATCH) -> FitJob:
    np.save(folder / "train.npy", colourful(BATCH * STEPS, 90, 1))
    np.save(folder / "validation.npy", colourful(BATCH, TINY.input_size, 2))
    labels = np.arange(BATCH * STEPS) % len(CLASSES)
    recipe = replace(paper(epochs=1, batch_size=batch_size), rate=RATE, auxiliary=0, average_every=1, average_share=1.0)
    ones = np.ones(len(labels), np.float32)
    return FitJob(
        TINY, recipe, Taught(batches.one_hot(labels, len(CLASSES)), ones, place=folder / "train.npy"), 1,
        folder / "fit.npz", begin=random_weights(TINY), precision="float64",
        judges=Judges(
            folder / "validation.npy", np.arange(BATCH), labels[:BATCH], ones[:BATCH],
            Preprocessing(TINY.input_size, "area"),
        ),
    )  # fmt: skip


@dataclass
class Story:
    """A training of one process, and the same one of two that was stopped, killed and then ended."""

    begin: Weights
    one: Fitted
    stopped: TrainingState
    killed: LostProcessError
    both: Fitted


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, _float64: None) -> Story:
    job = job_in(tmp_path_factory.mktemp("together"))
    one = trained(job, 1)
    job.place.unlink()
    stop = Event()
    with pytest.raises(StoppedError):
        trained(job, 2, stop.set, stop)
    stopped = checkpoint.load(job.place)
    assert stopped is not None
    with pytest.raises(LostProcessError) as killed:
        trained(job, 2, lambda: kill_second(job.place.parent))
    return Story(job.begin, one, stopped, killed.value, by_tasks(job))


def by_tasks(job: FitJob) -> Fitted:
    """Go on as two tasks of a job step do, which know of each other by a file alone."""
    board = Board(job.place.with_name("board.json"))
    with ThreadPoolExecutor(1) as other, board.kept():
        following = other.submit(together.follow, board.place, 1, Event())
        found = together.run(job, Team(2, board), lambda *_: None, Event())
        board.end()
        following.result()
    return found


def trained(
    job: FitJob, processes: int, after_step: Callable[[], None] = lambda: None, stop: Event | None = None
) -> Fitted:
    return together.run(job, Team(processes), lambda *_: after_step(), stop or Event())


def kill_second(folder: Path) -> None:
    """Kill the second worker as a host without memory would."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line and b'"number": 1,' in line:
            os.kill(int(process.parent.name), signal.SIGKILL)


def test_two_processes_train_as_one_with_their_batches_together(story: Story) -> None:
    """Statistics of batch normalization are those of the whole batch; a half's would be far off."""
    [one], [both] = story.one.curve, story.both.curve
    assert both["validation_loss"] == pytest.approx(one["validation_loss"], abs=CLOSE)
    moved: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    for name, begin in story.begin.items():
        moved["moving" in name].append((story.one.weights[name] - begin, story.both.weights[name] - begin))
    for pairs in moved.values():
        size = sum(float((a**2).sum()) for a, _ in pairs) ** 0.5
        apart = sum(float(((a - b) ** 2).sum()) for a, b in pairs) ** 0.5
        assert size > 0
        assert apart < CLOSE * size


def test_a_training_whose_process_was_killed_goes_on_from_the_checkpoint(story: Story) -> None:
    assert story.stopped.epoch == 0
    assert 0 < story.stopped.step < STEPS
    assert story.killed.exit_code == TRY_AGAIN
    assert "process 1 of 2 was ended by SIGKILL, and the others with it" in str(story.killed)
    assert "loss" in story.both.curve[0]


def test_a_task_whose_first_one_is_silent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SILENCE_S", 0.2)
    monkeypatch.setattr(together, "FOLLOW_S", 0.05)
    with pytest.raises(LostProcessError, match="process 0 gave no sign of life on"):
        together.follow(tmp_path / "board.json", 1, Event())


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MarcodError, match="a batch of 7 images cannot be shared out evenly among 2 processes"):
        trained(job_in(tmp_path, batch_size=7), 2)


def test_a_fit_is_the_same_read_from_its_file(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    jobs.save(tmp_path / "job.npz", job)
    again = jobs.load(tmp_path / "job.npz")
    assert (again.architecture, again.recipe, again.seed, again.place) == (TINY, job.recipe, 1, job.place)
    assert all(np.array_equal(again.begin[name], value) for name, value in job.begin.items())
    assert again.judges is not None
    assert again.judges.how == Preprocessing(TINY.input_size, "area")
    assert np.array_equal(again.taught.targets, job.taught.targets)
    step = np.array([3, 1])
    assert np.array_equal(again.taught.open().rows(step, 0), job.taught.open().rows(step, 0))

"""Two processes train the smallest network as one does, and go on where they were when one of them is killed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, random_weights
from training_images import paper
from training_processes import kill_second

from marcod.domain import CLASSES
from marcod.errors import TRY_AGAIN, MarcodError
from marcod.fitting import batches, checkpoint, jobs, together
from marcod.fitting.checkpoint import TrainingState, Weights
from marcod.fitting.fit import Fitted, LostProcessError, StoppedError
from marcod.fitting.jobs import FitJob, Judges, Taught
from marcod.fitting.together import Board, Team
from marcod.model.preprocess import Preprocessing

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

BATCH = 8
CLOSE = 5e-3
"""Part of what the first step changes. Of the last bit of a sum this network, with random weights and eight images,
makes a ten-thousandth of it, and more with every step. Statistics of half a batch would be as far off as the change."""


def colourful(count: int, side: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 9, 9, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def job_in(folder: Path, batch_size: int = BATCH) -> FitJob:
    np.save(folder / "train.npy", colourful(BATCH, 90, 1))
    np.save(folder / "validation.npy", colourful(BATCH, TINY.input_size, 2))
    labels = np.arange(BATCH) % len(CLASSES)
    recipe = replace(paper(epochs=1, batch_size=batch_size), auxiliary=0)
    ones = np.ones(len(labels), np.float32)
    return FitJob(
        TINY, recipe, Taught(batches.one_hot(labels, len(CLASSES)), ones, place=folder / "train.npy"), 1,
        folder / "fit.npz", begin=random_weights(TINY), precision="float32",
        judges=Judges(
            folder / "validation.npy", np.arange(BATCH), labels, ones,
            Preprocessing(TINY.input_size, "area"),
        ),
    )  # fmt: skip


@dataclass
class Story:
    """A pass of one process and of two; then more passes of two, one of which is killed and then stopped."""

    begin: Weights
    one: Fitted
    both: Fitted
    killed: LostProcessError
    stopped: TrainingState


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    job = job_in(tmp_path_factory.mktemp("together"))
    one = trained(job, 1)
    job.place.unlink()
    both = trained(job, 2)
    longer = replace(job, recipe=replace(job.recipe, epochs=50))
    with pytest.raises(LostProcessError) as killed:
        trained(longer, 2, lambda: kill_second(job.place.parent))
    with pytest.raises(StoppedError):
        by_tasks(longer)
    stopped = checkpoint.load(job.place)
    assert stopped is not None
    return Story(job.begin, one, both, killed.value, stopped)


def by_tasks(job: FitJob) -> None:
    """Go on as two tasks of a job step do, which know of each other by a file alone, until both are stopped."""
    board, stop = Board(job.place.with_name("board.json")), Event()
    with ThreadPoolExecutor(1) as other, board.kept():
        following = other.submit(together.follow, board.place, 1, stop)
        try:
            together.run(job, Team(2, board), lambda *_: stop.set(), stop)
        finally:
            stop.set()
            following.result()


def trained(
    job: FitJob, processes: int, after_step: Callable[[], None] = lambda: None, stop: Event | None = None
) -> Fitted:
    return together.run(job, Team(processes), lambda *_: after_step(), stop or Event())


def test_two_processes_train_as_one_with_their_batches_together(story: Story) -> None:
    """Both ended with the same weights to the last bit, which is compared in every training."""
    [one], [both] = story.one.curve, story.both.curve
    for name in ("loss", "validation_loss"):
        assert both[name] == pytest.approx(one[name], abs=1e-4)
    moved: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    for name, begin in story.begin.items():
        moved["moving" in name].append((story.one.weights[name] - begin, story.both.weights[name] - begin))
    for pairs in moved.values():
        size = sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs) ** 0.5
        apart = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in pairs) ** 0.5
        assert size > 0
        assert apart < CLOSE * size


def test_a_training_whose_process_was_killed_goes_on_from_the_checkpoint(story: Story) -> None:
    assert story.killed.exit_code == TRY_AGAIN
    assert "process 1 of 2 was ended by SIGKILL, and the others with it" in str(story.killed)
    assert 1 < story.stopped.epoch < 50 or story.stopped.step == 1
    assert story.stopped.curve[0] == story.both.curve[0]
    assert all(np.isfinite(value).all() for value in story.stopped.weights.values())


def test_independent_fits_are_done_side_by_side(story: Story, tmp_path: Path) -> None:
    """A process each, which finds what it would have found alone."""
    job = job_in(tmp_path)
    given = [replace(job, seed=seed, place=tmp_path / f"fit-{seed}.npz") for seed in (job.seed, 2)]
    seen: list[int] = []
    first, second = together.run_each(given, 2, lambda what, done, total: seen.append(done), Event())
    assert seen[-1] == 2
    for name, value in story.one.weights.items():
        np.testing.assert_allclose(first.weights[name], value, rtol=0, atol=1e-6)
    assert any(not np.array_equal(first.weights[name], value) for name, value in second.weights.items())
    assert (tmp_path / "process-1.log").exists()


def test_nothing_is_started_after_a_stop(tmp_path: Path) -> None:
    job, stop = job_in(tmp_path), Event()
    stop.set()
    with pytest.raises(StoppedError):
        together.run_each([job], 1, lambda *_: None, stop)
    with pytest.raises(StoppedError):
        together.run(job, Team(2), lambda *_: None, stop)
    assert not list(tmp_path.glob("process-*.log"))


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

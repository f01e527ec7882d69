"""Tables at any width: nothing is cut, keys stay whole, and what has no room is named."""

import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from marcod import text
from marcod.cli.common import bars, listings, output

PATH = "WellImages/41/plateID_2041/batchID_8806/wellNum_95/profileID_1/" + "d1_r951_ef_" * 6 + ".jpg"
WHY = "the file ends in the middle of a row of pixels, so that half of the image is missing from the drop"


def shown(listing: listings.Listing, width: int, *, terminal: bool = True) -> list[str]:
    """The lines of a listing without colours."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, color_system=None, soft_wrap=True, highlight=False).print(
        listing
    )
    return file.getvalue().rstrip("\n").split("\n")


def failed(rows: Iterable[tuple[object, ...]] = ((7, "minstrel", PATH, 3, WHY),)) -> listings.Listing:
    columns = ("image", "source", "path", "attempts", "error")
    return listings.table("1 failed image", columns, rows, spare=(("attempts",), ("source",)), prose=True)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_path_stays_whole_and_a_sentence_is_folded_between_its_words(width: int) -> None:
    lines = shown(failed(), width)
    assert any(PATH in line for line in lines)
    assert " ".join(" ".join(lines[2:]).replace(PATH, "").split()).count(WHY) == 1
    assert all(len(line) <= width for line in lines if PATH not in line and "error" not in line and "path" not in line)
    assert "…" not in "\n".join(lines)


def test_columns_without_room_are_named() -> None:
    assert "no room for: source, attempts; --json has them" in shown(failed(), 80)
    wide = shown(failed(), 400)
    assert "minstrel" in wide[2]
    assert not any("no room" in line for line in wide)


def test_without_a_terminal_nothing_is_folded_or_left_out() -> None:
    assert shown(failed(), 80, terminal=False)[2:] == [f"    7  minstrel  {PATH}         3  {WHY}"]


def test_a_table_without_rows_is_its_title() -> None:
    assert shown(failed(()), 80) == ["1 failed image"]


def said(sentence: str, *, terminal: bool = True) -> list[str]:
    """The lines of a sentence on a terminal of 40 columns."""
    file = io.StringIO()
    output.say(Console(file=file, width=40, force_terminal=terminal, color_system=None, highlight=False), sentence)
    return file.getvalue().removesuffix("\n").split("\n")


def test_a_sentence_is_folded_between_its_words() -> None:
    assert said("  - the drops of plate CI022987 are read with `marcod plate show CI022987`\nand more") == [
        "  - the drops of plate CI022987 are read",
        "    with `marcod plate show CI022987`",
        "and more",
    ]
    assert said(f"see {PATH} there") == ["see", PATH, "there"]
    assert said(f"see {PATH} there", terminal=False) == [f"see {PATH} there"]


def test_values_are_words_and_no_python() -> None:
    numbers = {"lost": 2, "share": 0.25, "by": {"ann": None, "bob": [1, 2]}, "passed": True}
    assert text.in_words(numbers) == "lost 2, share 0.25, by (ann -, bob (1, 2)), passed yes"
    assert text.in_words([[1, 2], [3, 4]]) == "1, 2 / 3, 4"


@pytest.mark.parametrize(
    ("number", "noun", "plural", "said"),
    [
        (0, "file", None, "0 files"),
        (1, "file", None, "1 file"),
        (2000, "file", None, "2,000 files"),
        (1, "image is", "images are", "1 image is"),
        (3, "image is", "images are", "3 images are"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, plural: str | None, said: str) -> None:
    assert text.count(number, noun, plural) == said


def test_the_nearest_words_come_first_and_the_list_ends() -> None:
    names = [f"plate-{number:03}" for number in range(40)] + ["CI022987"]
    assert text.nearest("ci22987", names)[0] == "CI022987"
    offered = text.offer("ci22987", names, "plates")
    assert offered.startswith("the plates are CI022987, plate-000, ")
    assert offered.endswith(" and 29 more")
    assert text.offer("x", [], "plates") == "there are no plates"


def test_long_work_writes_no_line_per_item(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.progress("images", 500) as done:
        for count in range(501):
            done(count)
    assert capsys.readouterr().err == ""
    with bars.stages() as report:
        for count in range(501):
            report("pages copied", count, 500)
    assert capsys.readouterr().err == "pages copied: 500 of 500\n"


NOISY = """
import os, sys
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
os.write(2, b"I0000 00:00:1795914448.166009    3312 cudart_stub.cc:31] Could not find cuda drivers on your machine\\n")
os.write(2, b"2026-11-29 10:00:00.1: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.\\n")
print("a bar goes on", file=sys.stderr, flush=True)
os.write(2, b"E0000 00:00:1 2 gpu.cc:9] the driver is too old\\n")
"""


def test_tensorflow_is_imported_without_its_chatter(tmp_path: Path) -> None:
    """A package of that name writes what TensorFlow does; errors stay, and what Python writes is not held back."""
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text(NOISY)
    (package / "core.py").write_text("value = 1")
    program = (
        "from marcod import quiet; quiet.own_standard_error(); quiet.import_tensorflow_quietly();"
        "import tensorflow.core as c; assert c.value == 1 and c.__loader__; import os; os.write(2, b'later\\n')"
    )
    found = [str(tmp_path), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines() == ["a bar goes on", "E0000 00:00:1 2 gpu.cc:9] the driver is too old", "later"]


@pytest.mark.slow
def test_keras_leaves_nothing_in_the_home_and_matplotlib_serves_afterwards(tmp_path: Path) -> None:
    program = (
        "from marcod.settings import environment; environment.quiet_tensorflow(); import sys, keras;"
        "assert 'matplotlib' not in sys.modules;"
        "import logging, pathlib; logging.getLogger('tensorflow').warning('traced again');"
        "print(*pathlib.Path.home().rglob('*')); import matplotlib"
    )
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "KERAS_HOME"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**surroundings, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("\n", "")

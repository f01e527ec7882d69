"""A published model's files: proven whatever they come in, kept whole, and nothing else let through."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from marcod.errors import ConfigError, FetchError
from marcod.model import published
from marcod.model.published import DownloadLimits, Published, proven_files

FILES = ("saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def own_zip(wheel: Path, folder: Path) -> Path:
    """A person's own zip of the model's folder."""
    inside = unpacked(wheel, folder / "inside") / "stand_in"
    return Path(shutil.make_archive(str(folder / "mine"), "zip", inside))


GIVEN: dict[str, Callable[[Path, Path], Path]] = {
    "wheel": lambda wheel, folder: wheel,
    "zip": own_zip,
    "unpacked wheel": unpacked,
    "folder": lambda wheel, folder: unpacked(wheel, folder) / "stand_in" / "savedmodel",
}


@pytest.mark.parametrize("form", GIVEN)
def test_the_model_comes_out_of_every_form_and_nothing_else(
    form: str, model: Published, wheel: Path, tmp_path: Path
) -> None:
    given = GIVEN[form](wheel, tmp_path / "given")
    before = contents(given) if given.is_dir() else given.read_bytes()
    with proven_files(model, given, cache=tmp_path / "cache") as folder:
        found = contents(folder)
    assert tuple(found) == FILES
    assert {name: len(data) for name, data in found.items()} == {n: model.files[n].size for n in FILES}
    assert not folder.exists()
    assert (contents(given) if given.is_dir() else given.read_bytes()) == before
    assert list((tmp_path / "cache" / "published" / model.sha256).iterdir()) == []


def test_the_variable_names_a_file_to_take(
    model: Published, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCOD_PUBLISHED_WHEEL", str(wheel))
    with proven_files(model, cache=tmp_path) as folder:
        assert tuple(contents(folder)) == FILES


def _damaged(name: str) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        file = folder / "stand_in" / "savedmodel" / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        return folder

    return damage


def _short(folder: Path) -> Path:
    file = folder / "stand_in/savedmodel/saved_model.pb"
    file.write_bytes(file.read_bytes()[:-1])
    return folder


def _long(folder: Path) -> Path:
    with (folder / "stand_in/savedmodel/saved_model.pb").open("ab") as stream:
        stream.write(b"x")
    return folder


def _without(folder: Path) -> Path:
    (folder / "stand_in/savedmodel/variables/variables.index").unlink()
    return folder


def _text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no model")
    return folder / "notes.txt"


def _other_wheel(folder: Path) -> Path:
    """The right files in a wheel that was packed again."""
    return Path(shutil.make_archive(str(folder.parent / "again"), "zip", folder)).rename(folder.parent / "again.whl")


def _cut_wheel(folder: Path) -> Path:
    file = _other_wheel(folder)
    file.write_bytes(file.read_bytes()[:-100])
    return file


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_damaged("saved_model.pb"), "saved_model.pb: its SHA-256 is not "),
        (_damaged("variables/variables.data-00000-of-00001"), "variables.data-00000-of-00001: its SHA-256 is not "),
        (_short, r"saved_model.pb: it has 6,999 bytes instead of 7,000"),
        (_long, "saved_model.pb: it has more than 7,000 bytes"),
        (_without, "does not hold stand-in: it must have the files saved_model.pb, "),
        (_text, "notes.txt is not stand_in-1.0-py3-none-any.whl as it was published: it is neither a wheel nor a zip"),
        (_other_wheel, r"again.whl is not stand_in.* as it was published: it has [\d,]+ bytes instead of "),
        (_cut_wheel, r"again.whl is not stand_in.* as it was published: it has [\d,]+ bytes instead of "),
    ],
)  # fmt: skip
def test_what_was_not_published_is_refused(
    damage: Callable[[Path], Path], sentence: str, model: Published, wheel: Path, tmp_path: Path
) -> None:
    given = damage(unpacked(wheel, tmp_path / "given"))
    with pytest.raises(FetchError, match=sentence), proven_files(model, given, cache=tmp_path / "cache"):
        pytest.fail("it was let through")
    assert list((tmp_path / "cache" / "published" / model.sha256).iterdir()) == []


def test_what_is_named_must_exist(model: Published, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"there is no file or folder .*nowhere\.whl"),
        proven_files(model, tmp_path / "nowhere.whl", cache=tmp_path),
    ):
        pytest.fail("it was let through")


def test_a_cache_that_cannot_be_written_is_done_without(model: Published, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with proven_files(model, wheel, cache=tmp_path / "cache") as folder:
        assert tuple(contents(folder)) == FILES
    assert not folder.exists()


def test_what_is_kept_is_used_without_a_network(model: Published, wheel: Path, tmp_path: Path) -> None:
    room = tmp_path / "published" / model.sha256
    room.mkdir(parents=True)
    shutil.copy(wheel, room)
    with proven_files(model, cache=tmp_path, patience=DownloadLimits(tries=0)) as folder:
        assert tuple(contents(folder)) == FILES
    assert [p.name for p in room.iterdir()] == [model.file]


def test_the_catalogue_knows_the_published_marco() -> None:
    assert list(published.catalogue()) == ["marco", "efficientnet-lite0"]
    marco = published.find("marco")
    assert (marco.distribution, marco.version, marco.size) == ("dls-marco-score-ispyb", "1.0.1", 43_077_887)
    assert marco.sha256 == "4484e1ed251793d0fb1ef229630151d11baf1a90eaa72fd6dc1cc9e09097a5e8"
    weights = marco.files["variables/variables.data-00000-of-00001"]
    assert (weights.size, weights.sha256[:16]) == (45_906_344, "1cb4860c694cea1f")
    assert sorted(marco.files) == sorted(FILES)
    assert marco.classes == ("Clear", "Crystals", "Other", "Precipitate")
    assert "e0198883" in marco.citation
    with pytest.raises(ConfigError, match=r"there is no published model 'macro'; .* shows: marco, efficientnet-lite0"):
        published.find("macro")

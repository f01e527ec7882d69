"""The words people score drops with: shipped tables, a lab's own, spelling, and what is left open."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod.domain import DropClass
from marcod.errors import ConfigError, LabelError, UnmappedError
from marcod.labels import vocabularies
from marcod.labels.vocabularies import Vocabularies

CLEAR, CRYSTALS, OTHER, PRECIPITATE = DropClass

DEFAULTS: dict[str, dict[DropClass | None, list[str]]] = {
    "marco": {CLEAR: ["Clear"], CRYSTALS: ["Crystals"], OTHER: ["Other"], PRECIPITATE: ["Precipitate"], None: []},
    "hwi": {CRYSTALS: ["90"], PRECIPITATE: ["50"], CLEAR: ["10"], OTHER: ["60", "5", "0"], None: ["25"]},
    "ispyb": {CRYSTALS: list("6789"), PRECIPITATE: list("23"), CLEAR: ["0"], OTHER: list("14"), None: ["5"]},
    "pims": {CRYSTALS: list("0127"), PRECIPITATE: list("45"), CLEAR: ["8"], OTHER: ["6"], None: ["3"]},
    "sgc": {
        CRYSTALS: [str(code) for code in range(36, 46)],
        PRECIPITATE: ["11", "13", "15"],
        CLEAR: ["01"],
        OTHER: ["32"],
        None: ["16", "33", "12", "20", "21", "22", "51", "52", "53", "91"],
    },
    "ami": {CRYSTALS: ["Crystal"], PRECIPITATE: ["Precipitate"], CLEAR: ["Clear"], OTHER: ["PhaseSep", "Other"]},
}


@pytest.fixture(scope="module")
def tables() -> Vocabularies:
    return vocabularies.load()


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [(n, word, meant) for n, t in DEFAULTS.items() for meant, words in t.items() for word in words],
)
def test_the_shipped_tables(tables: Vocabularies, name: str, word: str, meant: DropClass | None) -> None:
    if meant is None:
        with pytest.raises(UnmappedError, match="left open"):
            tables.named(name).read(word)
    else:
        assert tables.named(name).read(word) is meant


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_every_shipped_word_is_meant(tables: Vocabularies, name: str) -> None:
    known = {word for words in DEFAULTS[name].values() for word in words}
    assert {entry.code for entry in tables.named(name).words} - known <= {"Unknown"}


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("marco", "  crystals ", CRYSTALS),
        ("sgc", "1", CLEAR),
        ("sgc", "036", CRYSTALS),
        ("ispyb", "9.0", CRYSTALS),
        ("ispyb", "phase  separation", OTHER),
        ("pims", "NORMAL PRECIPITATE", PRECIPITATE),
        ("hwi", "50-90-10", CRYSTALS),
        ("hwi", "10 - 5", CLEAR),
        ("rockmaker", "Precipitates", PRECIPITATE),
        ("polo", "x", CRYSTALS),
    ],
)
def test_spelling_does_not_matter(tables: Vocabularies, name: str, written: str, meant: DropClass) -> None:
    assert tables.named(name).read(written) is meant


@pytest.mark.parametrize("word", ["withdrawn", "Withdrawn "])
def test_every_vocabulary_can_take_back(tables: Vocabularies, word: str) -> None:
    assert {table.read(word) for table in tables} == {None}


TABLES = vocabularies.load()


@given(text=st.text(max_size=30))
def test_any_text_is_a_class_or_refused(text: str) -> None:
    for table in TABLES:
        with suppress(UnmappedError):
            assert table.read(text) in (*DropClass, None)


def test_a_text_too_long_is_not_a_word(tables: Vocabularies) -> None:
    with pytest.raises(LabelError, match="1000 characters"):
        tables.named("hwi").read("9" * 1001)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hwi:90", ("hwi", "90")),
        ("HWI : 90", ("hwi", " 90")),
        ("90", ("marco", "90")),
        ("our:word", ("marco", "our:word")),
        ("ispyb:a:b", ("ispyb", "a:b")),
    ],
)
def test_a_word_can_name_its_vocabulary(tables: Vocabularies, text: str, expected: tuple[str, str]) -> None:
    vocabulary, word = tables.split(text, "marco")
    assert (vocabulary.name, word) == expected


def _own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


def test_a_lab_lays_its_own_words_over(tmp_path: Path) -> None:
    own = _own(
        tmp_path,
        '[sgc.words]\n"16" = "Crystals"\n"1" = "unmapped"\n'
        '[ours]\ndescription = "Our words"\nwords.Needles = { class = "Crystals", name = "thin ones" }\n',
    )
    tables = vocabularies.load(own)
    assert tables.named("sgc").read("detergent crystals") is CRYSTALS
    assert tables.named("ours").read("needles") is tables.named("ours").read("Thin Ones") is CRYSTALS
    with pytest.raises(UnmappedError):
        tables.named("sgc").read("01")
    assert tables.named("sgc").read("11") is PRECIPITATE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[sgc.words]\n16 = 'crystal'\n", "the class is one of"),
        ("[sgc.words]\n16 = 4\n", "the class is one of"),
        ("[sgc.words]\n16 = { class = 'Clear', name = 4 }\n", "the class is one of"),
        ("[sgc]\nword = 1\n", "description, joined and words"),
        ("sgc = 1\n", "description, joined and words"),
        ("[sgc]\nwords = 1\n", "words is a table"),
        ('["S G"]\nwords = {}\n', "lower-case letters"),
        ("[sgc", "not valid TOML"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        vocabularies.load(_own(tmp_path, text))
    assert "own.toml" in str(raised.value)


def test_a_missing_file_and_an_unknown_name(tmp_path: Path, tables: Vocabularies) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        vocabularies.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="the vocabularies are hwi, ami, axis"):
        tables.named("hawaii")

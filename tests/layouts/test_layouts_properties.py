"""What holds for every image a family can name and for every text at all."""

from collections.abc import Callable
from datetime import UTC, datetime, time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marcod.domain import PLATE_FORMATS, DropImage, ImageKind, LayoutWarning, Modality, NotADrop
from marcod.layouts import NAMES, LayoutOptions, make, title, with_levels

PROFILES = {1: Modality.VISIBLE, 2: Modality.UV, 3: Modality.SHG, 5: Modality.UNKNOWN}
OPTIONS = LayoutOptions(
    plate_format=PLATE_FORMATS[384],
    profiles=PROFILES,
    pattern=r"(?P<plate>[^/]+)/(?P<inspection>[^/]+)/(?P<well>[^/]+)_(?P<drop>.)\.jpg",
)
LAYOUTS = {name: make(name, OPTIONS) for name in NAMES}

alphanumeric = st.text("ABCXYZabcxyz0123456789", min_size=4, max_size=14)
dashed = st.text("ABCXYZabcxyz0123456789- ", min_size=1, max_size=14).filter(lambda text: bool(text.strip()))
numbers = st.integers(0, 10**9 - 1)
first, last = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2000, 2100))
moments = st.integers(first, last - 1).map(lambda second: datetime.fromtimestamp(second, UTC))
days = moments.map(lambda taken: datetime.combine(taken.date(), time(), UTC))
minutes = moments.map(lambda taken: taken.replace(second=0))


def hint(profile: int) -> tuple[LayoutWarning, ...]:
    path = f"plateID_1/batchID_1/wellNum_1/profileID_{profile}/d1_r1_ef.png"
    return getattr(LAYOUTS["formulatrix"].parse(path), "warnings", ())


@st.composite
def lights(draw: st.DrawFn) -> dict[str, object]:
    """A mapped or unmapped capture profile, its modality, and the warning an unmapped UV one comes with."""
    profile = draw(st.one_of(st.sampled_from(list(PROFILES)), numbers))
    modality = PROFILES.get(profile) or draw(st.sampled_from([Modality.VISIBLE, Modality.UV]))
    guessed = profile not in PROFILES and modality is Modality.UV
    return {"profile": str(profile), "modality": modality, "warnings": hint(profile) if guessed else ()}


def drop_images(layout: str, plates: st.SearchStrategy[str], **more: object) -> st.SearchStrategy[DropImage]:
    """Images of a layout: a well of a 384-well plate, and whatever strategies or values the family adds."""
    fields = {
        "row": st.integers(1, 16),
        "column": st.integers(1, 24),
        "drop": st.integers(1, 99),
        "modality": Modality.VISIBLE,
    } | more

    @st.composite
    def build(draw: st.DrawFn) -> DropImage:
        plate = draw(plates)
        known = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in fields.items()}
        known |= known.pop("lit", {})
        derived = {name: value(known) for name, value in known.items() if callable(value)}
        barcode = {} if layout == "formulatrix" else {"barcode": plate}
        return DropImage(layout, plate, **barcode, **(known | derived))

    return build()


def from_date(shape: str) -> Callable[[dict[str, datetime]], str]:
    return lambda known: f"{known['captured_at']:{shape}}"


ordinals = {
    "inspection_ordinal": numbers,
    "inspection_key": lambda known: str(known["inspection_ordinal"]),
    "captured_at": days,
}
IMAGES = {
    "formulatrix": drop_images(
        "formulatrix",
        st.integers(0, 10**18 - 1).map(str),
        inspection_key=st.integers(0, 10**18 - 1).map(str),
        region=numbers,
        lit=lights(),
        kind=st.sampled_from([ImageKind.COMPOSITE, ImageKind.THUMBNAIL, ImageKind.SLICE, ImageKind.DROP_LOCATION]),
    ),
    "rockmaker-export": st.one_of(
        drop_images(
            "rockmaker-export",
            dashed,
            inspection_key=numbers.map(str),
            captured_at=moments,
            profile=st.sampled_from(["Visible", "HighRes", "ImagerDefaults"]),
        ),
        drop_images(
            "rockmaker-export",
            dashed,
            inspection_key=from_date("%Y-%m-%d"),
            captured_at=moments,
            profile=st.just("UV9MP"),
            modality=Modality.UV,
        ),
    ),
    "oppf": drop_images(
        "oppf",
        dashed,
        inspection_key=from_date("%Y%m%d-%H%M%S"),
        captured_at=moments,
        region=numbers,
        lit=lights(),
        kind=st.sampled_from([ImageKind.COMPOSITE, ImageKind.OVERVIEW, ImageKind.SLICE, ImageKind.DROP_LOCATION]),
    ),
    "xchem": drop_images(
        "xchem", alphanumeric, drop=st.integers(1, 9), inspection_key=from_date("%Y-%m-%d"), captured_at=days
    ),
    "crims": drop_images("crims", dashed, modality=st.sampled_from([Modality.VISIBLE, Modality.UV]), **ordinals),
    "rigaku": drop_images(
        "rigaku",
        alphanumeric.filter(lambda text: any(map(str.isdigit, text))),
        kind=st.sampled_from([ImageKind.COMPOSITE, ImageKind.THUMBNAIL]),
        profile=st.sampled_from(["HF", "00", "x9"]),
        **ordinals,
    ),
    "hwi": st.sampled_from([("", Modality.VISIBLE), ("-uvt", Modality.UV), ("-shg", Modality.SHG)]).flatmap(
        lambda run: drop_images(
            "hwi",
            st.text("XC0123456789", min_size=10, max_size=10),
            row=st.integers(1, 32),
            column=st.integers(1, 48),
            drop=1,
            modality=run[1],
            captured_at=minutes,
            inspection_key=minutes.map(lambda start: f"{start:%Y%m%d%H%M}{run[0]}"),
        )
    ),
    "rhombix": drop_images(
        "rhombix",
        dashed,
        captured_at=moments,
        inspection_key=from_date("%y%m%d"),
        profile=st.sampled_from(["BRITE", "DARK"]),
    ),
    "ami": drop_images(
        "ami",
        dashed,
        drop=st.integers(1, 3),
        captured_at=moments,
        inspection_key=from_date("%Y%m%d_%H%M%S"),
        kind=st.sampled_from([ImageKind.COMPOSITE, ImageKind.SLICE]),
    ),
}
anything = st.sampled_from(list(IMAGES)).flatmap(lambda name: IMAGES[name])


def test_every_family_but_the_users_own_is_covered() -> None:
    assert set(NAMES) == {*IMAGES, "regex"}, "give a strategy of the family's images in IMAGES"


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_title(name: str) -> None:
    assert title(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_only_families_with_levels_make_keys_of_several(name: str) -> None:
    @settings(max_examples=80, deadline=None)
    @given(IMAGES[name], st.lists(st.text("ab1", min_size=1, max_size=4), max_size=3))
    def holds(image: DropImage, above: list[str]) -> None:
        layout = LAYOUTS[name]
        seen = layout.parse("/".join([*above, layout.format(image)]), layout.sidecars([image]).get)
        assert not isinstance(seen, DropImage) or "/" not in seen.plate_key or name in with_levels()

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_parse_is_the_inverse_of_format(name: str) -> None:
    @settings(max_examples=80, deadline=None)
    @given(IMAGES[name])
    def holds(image: DropImage) -> None:
        layout = LAYOUTS[name]
        assert layout.parse(layout.format(image), layout.sidecars([image]).get) == image

    holds()


def recased(path: str, change: Callable[[str], str]) -> str:
    folders, slash, name = path.rpartition("/")
    return change(folders) + slash + name


@settings(max_examples=150, deadline=None)
@given(
    anything.filter(lambda image: image.layout not in ("ami", "rockmaker-export")),
    st.sampled_from([str.lower, str.upper, str.swapcase, str]),
    st.sampled_from(["/", "\\", "//", "\\\\", "/./"]),
    st.sampled_from(["", "/", "\\\\nas 01\\Rock Maker\\", "./", "odd \udcff bytes/"]),
)
def test_separators_parents_and_their_case_change_nothing(
    image: DropImage, change: Callable[[str], str], separator: str, front: str
) -> None:
    layout = LAYOUTS[image.layout]
    path = recased(layout.format(image), change).replace("/", separator)
    assert layout.parse(front + path) == image


@settings(max_examples=150, deadline=None)
@given(anything)
def test_no_other_family_claims_a_familys_path(image: DropImage) -> None:
    own = LAYOUTS[image.layout]
    path, beside = own.format(image), own.sidecars([image])
    claims = [
        name
        for name, layout in LAYOUTS.items()
        if name != "regex" and isinstance(layout.parse(path, beside.get), DropImage)
    ]
    assert claims == [image.layout]


FRAGMENTS = """
plateID_1 batchID_2 wellNum_3 profileID_4 d1_r2_ef X000005127 0868 200506241635 -jpg
RMM3_01_222_R_T_C_CI_0000CI022987_003_121121 _01_02_03 _HF_99_030_001_RDI FORMULATRIX_CD1_6 _08-09-2021 _00_99_Vis
90j8_2018-04-11_RI1000-0081-2drop 90j8_01A_1 44131-A01-2-R0DRP1-EF -z20 -20100316 -083621
90j8_D12_Visible_9_3552 TG_A01-1_BRITE _110629 _200901 _1 20240131_093000 A1a rawimages
/ \\ .. . ~ _thumb .jpg .png .xml 0
""".split()  # noqa: SIM905 - one fragment a line would hide the families
texts = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14).map("".join),
    st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape") + ".jpg"),
)


@settings(max_examples=300, deadline=None)
@given(texts, st.one_of(st.none(), st.binary(max_size=60)))
def test_no_text_makes_any_family_raise(path: str, companion: bytes | None) -> None:
    for layout in LAYOUTS.values():
        verdict = layout.parse(path, lambda _: companion)
        assert isinstance(verdict, DropImage | NotADrop)
        assert verdict.layout == layout.name
        if isinstance(verdict, DropImage):
            assert f"{verdict.plate_key}{verdict.inspection_key}{''.join(map(str, verdict.warnings))}".isprintable()
            assert verdict.captured_at is None or verdict.captured_at.tzinfo is not None
            assert min(verdict.row, verdict.column, verdict.drop) >= 1
        else:
            assert verdict.detail.isprintable()


@settings(max_examples=150, deadline=None)
@given(anything, st.data())
def test_a_damaged_name_never_raises(image: DropImage, data: st.DataObject) -> None:
    layout = LAYOUTS[image.layout]
    path = layout.format(image)
    at = data.draw(st.integers(0, len(path)))
    damaged = path[:at] + data.draw(st.text(st.characters(codec=None), max_size=2)) + path[at + 1 :]
    assert isinstance(layout.parse(damaged, layout.sidecars([image]).get), DropImage | NotADrop)

"""Synthetic drops: the truth they claim is the truth they show, and every layout can carry them."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marcod import layouts
from marcod.domain import CLASSES, PLATE_FORMATS, DropClass, DropImage, ImageKind, Modality, NotADrop, PlateFormat
from marcod.synthetic import (
    ImagerStyle,
    PlateSpec,
    another_imager,
    at_age,
    drop_history,
    drop_jpeg,
    first_hit,
    plate_files,
    random_scene,
    render,
    scene_label,
    write_file,
)
from marcod.synthetic.scene import Camera, Crystals, Debris, Growth, Habit, Scene

SMALL = (132, 108)
DATES = tuple(datetime(2026, 3, 1, 9, 30, tzinfo=UTC) + timedelta(days=day) for day in (0, 1, 4, 9, 21))
PLATES = {
    "formulatrix": ("10380", ImagerStyle.FORMULATRIX),
    "rockmaker-export": ("90j8", ImagerStyle.FORMULATRIX),
    "oppf": ("441312000010", ImagerStyle.FORMULATRIX),
    "xchem": ("90j8", ImagerStyle.FORMULATRIX),
    "crims": ("CD044931", ImagerStyle.FORMULATRIX),
    "rigaku": ("CI022987", ImagerStyle.RIGAKU),
    "hwi": ("X000012345", ImagerStyle.HWI),
    "rhombix": ("TG-CQ-20", ImagerStyle.FORMULATRIX),
    "ami": ("plate7", ImagerStyle.FORMULATRIX),
}


def spec_for(name: str, **changes: object) -> PlateSpec:
    key, imager = PLATES[name]
    wells = PLATE_FORMATS[1536] if name == "hwi" else PLATE_FORMATS[96]
    spec = PlateSpec(imager, key, DATES[:3], wells, filled=6 / wells.wells, hit_rate=0.5, seed=3)
    return replace(spec, **changes)


@pytest.mark.parametrize("imager", ImagerStyle)
@pytest.mark.parametrize("label", CLASSES)
def test_a_scene_is_what_was_asked_for_and_its_image_is_not_blank(label: DropClass, imager: ImagerStyle) -> None:
    for seed in range(4):
        scene = random_scene(seed, label, imager)
        image = render(scene, SMALL)
        assert scene_label(scene) is label
        assert scene.imager is imager
        assert image.shape == (SMALL[1], SMALL[0], 3)
        assert image.dtype == np.uint8
        assert np.unique(image).size > 20


def test_seeds_decide_everything() -> None:
    first, again, other = (render(random_scene(seed), SMALL) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.slow
def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "from hashlib import sha256; from marcod.synthetic import random_scene, render;"
        f"print(sha256(b''.join(render(random_scene(s), {SMALL}).tobytes() for s in range(6))).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = sha256(b"".join(render(random_scene(seed), SMALL).tobytes() for seed in range(6))).hexdigest()
    assert printed.strip() == here


@pytest.mark.parametrize("imager", ImagerStyle)
def test_geometry_does_not_depend_on_the_resolution(imager: ImagerStyle) -> None:
    scene = random_scene(5, DropClass.CLEAR, imager)
    scene = replace(scene, camera=replace(scene.camera, noise=0.0, defocus=0.0, jpeg_quality=None))
    small = render(scene, (132, 108)).astype(float)
    large = np.asarray(Image.fromarray(render(scene, (528, 432))).reduce(4)).astype(float)
    assert np.abs(small - large).mean() < 4


def test_when_nothing_is_asked_for_all_classes_and_imagers_come() -> None:
    scenes = [random_scene(seed) for seed in range(120)]
    assert {scene_label(scene) for scene in scenes} == set(DropClass)
    assert {scene.imager for scene in scenes} == set(ImagerStyle)


@pytest.mark.slow
def test_crystals_and_precipitate_have_more_edges_than_clear_drops() -> None:
    energy = {label: np.mean([edges(label, seed) for seed in range(14)]) for label in CLASSES}
    assert energy[DropClass.CRYSTALS] > 1.15 * energy[DropClass.CLEAR]
    assert energy[DropClass.PRECIPITATE] > 1.15 * energy[DropClass.CLEAR]


def edges(label: DropClass, seed: int) -> float:
    """Mean slope of the image without the camera's own noise."""
    scene = random_scene(seed, label, ImagerStyle.HWI)
    scene = replace(scene, camera=replace(scene.camera, noise=0.0, defocus=0.0, jpeg_quality=None))
    grey = render(scene, (220, 180)).mean(axis=2)
    down, right = np.gradient(grey)
    return float(np.hypot(down, right).mean())


@pytest.mark.parametrize("imager", ImagerStyle)
def test_growing_crystals_change_the_drop_and_nothing_else(imager: ImagerStyle) -> None:
    scene = clean(random_scene(11, DropClass.CRYSTALS, imager))
    before, after = at_age(scene, 0.0), at_age(scene, 30.0)
    assert scene_label(before) is DropClass.CLEAR
    assert scene_label(after) is DropClass.CRYSTALS
    assert before.drop == after.drop
    assert before.well == after.well
    changed = (render(before, SMALL) != render(after, SMALL)).any(axis=2)
    assert 0 < changed.mean() < 0.5


def clean(scene: Scene) -> Scene:
    """The crystals of a scene alone in their drop, seen by a perfect camera."""
    return replace(scene, camera=Camera(noise=0.0, vignette=0.0), precipitate=(), film=None)


@pytest.mark.slow
@pytest.mark.parametrize("imager", ImagerStyle)
def test_the_largest_crystal_is_in_sight_in_every_framing(imager: ImagerStyle) -> None:
    for seed in range(12):
        scene = clean(random_scene(seed, DropClass.CRYSTALS, imager))
        with_crystals, without = (render(s, (165, 135)).astype(int) for s in (scene, replace(scene, crystals=())))
        darker = (without - with_crystals).max(axis=2)
        assert (darker > 0.12 * without.max()).sum() >= 2, seed


@pytest.mark.parametrize("habit", [Habit.PLATE, Habit.CUBE])
def test_a_crystal_is_clear_inside_a_dark_rim_with_a_bright_line(habit: Habit) -> None:
    scene = clean(random_scene(3, DropClass.CLEAR, ImagerStyle.CLOSE_UP))
    assert scene.drop is not None
    drop = replace(scene.drop, radius=1.0, centre=(0.0, 0.0), lens=0.0, tilt=0.0, haze=0.0, arcs=())
    crystal = Crystals(habit, 1, 0.5, (0, 0), 0.0, 0.9, 0.8, 0.06, 5.0, 0.0, (0.0, 0.0, 0.0), Growth(0.0, 0.01), seed=0)
    scene = replace(scene, drop=drop, debris=Debris(), well=replace(scene.well, colour=(140,) * 3, polariser=0.0))
    gain = render(replace(scene, crystals=(crystal,)), SMALL)[..., 1] / render(scene, SMALL)[..., 1].astype(float)
    inside = gain[46:62, 58:74]
    assert gain.min() < 0.45
    assert gain.max() > 1.04
    assert np.median(inside) > 0.75


@pytest.mark.slow
def test_nothing_but_its_contents_tells_the_class_of_a_drop() -> None:
    """Well, drop, dust, light, camera, size and compression are drawn before the class is looked at."""
    for seed in range(60):
        clear, *others = (random_scene(seed, label) for label in CLASSES)
        for scene in others:
            assert scene.imager is clear.imager
            assert scene.well == clear.well
            if scene_label(scene) is DropClass.OTHER and (scene.camera.failed or scene.drop is None):
                continue
            assert scene.drop == clear.drop
            assert scene.camera == clear.camera
            assert replace(scene.debris, bubbles=0) == replace(clear.debris, bubbles=0)
        sizes = {Image.open(BytesIO(drop_jpeg(seed, label)[0])).size for label in CLASSES} if seed < 5 else {0}
        assert len(sizes) == 1


@pytest.mark.parametrize("label", CLASSES)
def test_a_drop_is_drawn_at_every_age_from_before_anything_grew(label: DropClass) -> None:
    for seed in range(24):
        scene = random_scene(seed, label)
        for age_d in (-2.0, 0.0, 0.02, 60.0, 900.0):
            assert render(at_age(scene, age_d), (60, 48)).shape == (48, 60, 3)


@pytest.mark.slow
def test_every_look_of_a_photograph_comes() -> None:
    scenes = [random_scene(seed, DropClass.CRYSTALS) for seed in range(300)]
    counts = [sum(group.count for group in scene.crystals) for scene in scenes]
    assert {group.habit for scene in scenes for group in scene.crystals} == set(Habit)
    assert min(counts) == 1
    assert np.mean(np.array(counts) >= 20) > 0.2
    assert any(scene.film for scene in scenes)
    assert any(scene.camera.grey for scene in scenes)
    assert any(scene.camera.rows for scene in scenes)
    assert any(scene.debris.bubbles or scene.debris.fibres for scene in scenes)


@pytest.mark.slow
def test_truth_never_goes_back_where_nothing_dissolves() -> None:
    spec = PlateSpec(ImagerStyle.FORMULATRIX, "1", DATES, hit_rate=0.6, seed=1)
    hits = dissolved = 0
    for row, column in spec.positions():
        history = drop_history(spec, row, column, 1)
        labels = [scene_label(scene) for scene in history]
        hit = first_hit(spec, row, column, 1)
        dissolving = any(group.growth.dissolve_d is not None for scene in history for group in scene.crystals)
        dissolved += dissolving
        if hit is None:
            assert DropClass.CRYSTALS not in labels
            continue
        hits += 1
        assert labels[hit] is DropClass.CRYSTALS
        assert DropClass.CRYSTALS not in labels[:hit]
        assert dissolving or set(labels[hit:]) == {DropClass.CRYSTALS}
    assert hits > 20
    assert dissolved > 0


def test_a_drop_keeps_its_well_outline_and_debris_over_the_inspections() -> None:
    spec = PlateSpec(ImagerStyle.RIGAKU, "CI022987", DATES, drops=(1, 3, 4))
    for drop in spec.drops:
        history = drop_history(spec, 2, 5, drop)
        assert len({(scene.well, scene.drop, scene.debris, scene.imager) for scene in history}) == 1
        assert len({scene.camera for scene in history}) == len(DATES)
        assert [scene.age_d for scene in history] == [0, 1, 4, 9, 21]
    assert len({drop_history(spec, 2, 5, drop)[0].well.variant for drop in spec.drops}) == 3


@pytest.mark.parametrize("name", PLATES)
def test_every_layout_reads_its_own_plates_back(name: str) -> None:
    spec = spec_for(name, drops=(1,) if name == "hwi" else (1, 3))
    layout = layouts.make(name)
    planned = list(plate_files(spec, layout))
    told = {file.path: file.content for file in planned if file.content is not None}
    seen: dict[tuple[str, Modality, ImageKind], set[tuple[int, int, int]]] = {}
    for file in planned:
        if file.image is None:
            assert isinstance(layout.parse(file.path, told.get), NotADrop)
            continue
        read = layout.parse(file.path, told.get)
        assert isinstance(read, DropImage), read
        assert (read.row, read.column, read.drop) == (file.image.row, file.image.column, file.image.drop)
        assert (read.plate_key, read.inspection_key) == (spec.plate_key, file.image.inspection_key)
        assert (read.kind, read.modality) == (file.kind, file.image.modality)
        assert not read.warnings
        seen.setdefault((read.inspection_key, read.modality, read.kind), set()).add((read.row, read.column, read.drop))
    drops = 1 if name in ("hwi", "rockmaker-export") else 2
    composites = {key: where for key, where in seen.items() if key[1:] == (Modality.VISIBLE, ImageKind.COMPOSITE)}
    assert len(composites) == len(spec.inspections)
    assert {len(where) for where in composites.values()} == {6 * drops}


def test_vendors_write_their_companions() -> None:
    def kinds(name: str) -> list[str]:
        return [Path(file.path).name for file in plate_files(spec_for(name), layouts.make(name))]

    assert sum("_th." in name for name in kinds("formulatrix")) == 18
    assert sum(name.endswith(".xml") for name in kinds("oppf")) == 18
    assert sum(name.endswith("_UV.jpg") for name in kinds("crims")) == 18
    assert kinds("rockmaker-export").count("report.csv") == 3
    assert all(name.endswith(".jpg") for name in kinds("xchem"))


@pytest.mark.parametrize("name", ["formulatrix", "oppf", "crims"])
def test_written_files_are_images_of_the_size_asked_for(name: str, tmp_path: Path) -> None:
    spec = spec_for(name, inspections=DATES[:1], wells=PlateFormat(8, 12), filled=1 / 96)
    for planned in plate_files(spec, layouts.make(name)):
        target = write_file(tmp_path, planned, (200, 160))
        assert target == tmp_path / planned.path
        if planned.kind is None:
            assert target.read_bytes() == planned.content
        else:
            with Image.open(target) as image:
                assert image.size == ((50, 40) if planned.kind is ImageKind.THUMBNAIL else (200, 160))
                image.load()


def test_under_uv_the_crystals_glow() -> None:
    scene = replace(random_scene(2, DropClass.CRYSTALS, ImagerStyle.FORMULATRIX), modality=Modality.UV, precipitate=())
    bright, dark = render(at_age(scene, 30.0), SMALL), render(at_age(scene, 0.0), SMALL)
    assert bright.max() > 2 * dark.max()
    assert bright[..., 2].mean() > bright[..., 0].mean()


def test_an_export_starts_with_the_first_inspection_and_dates_run_on() -> None:
    planned = list(plate_files(spec_for("rigaku"), layouts.make("rigaku")))
    times = [file.captured_at for file in planned]
    assert times == sorted(times)
    assert times[0] == DATES[0]
    assert planned == list(plate_files(spec_for("rigaku"), layouts.make("rigaku")))


def test_another_imager_shows_the_same_drop_in_another_light() -> None:
    colours, edges_lost = [], 0
    for seed in range(6):
        scene = random_scene(seed, CLASSES[seed % 4])
        shifted = another_imager(scene)
        assert scene_label(shifted) is scene_label(scene)
        assert (shifted.drop, shifted.crystals, shifted.precipitate) == (scene.drop, scene.crystals, scene.precipitate)
        assert shifted == another_imager(scene)
        before, after = render(scene, SMALL), render(shifted, SMALL)
        colours.append(after.mean(axis=(0, 1)) / before.mean(axis=(0, 1)))
        edges_lost += shifted.camera.defocus > scene.camera.defocus
    red, green, blue = np.mean(colours, axis=0)
    assert red < 0.75 * green < green < blue < 1.1
    assert edges_lost == 6


@pytest.mark.slow
def test_a_drop_as_an_imager_writes_it_comes_from_its_seed() -> None:
    assert drop_jpeg(7) == drop_jpeg(7)
    assert drop_jpeg(7)[0] != drop_jpeg(8)[0]
    data, label = drop_jpeg(4, DropClass.OTHER)
    assert label is DropClass.OTHER
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (660, 540))

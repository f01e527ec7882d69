"""Pixels of a scene: light through the well, bent by the drop, taken by its contents, seen by a camera."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from marcod.domain import Modality
from marcod.synthetic.contents import film_gain, precipitate_gain
from marcod.synthetic.crystals import draw_crystals
from marcod.synthetic.debris import draw_debris, draw_oil, draw_satellites
from marcod.synthetic.fields import Light, Pixels, Plane, coloured, plane, rng_of
from marcod.synthetic.lens import footprint, lens_gain
from marcod.synthetic.scene import Scene
from marcod.synthetic.strokes import Layer
from marcod.synthetic.wells import backdrop


def render(scene: Scene, size: tuple[int, int] = (330, 270)) -> Pixels:
    """Render a scene as uint8 [height, width, 3] for ``size`` (width, height).

    The same scene and size give the same bytes in every process; another size shows the same geometry.
    """
    rows = scene.camera.rows
    if rows is not None and rows < size[1]:
        small = replace(scene, camera=replace(scene.camera, rows=None))
        thumbnail = Image.fromarray(render(small, (max(1, round(size[0] * rows / size[1])), rows)))
        return np.asarray(thumbnail.resize(size, Image.Resampling.BICUBIC))
    view = plane(size, scene.camera.shift)
    light = _fluorescence(scene, view) if scene.modality is Modality.UV else _transmission(scene, view)
    return _photograph(scene, view, light)


def _transmission(scene: Scene, view: Plane) -> Light:
    ground = backdrop(scene, view)
    through = ground.floor
    if scene.drop is not None:
        through = through * _drop_gain(scene, view)
    marks = _marks(scene, view)
    if marks is not None:
        through = through * marks
    return ground.wall + (through - ground.wall) * ground.open


def _drop_gain(scene: Scene, view: Plane) -> Light:
    drop = scene.drop
    assert drop is not None
    shape = footprint(drop, view)
    gain = lens_gain(drop, shape, view)[None]
    for part in scene.precipitate:
        amount = part.amount_at(scene.age_d)
        if amount > 0.01:
            gain = gain * precipitate_gain(part, amount, shape, view, drop.light)
    if scene.film is not None:
        gain = gain * film_gain(scene.film, scene.film.growth.fraction(scene.age_d), shape, view, drop.light)
    return gain


def _marks(scene: Scene, view: Plane) -> Light | None:
    layer = Layer(view)
    draw_debris(layer, scene.debris, scene.drop, scene.well)
    if scene.drop is not None:
        draw_satellites(layer, scene.drop)
        if scene.oil is not None:
            draw_oil(layer, scene.oil, scene.drop, scene.oil.growth.fraction(scene.age_d))
        for group in scene.crystals:
            draw_crystals(layer, group, scene.drop, scene.well, scene.age_d)
    return layer.gain()


def _fluorescence(scene: Scene, view: Plane) -> Light:
    """Under UV only protein glows: crystals brightly, precipitate and the drop faintly."""
    glow = np.zeros(view.shape, dtype=np.float32)
    if scene.drop is not None:
        shape = footprint(scene.drop, view)
        amount = sum(part.amount_at(scene.age_d) for part in scene.precipitate)
        glow += shape.inside * np.float32(0.05 + 0.25 * min(amount, 1.0))
        layer = Layer(view)
        for group in scene.crystals:
            draw_crystals(layer, group, scene.drop, scene.well, scene.age_d)
        marks = layer.gain()
        if marks is not None:
            glow += np.minimum(np.abs(marks - 1.0).mean(axis=0) * 3.0, 0.9)
    return 8.0 + coloured((70.0, 90.0, 235.0), glow)


def _photograph(scene: Scene, view: Plane, light: Light) -> Pixels:
    camera = scene.camera
    if camera.grey:
        light = np.broadcast_to(light.mean(axis=0, keepdims=True), light.shape)
    corner = (view.x * view.x + view.y * view.y) * np.float32(camera.vignette)
    seen = _blurred(light * (np.float32(camera.exposure) * (1.0 - corner)), camera.defocus * view.scale)
    # Sensor noise, shared by the colours as after a Bayer filter.
    grain = rng_of(scene.seed, 11, camera.shot).standard_normal(view.shape, dtype=np.float32)
    noisy = seen + (grain * np.float32(camera.noise) + 0.5)
    pixels = np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    return pixels if camera.jpeg_quality is None else _through_jpeg(pixels, camera.jpeg_quality)


def _blurred(light: Light, radius: float) -> Light:
    """Gaussian blur of ``radius`` pixels; a three-point kernel has the right width below one pixel."""
    if radius < 0.2:
        return light
    if radius < 0.8:
        side = np.float32(radius * radius / 2)
        light = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
        light = light[:, 1:-1] * (1 - 2 * side) + (light[:, :-2] + light[:, 2:]) * side
        return light[:, :, 1:-1] * (1 - 2 * side) + (light[:, :, :-2] + light[:, :, 2:]) * side
    image = Image.fromarray(np.ascontiguousarray(np.clip(light, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1).astype(np.float32)


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))

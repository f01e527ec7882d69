"""From a scene to pixels: light through the well, bent by the drop, taken by its contents, seen by a camera."""

import io

import numpy as np
from PIL import Image, ImageFilter

from marcod.domain import Modality
from marcod.synthetic.contents import film_gain, precipitate_gain
from marcod.synthetic.crystals import draw_crystals
from marcod.synthetic.debris import draw_debris, draw_oil
from marcod.synthetic.fields import Light, Pixels, Plane, coloured, plane, rng_of
from marcod.synthetic.lens import Footprint, footprint, lens_gain, satellites
from marcod.synthetic.scene import Scene
from marcod.synthetic.strokes import Layer
from marcod.synthetic.wells import backdrop


def render(scene: Scene, size: tuple[int, int] = (330, 270)) -> Pixels:
    """The picture of a scene, uint8 [height, width, 3] for ``size`` (width, height).

    The same scene and size give the same bytes in every process; another size shows the same geometry.
    """
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
    for small in satellites(drop):
        gain = gain * lens_gain(small, footprint(small, view), view)
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
        if scene.oil is not None:
            draw_oil(layer, scene.oil, scene.drop, scene.oil.growth.fraction(scene.age_d))
        for group in scene.crystals:
            draw_crystals(layer, group, scene.drop, scene.age_d)
    return layer.gain()


def _fluorescence(scene: Scene, view: Plane) -> Light:
    """Under UV only protein glows: crystals brightly, precipitate and the drop faintly."""
    glow = np.zeros(view.shape, dtype=np.float32)
    if scene.drop is not None:
        shape: Footprint = footprint(scene.drop, view)
        amount = sum(part.amount_at(scene.age_d) for part in scene.precipitate)
        glow += shape.inside * np.float32(0.05 + 0.25 * min(amount, 1.0))
        layer = Layer(view)
        for group in scene.crystals:
            draw_crystals(layer, group, scene.drop, scene.age_d)
        marks = layer.gain()
        if marks is not None:
            glow += np.minimum(np.abs(marks - 1.0).mean(axis=0) * 3.0, 0.9)
    return 8.0 + coloured((70.0, 90.0, 235.0), glow)


def _photograph(scene: Scene, view: Plane, light: Light) -> Pixels:
    camera = scene.camera
    corner = (view.x * view.x + view.y * view.y) * np.float32(camera.vignette)
    seen = light * (np.float32(camera.exposure) * (1.0 - corner))
    image = Image.fromarray(np.ascontiguousarray(np.clip(seen, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    blur = camera.defocus * view.scale
    if blur > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = _with_noise(np.asarray(image), camera.noise, rng_of(scene.seed, 11, camera.shot))
    return pixels if camera.jpeg_quality is None else _through_jpeg(pixels, camera.jpeg_quality)


def _with_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Sensor noise, mostly shared by the colours as after a Bayer filter."""
    grey = rng.standard_normal(pixels.shape[:2], dtype=np.float32) * np.float32(deviation)
    noisy = pixels.astype(np.float32) + (grey + 0.5)[..., None]
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))

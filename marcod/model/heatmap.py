"""Heat map of the pixels that move a class's score.

The method is SmoothGrad (Smilkov et al., arXiv 1706.03825), which the MARCO paper used: the mean gradient of the score
over noisy copies of the image. The score is the class's logit, not its probability: where a network is confident the
softmax is flat and its gradient vanishes. Where several of a model's own classes fold into one of the four, it is the
log-sum-exp of their logits, which is that one class's logit up to a term that all classes share. The sign is dropped
and colour channels are summed, as the authors do for colour images. Heat shows what matters to the score, for or
against it, and not that something is a crystal.

Guarantees:

* The same image, model and recipe give the same bytes on the same machine.
* Memory is bounded by one batch.
* Of a network that looks at whole images, the square is explained that gave the crystal probability.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from marcod import images
from marcod.domain import CLASSES, CRYSTALS, DropClass
from marcod.errors import BundleError
from marcod.model import bundle, families, network, preprocess, probabilities, squares
from marcod.model.bundle import BundleRecord, folding
from marcod.model.committee import Member

BATCH_PIXELS: Final = 1_500_000
"""Pixels of one batch, four images of 599; the gradients of the published network then take 0.4 GB on a CPU."""

LARGEST_BATCH: Final = 16
PERCENTILE: Final = 99.0
"""The share of pixels, in percent, below full heat, as in the authors' own images."""

BLUR: Final = 0.01
"""Standard deviation of the smoothing for the eye, as a share of the side; 6 pixels of 599."""


@dataclass(frozen=True, slots=True)
class SmoothGradNoise:
    """Noise of SmoothGrad: ``samples`` copies with ``noise`` times the image's range, drawn from ``seed``."""

    samples: int = 32
    noise: float = 0.15
    seed: int = 0


_USUAL: Final = SmoothGradNoise()


@dataclass(frozen=True, slots=True)
class Heat:
    """Heat map: ``values``, float32 [size, size] from 0 to 1 over one square of the image; four ``probabilities``.

    ``square`` is its number and how many squares there are; by default it is the central one. None is of a committee
    whose members look at different squares: there the values are float32 [height, width] over the whole image.
    """

    values: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    square: tuple[int, int] | None = (0, 1)

    def seen(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the view of an image uint8 [height, width, 3] that the values are of."""
        if self.square is None:
            return rgb
        (height, width), (number, count) = rgb.shape[:2], self.square
        return squares.places(height, width, count)[number].of(rgb)


class Attribution(Protocol):
    """Heat maps of one model."""

    def explain(
        self,
        data: bytes,
        target: DropClass,
        recipe: SmoothGradNoise = _USUAL,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Heat:
        """Compute the heat for ``target`` in an image file, decoded as in scoring; call ``progress`` with copies done.

        Raises ImageError, and BundleError when none of the model's own classes counts as ``target``.
        """


def attribution(folder: Path, member_folder: Callable[[BundleRecord, Member], Path]) -> Attribution:
    """Load the weights in a bundle's folder, or of a committee those of its members. Raises BundleError."""
    record = bundle.read(folder)
    if record.committee is None:
        return NetworkAttribution(*bundle.load_weights(folder))
    folders = [member_folder(record, member) for member in record.committee.members]
    return CommitteeAttribution(record, [NetworkAttribution(*bundle.load_weights(member)) for member in folders])


class CommitteeAttribution:
    """Heat maps of a committee: the sum of its members', each of which is scaled by itself, by their weights."""

    def __init__(self, record: BundleRecord, members: "Sequence[NetworkAttribution]") -> None:
        self.record, self._members = record, members

    def explain(
        self,
        data: bytes,
        target: DropClass,
        recipe: SmoothGradNoise = _USUAL,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Heat:
        """Compute the heat as :class:`Attribution` says; its size is that of the member that sees most pixels."""
        rule = self.record.committee
        assert rule is not None

        def of_member(number: int) -> Heat:
            before, parts = number * recipe.samples, len(self._members)
            return self._members[number].explain(data, target, recipe, lambda done: progress((before + done) // parts))

        heats = [of_member(number) for number in range(len(self._members))]
        square, laid = _together(heats, data)
        total = sum(share * values for share, values in zip(rule.shares, laid, strict=True))
        logits = rule.logits(np.stack([heat.probabilities for heat in heats])[np.newaxis])
        return Heat(_scaled(np.asarray(total)), probabilities.softmax(logits / self.record.temperature)[0], square)


def _together(heats: Sequence[Heat], data: bytes) -> tuple[tuple[int, int] | None, list[NDArray[np.float32]]]:
    """Bring the members' values to one size: over the square that all look at, else over the whole image."""
    side = max(len(heat.values) for heat in heats)
    if len({heat.square for heat in heats}) == 1:
        return heats[0].square, [_resized(heat.values, side) for heat in heats]
    header = images.inspect(data)
    scale = side / min(header.width, header.height)
    shape = round(header.height * scale), round(header.width * scale)
    return None, [_over_whole(heat, *shape) for heat in heats]


def _over_whole(heat: Heat, height: int, width: int) -> NDArray[np.float32]:
    """Lay a member's values at their place in a whole image, and none around them."""
    whole = np.zeros((height, width), np.float32)
    number, count = heat.square or (0, 1)
    top, left, side = squares.places(height, width, count)[number]
    whole[top : top + side, left : left + side] = _resized(heat.values, side)
    return whole


class NetworkAttribution:
    """Heat maps of one network. One object compiles once, at the first :meth:`explain`."""

    def __init__(
        self, record: BundleRecord, weights: Mapping[str, NDArray[np.float32]], batch_size: int | None = None
    ) -> None:
        architecture = families.architecture(record.architecture)
        self.record, self._folding = record, folding(record)
        self._crystals = self._folding[:, CRYSTALS] > 0
        self.batch_size = batch_size or min(LARGEST_BATCH, max(1, BATCH_PIXELS // architecture.input_size**2))
        self._preprocessing = preprocess.Preprocessing.from_dict(record.preprocessing)
        self._gradient = network.saliency(architecture, weights, record.temperature)

    def explain(
        self,
        data: bytes,
        target: DropClass,
        recipe: SmoothGradNoise = _USUAL,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Heat:
        """Compute the heat as :class:`Attribution` says."""
        members = self._folding[:, CLASSES.index(target)] > 0
        if not members.any():
            own = ", ".join(self.record.classes)
            raise BundleError(f"no class of {self.record.name} counts as {target.value}; its classes are {own}")
        clean = self._read(data)
        parts = [clean[start : start + self.batch_size] for start in range(0, len(clean), self.batch_size)]
        logits = np.concatenate([self._slopes(part, members)[0] for part in parts])
        number = squares.best(logits, self._crystals)
        total = np.zeros(clean.shape[1:], np.float64)
        for start in range(0, recipe.samples, self.batch_size):
            numbers = range(start, min(start + self.batch_size, recipe.samples))
            _, slopes = self._slopes([_copy(clean[number], recipe, each) for each in numbers], members)
            total += slopes.sum(axis=0, dtype=np.float64)
            progress(numbers.stop)
        strength = np.abs(total / recipe.samples).sum(axis=2)
        score = squares.combined(logits, self._crystals)[np.newaxis]
        own = probabilities.softmax(score / self.record.temperature)[0]
        return Heat(_normalized(strength), own @ self._folding, (number, len(clean)))

    def _read(self, data: bytes) -> NDArray[np.float32]:
        """Decode and prepare the squares that are looked at, float32 [squares, size, size, 3]."""
        with preprocess.decoded(data, self._preprocessing) as rgb:
            if self._preprocessing.coverage == "whole":
                return preprocess.prepare_whole(rgb, self._preprocessing)
            return preprocess.prepare(rgb, self._preprocessing)[np.newaxis]

    def _slopes(
        self, pixels: Sequence[NDArray[np.float32]] | NDArray[np.float32], members: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and slopes of up to one batch of prepared squares."""
        batch = np.zeros((self.batch_size, *pixels[0].shape), np.float32)
        batch[: len(pixels)] = pixels
        logits, slopes = self._gradient(batch, members)
        return logits[: len(pixels)], slopes[: len(pixels)]


def _copy(clean: NDArray[np.float32], recipe: SmoothGradNoise, number: int) -> NDArray[np.float32]:
    """Make noisy copy ``number``, each from a seed of its own, whatever the batches are."""
    draw = np.random.default_rng((recipe.seed, number)).standard_normal(clean.shape, np.float32)
    return clean + draw * np.float32(recipe.noise * np.ptp(clean))


def _normalized(strength: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smooth for the eye, then scale to 0..1 with full heat at :data:`PERCENTILE`; all 0 where nothing matters."""
    side = len(strength)
    distance = np.subtract.outer(np.arange(side), np.arange(side)) / max(1.0, BLUR * side)
    blur = np.exp(-(distance**2) / 2)
    blur /= blur.sum(axis=1, keepdims=True)
    smooth = blur @ strength @ blur.T
    return _scaled(smooth)


def _scaled(heat: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    top = np.percentile(heat, PERCENTILE)
    return np.clip(heat / top if top > 0 else np.zeros_like(heat), 0, 1).astype(np.float32)


def _resized(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BILINEAR))


_PAPER, _INK, _FAINT, _WARNING = (18, 18, 22), (238, 238, 238), (160, 160, 168), (255, 196, 0)
_COLOURS: Final = np.array([(48, 8, 96), (150, 20, 110), (230, 70, 50), (255, 160, 20), (255, 250, 150)], np.float64)
"""From the least heat to the most; lightness rises all the way, so that it also reads in print."""


def draw(
    rgb: NDArray[np.uint8], heat: Heat, caption: Sequence[str], *, notice: str = "", text: Mapping[str, str]
) -> bytes:
    """Draw a PNG: the heat over an image uint8 [height, width, 3], above a strip of text.

    The square of the score is grey. Around the central one nothing is drawn. The first line of ``caption`` is the
    title; ``notice`` is drawn as a warning; ``text`` goes into the file's text chunks. The file has no time, so the
    same arguments give the same bytes.
    """
    whole = heat.square != (0, 1)
    image = Image.fromarray(over(rgb, heat) if whole else _overlay(heat.seen(rgb), heat.values))
    strip = _strip(image.width, caption, notice)
    sheet = Image.new("RGB", (image.width, image.height + strip.height))
    sheet.paste(image, (0, 0))
    sheet.paste(strip, (0, image.height))
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def over(rgb: NDArray[np.uint8], heat: Heat) -> NDArray[np.uint8]:
    """Lay the heat at its place over an image uint8 [height, width, 3], grey there; around it the image stays."""
    drawn = rgb.copy()
    seen = heat.seen(drawn)
    seen[:] = _overlay(seen, heat.values)
    return drawn


def _overlay(seen: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.asarray(Image.fromarray(seen).convert("L"), np.float32)[:, :, np.newaxis]
    resized = Image.fromarray(values).resize(seen.shape[1::-1], Image.Resampling.BILINEAR)
    return _heated(grey, np.asarray(resized))


def _heated(grey: NDArray[np.float32], values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Colour heat [h, w] from 0 to 1 over grey [h, w, 1]; low heat covers little, so that the drop stays visible."""
    shades, steps = np.linspace(0, 1, 256), np.linspace(0, 1, len(_COLOURS))
    opacity = 0.75 * shades[:, np.newaxis] ** 2
    colours = np.stack([np.interp(shades, steps, channel) for channel in _COLOURS.T], axis=-1)
    index = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    painted = grey * (1 - opacity).astype(np.float32)[index] + (colours * opacity).astype(np.float32)[index]
    return np.asarray(np.rint(painted), np.uint8)


def _strip(width: int, caption: Sequence[str], notice: str) -> Image.Image:
    size = max(11, width // 46)
    margin, step = size * 2 // 3, size * 3 // 2
    title, font = ImageFont.load_default(size * 5 / 4), ImageFont.load_default(size)
    rows = [(title, _INK, row) for row in _wrapped(caption[0], title, width - 2 * margin)]
    for colour, line in [*((_FAINT, line) for line in caption[1:]), *((_WARNING, n) for n in notice.splitlines())]:
        rows += [(font, colour, row) for row in _wrapped(line, font, width - 2 * margin)]
    strip = Image.new("RGB", (width, 2 * margin + step * (len(rows) + 1)), _PAPER)
    pen = ImageDraw.Draw(strip)
    for number, (face, colour, row) in enumerate(rows):
        pen.text((margin, margin + step * number), row, colour, face)
    _legend(strip, margin, margin + step * len(rows), size)
    return strip


def _legend(strip: Image.Image, left: int, top: int, size: int) -> None:
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size)
    pen.text((left, top), "heat: none", _FAINT, font)
    bar_left = left + int(font.getlength("heat: none ")) + size // 3
    shades = np.tile(np.linspace(0, 1, size * 8), (size, 1))
    strip.paste(Image.fromarray(_heated(np.full((1, 1, 1), 128, np.float32), shades)), (bar_left, top + size // 6))
    pen.text((bar_left + size * 8 + size // 2, top), "most", _FAINT, font)


def _wrapped(line: str, font: Any, width: int) -> list[str]:
    """Wrap a line to rows that fit; a single long word is cut."""
    rows: list[str] = []
    for word in line.split():
        if rows and font.getlength(f"{rows[-1]} {word}") <= width:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    return rows

"""Heat map of one image, drawn by a process of its own: its memory and its minutes are not those of who asks.

It reads the image from standard input and writes a JPEG of the whole image, with heat over the square that the
score comes from, to standard output. It ends with 1 and one sentence on standard error where it cannot.
"""

import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from marcod.domain import DropClass
from marcod.errors import BundleError, MarcodError

QUALITY: Final = 85


@dataclass(frozen=True, slots=True)
class HeatOrder:
    """A heat map to draw: the bundle's folder and digest, the folders of a committee's members, and how.

    ``members`` are by ``NAME:VERSION``; ``longest_px`` bounds the longer side of the image drawn.
    """

    folder: str
    digest: str
    members: dict[str, str]
    target: str = DropClass.CRYSTALS
    samples: int = 8
    longest_px: int = 1024

    def program(self) -> list[str]:
        """Return the command that draws it."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]


def draw(order: HeatOrder, data: bytes) -> bytes:
    """Draw the heat map as JPEG. Raises BundleError, where TensorFlow is missing too, and ImageError."""
    from PIL import Image

    from marcod.model import bundle, engines, preprocess

    engines.require_keras("a heat map")
    from marcod.model import heatmap  # loads TensorFlow

    folder = Path(order.folder)
    if bundle.verify(folder).digest != order.digest:
        raise BundleError("the bundle on this host is not the registered one")
    rgb = preprocess.decode(data)
    attribution = heatmap.attribution(folder, lambda _, member: Path(order.members[f"{member.name}:{member.version}"]))
    heat = attribution.explain(data, DropClass(order.target), heatmap.SmoothGradNoise(order.samples))
    drawn = Image.fromarray(heatmap.over(rgb, heat))
    drawn.thumbnail((order.longest_px, order.longest_px))
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def main() -> int:
    """Draw what the first argument orders. Returns the exit code."""
    try:
        sys.stdout.buffer.write(draw(HeatOrder(**json.loads(sys.argv[1])), sys.stdin.buffer.read()))
    except MarcodError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Data sets whose images are files that the smallest network can tell apart, without a database."""

import io
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from training_images import coloured

from marcod.domain import CLASSES, Split
from marcod.training.snapshot import Item, Snapshot


def item(number: int, root: Path, **more: object) -> Item:
    """An image of a drop of its own; its class is that of its colour, and its plate the tens of its number."""
    label = CLASSES[number % 4]
    clear, crystals, other, precipitate = (float(label is c) for c in CLASSES)
    values: dict[str, object] = {
        "image_id": number,
        "drop_id": 1000 + number,
        "inspection_id": 1,
        "source": "cellar",
        "imager": "rigaku",
        "plate_key": f"P{number // 10}",
        "well": "A01",
        "drop_number": 1,
        "path": f"{number}.png",
        "root": str(root),
        "content_hash": str(number),
        "label": label,
        "shares": (clear, crystals, other, precipitate),
        "persons": {"ada": label},
        "side": Split.TRAIN,
        "weight": 1.0,
        "stream": None,
        "inclusion": None,
    }
    return Item(**(values | more))  # type: ignore[arg-type]


def written(one: Item) -> Item:
    """The same with its file on disk."""
    pixels, _ = coloured(one.image_id + 1, 40, seed=one.image_id)
    buffer = io.BytesIO()
    Image.fromarray(pixels[-1]).save(buffer, "PNG")
    file = Path(one.root) / one.path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(buffer.getvalue())
    return one


def snapshot(items: list[Item]) -> Snapshot:
    """A set of these."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Snapshot(moment, None, "visible", tuple(items), (), (), (), "digest", "gate digest")

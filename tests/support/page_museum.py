"""A lab with something of everything that a page shows, also of what is hostile, to be looked at."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from factories import utc
from finished_runs import NUMBERS, ran
from page_lab import PageLab, jpeg

from marcod.database.schema import label, plate
from marcod.domain import Modality
from marcod.web import accounts
from marcod.web.people import UserRole

MARKUP: Final = "<img src=x onerror=document.title='owned'>\"'&lt;"
TURNED: Final = "\u202egnp.exe\u200f"
HOSTILE: Final = f"{MARKUP} {TURNED}\n2"
"""A name with markup, quotes, marks that turn the direction of writing, and a line break."""

HOSTILE_KEY: Final = HOSTILE.replace("/", "")
VIEWER: Final = "vera"
SECRET: Final = b"nobody may read this"


def _bomb() -> bytes:
    """The head of a JPEG that says it has 60,000 by 60,000 pixels."""
    head = jpeg(1)
    at = head.index(b"\xff\xc0") + 5
    return head[:at] + struct.pack(">HH", 60_000, 60_000) + head[at + 4 :]


BROKEN: Final[list[Callable[[], bytes]]] = [
    lambda: b"a line of text",
    lambda: jpeg(1)[:300],
    lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>document.title='owned'</script></svg>",
    lambda: b"<html><script>document.title='owned'</script></html>",
    _bomb,
]
"""Files that were images when they were recorded."""


def furnish(lab: PageLab) -> None:
    """Let plates arrive, people label, and files break; and start the page."""
    lab.plate(24, (1, 2), drops=2)
    lab.plate(3, (2,), modality=Modality.UV)
    lab.plate(2, plate=HOSTILE_KEY, barcode=HOSTILE)
    lab.plate(len(BROKEN) + 2, plate="broken", seed=1000)
    folder = lab.root / "broken" / "1" / str(Modality.VISIBLE)
    break_files(sorted(folder.iterdir()), lab.folder)
    db = lab.db
    db.write(lambda c: c.execute(sa.update(plate).where(plate.c.key == HOSTILE_KEY).values(project=HOSTILE)))
    db.write(accounts.add, VIEWER, UserRole.VIEWER, "", utc(), "root")
    ran(db, state="refused", candidate="lab:2", reasons=["recall falls by <4 %>; see `marcod train`"], numbers=NUMBERS)
    lab.start()
    for drop, word, inspection in ((1, "Crystals", 1), (2, "Precipitate", 1), (49, "Clear", 3)):
        lab.say("bob", drop, word, inspection)
    lab.mark("bob", 1, "harvested")
    lab.mark("bob", 1, "note", "looks like salt\nsecond line")
    lab.mark("bob", 49, "note", f"{MARKUP}\n2", 3)
    lab.mark("ann", 5, "follow")
    # A file of labels may name a person as it likes.
    db.write(lambda c: c.execute(sa.update(label).where(label.c.drop_id == 49).values(person=HOSTILE, origin=HOSTILE)))


def break_files(files: list[Path], outside: Path) -> None:
    """Write over the first files; the next leads out of the folder, and the last stays."""
    for file, data in zip(files, BROKEN, strict=False):
        file.write_bytes(data())
    (outside / "secret.jpg").write_bytes(jpeg(7) + SECRET)
    files[len(BROKEN)].unlink()
    files[len(BROKEN)].symlink_to(outside / "secret.jpg")

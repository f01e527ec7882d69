"""A small file system of its own that can be filled to the last byte.

Mounting one takes the right to mount; where that is refused the folder is an ordinary one, ``limited`` is false, and
the disk cannot be filled without filling somebody else's.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

_BALLAST: Final = "ballast"


class Quota:
    """A folder of so many megabytes in memory, to be closed at the end."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        options = f"size={megabytes}m,mode=755"
        mount = ["mount", "-t", "tmpfs", "-o", options, "marcod-chaos", str(folder)]
        try:
            self.limited = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.limited = False

    def fill(self) -> None:
        """Leave no byte for anybody else."""
        assert self.limited
        with (self.folder / _BALLAST).open("ab", buffering=0) as ballast:
            for size in (2**20, 2**12):
                while _written(ballast.fileno(), size):
                    pass

    def free(self) -> None:
        """Give the room back."""
        (self.folder / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Everything on it is lost."""
        if self.limited:
            # Lazily, as a server that has just ended may still hold a file for a moment.
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self.limited = False


def _written(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, b"\0" * size) > 0
    except OSError:
        return False

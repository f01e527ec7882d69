"""File systems of this host, as the kernel lists them (proc(5), mountinfo)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NETWORKED: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "afpfs", "beegfs", "ceph", "davfs", "glusterfs",
        "gpfs", "lustre", "ncpfs", "orangefs", "panfs", "vboxsf", "fuse.sshfs", "fuse.rclone", "fuse.davfs",
        "fuse.smbnetfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.juicefs", "fuse.vmhgfs-fuse",
        "fuse.gvfsd-fuse",
    }
)  # fmt: skip
"""File systems on which inotify hears only of what this host writes, and SQLite's locks cannot be relied upon."""

_MOUNTS: Final = Path("/proc/self/mountinfo")
_SELDOM_IMAGES: Final = frozenset({"/", "/boot", "/boot/efi", "/efi", "/home", "/var", "/tmp", "/usr", "/opt", "/root"})
_DISKS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "ntfs", "ntfs3", "fuseblk", "exfat"})


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, such as ext4 or nfs4; "unknown" where nothing tells."""
    wanted, best, found = nearest(path).resolve(), "", "unknown"
    for place, kind in _mounted():
        if wanted.is_relative_to(place) and len(place) >= len(best):
            best, found = place, kind
    return found


def likely_folders() -> list[tuple[Path, str]]:
    """Mounted shares and data disks of this host with their type: where an imager's folder may be."""
    return sorted((Path(place), kind) for place, kind in set(_mounted()) if kind in NETWORKED or _is_data(place, kind))


def _is_data(place: str, kind: str) -> bool:
    """Tell a data disk from the system's own ones and from single files that a container has mounted."""
    return kind in _DISKS and place not in _SELDOM_IMAGES and not Path(place).is_file()


def _mounted() -> Iterator[tuple[str, str]]:
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        yield place, right.split()[0]


def nearest(path: Path) -> Path:
    """Return the path, or the first folder above it that is there and that this user may reach."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if _reached(place))


def _reached(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # below a folder that this user may not search
        return False

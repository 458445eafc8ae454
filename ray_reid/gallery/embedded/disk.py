"""What must be on the disk before a write is acknowledged, and checksums of it."""

import os
import shutil
import zlib
from pathlib import Path

_BLOCK = 8 * 2**20


def sync(path: Path) -> None:
    """Bring the content of a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a directory and those above it; their names are on the disk when this returns."""
    missing = [one for one in path.parents if not one.exists()]
    # One that is there may have been made by a process that was killed before it synced the name.
    for folder in (*reversed(missing), path):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def link(old: Path, new: Path) -> None:
    """Give an immutable file a second name, or copy it; its content is on the disk."""
    try:
        os.link(old, new)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(old, new)
    sync(new)


def checksum(file: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value

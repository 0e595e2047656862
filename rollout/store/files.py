"""Writes that a full disk or a power cut does not leave half done."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(descriptor: int, content: bytes, size: int) -> None:
    """Append `content` to a file of `size` bytes, all of it or nothing.

    Raises:
        OSError: the disk is full, say. The file then has `size` bytes.
    """
    try:
        written = 0
        while written < len(content):
            written += os.write(descriptor, memoryview(content)[written:])
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def sync(path: Path) -> None:
    """Return as soon as a file's content, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

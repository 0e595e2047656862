"""Files that are never seen half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.store.files import sync


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new one, also after a crash or a power cut.

    The steps are: temporary file, fsync, rename, fsync of the directory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def atomic_write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict, indented JSON. Raises ValueError for NaN or infinity."""
    atomic_write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

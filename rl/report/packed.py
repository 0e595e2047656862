"""What a page holds packed: bytes that the browser unpacks when they are looked at."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 6


def packed(content: bytes) -> str:
    """Compressed, as text. The same content gives the same text."""
    return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode("ascii")


def as_json(value: Any) -> bytes:
    """As JSON in ASCII. Numbers that JSON cannot hold become texts, such as "nan"."""
    try:
        return _dumped(value)
    except ValueError:
        return _dumped(_finite(value))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def arrays(about: Any, columns: Mapping[str, Sequence[npt.NDArray[Any]]]) -> bytes:
    """Arrays as bytes: the length of a description, the description, then each column, aligned to 4 bytes.

    The description is JSON: `about`, and for each column its name, its dtype and its length. A column's arrays are laid
    end to end.
    """
    joined = {name: _little(np.concatenate(parts)) for name, parts in columns.items()}
    described = [[name, array.dtype.name, len(array)] for name, array in joined.items()]
    head = as_json({"about": about, "columns": described})
    parts = [np.uint32(len(head)).astype("<u4").tobytes(), head, *(array.tobytes() for array in joined.values())]
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def _little(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"))

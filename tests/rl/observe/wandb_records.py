"""What wandb wrote in an offline run: the records of a .wandb file.

The file is a log of LevelDB (github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of 7 bytes:
blocks of 32 KiB, in each parts of records behind crc (4 bytes), length (2) and type (1: 1 whole, 2 first, 3 middle,
4 last part).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as protocol

_HEADER, _BLOCK = 7, 32 * 1024
_PART = struct.Struct("<IHB")


def records(path: Path) -> list[protocol.Record]:
    return [protocol.Record.FromString(data) for data in _whole(path.read_bytes())]


def _whole(data: bytes) -> Iterator[bytes]:
    position, parts = _HEADER, b""
    while position + _PART.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PART.size:
            position += left
            continue
        _, length, kind = _PART.unpack_from(data, position)
        position += _PART.size
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield parts
            parts = b""

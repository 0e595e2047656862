"""Reads the records that wandb wrote in an offline run from its .wandb file.

After a header of 7 bytes the file is a LevelDB log (github.com/google/leveldb/blob/main/doc/log_format.md): blocks of
32 KiB, which hold parts of records. Before each part stand its crc (4 bytes), its length (2) and its type (1 byte: 1 is
a whole record, 2 the first part of one, 3 a middle part, 4 the last).
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

"""Arrow IPC streams without an end: they can always be appended to, and end in a torn record at worst.

Each record carries a checksum of its own bytes, as custom metadata of its message, which other readers of Arrow pass
over. A record without one, as earlier versions wrote them, is read as it is.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSION = "zstd"
BEGIN = b"\xff\xff\xff\xff"
"""What every message begins with."""
END = BEGIN + b"\0\0\0\0"
"""The last message of an Arrow IPC stream."""
_MARK = b"crc32="
"""What stands before a message's checksum, in hexadecimal digits."""
_DIGITS = 8


def header(schema: pa.Schema) -> bytes:
    """The message that a stream begins with."""
    return _stream(schema)[: -len(END)]


def message(batch: pa.RecordBatch) -> bytes:
    """One record batch as a message, which depends on no message before it but the header. The schema must not have
    dictionaries. Equal batches give equal bytes."""
    content = bytearray(_stream(batch.schema, batch)[len(header(batch.schema)) : -len(END)])
    begin, end = _checksum_at(content)
    content[begin:end] = _checksum(content, begin, end)
    return bytes(content)


def records(path: Path) -> Iterator[tuple[int, pa.Buffer]]:
    """Where each complete record of a stream begins, and its message, as `batch` takes it."""
    import pyarrow as pa

    if path.stat().st_size == 0:
        return
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
    source = pa.BufferReader(whole)
    reader = pa.ipc.MessageReader.open_stream(source)
    try:
        reader.read_next_message()  # the schema
        while True:
            begin = source.tell()
            reader.read_next_message()
            yield begin, whole.slice(begin, source.tell() - begin)
    except (StopIteration, pa.ArrowInvalid, OSError):  # the end, or a torn record
        return


def batch(message: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of a message.

    Raises:
        ValueError: its checksum is another one than when it was written.
    """
    import pyarrow as pa

    content = memoryview(message)
    begin, end = _checksum_at(content)
    if begin < end and content[begin:end] != _checksum(content, begin, end):
        raise ValueError("its checksum is wrong")
    return pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)


def goes_on(path: Path, position: int) -> bool:
    """Whether a whole record lies somewhere from `position` on. What comes before it is damaged then, and not torn."""
    import pyarrow as pa

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while (position := content.find(BEGIN, position)) >= 0:
            file.seek(position)
            with suppress(pa.ArrowException, EOFError, OSError):
                if pa.ipc.read_message(file).type == "record batch":
                    return True
            position += 1
    return False


def _checksum_at(content: bytearray | memoryview) -> tuple[int, int]:
    """Where the checksum of a message begins and ends in it; (0, 0) where there is none."""
    metadata = bytes(content[: 8 + int.from_bytes(content[4:8], "little")])
    begin = metadata.find(_MARK) + len(_MARK)
    return (begin, begin + _DIGITS) if begin >= len(_MARK) else (0, 0)


def _checksum(content: bytearray | memoryview, begin: int, end: int) -> bytes:
    """The checksum of everything in a message but the place of the checksum itself."""
    view = memoryview(content)
    return b"%08x" % zlib.crc32(view[end:], zlib.crc32(view[:begin]))


def _stream(schema: pa.Schema, *batches: pa.RecordBatch) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        for batch in batches:
            stream.write_batch(batch, custom_metadata={"checksum": _MARK + b"0" * _DIGITS})
    content: bytes = sink.getvalue().to_pybytes()
    return content

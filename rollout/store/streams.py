"""Arrow IPC streams without an end: they can always be appended to, and end in a torn record at worst."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
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


def header(schema: pa.Schema) -> bytes:
    """The message that a stream begins with."""
    return _stream([], schema)[: -len(END)]


def message(batch: pa.RecordBatch) -> bytes:
    """One record batch as a message, which depends on no message before it but the header. The schema must not have
    dictionaries. Equal batches give equal bytes."""
    return _stream([batch], batch.schema)[len(header(batch.schema)) : -len(END)]


def messages(source: pa.MemoryMappedFile) -> Iterator[tuple[pa.Message, int]]:
    """Each complete record of a stream, not decoded yet, and the position in the file where it ends."""
    import pyarrow as pa

    if source.size() == 0:
        return
    reader = pa.ipc.MessageReader.open_stream(source)
    try:
        reader.read_next_message()  # the schema
        while True:
            found = reader.read_next_message()
            yield found, source.tell()
    except (StopIteration, pa.ArrowInvalid, OSError):  # the end, or a torn record
        return


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


def _stream(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        for batch in batches:
            stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content

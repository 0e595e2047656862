"""Segments: the files that hold a run's finished groups, in the folder `trajectories` of its directory.

    segment-000003.arrows    being written by one worker: an Arrow IPC stream without an end
    segment-000003.parquet   full and sealed: the same records, one row group each

A group's address is the number of its segment and of its record there. It holds in both forms: the stream is deleted
only after the sealed file is durable under its name. Only the worker that began a segment writes to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.store.groups import COMPRESSION, decode, encode, header, schema
from rollout.types import Address, Group, Split

if TYPE_CHECKING:
    import pyarrow as pa

STREAM, SEALED, PARTIAL = ".arrows", ".parquet", ".partial"


class Segment:
    """A segment that this process has begun and appends to.

    Claiming a number needs no coordination: `segment-N.arrows` is created exclusively, on a folder that all machines
    share.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.number, self.path, self._descriptor = _claim(folder)
        self._records = 0
        self.size = 0
        self._write(header())

    def append(self, group: Group, split: Split) -> Address:
        """Write one group. It is durable after the next `sync`.

        Raises:
            OSError: the disk is full, say. The segment then ends where it ended before.
        """
        self._write(encode(group, split))
        self._records += 1
        return Address(segment=self.number, record=self._records - 1)

    def sync(self) -> None:
        """Return when everything that was appended before the call would survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, content: bytes) -> None:
        try:
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, memoryview(content)[written:])
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(content)


def seal(stream: Path) -> None:
    """Replace a finished stream by a Parquet file with one row group a record. Readers always find one of the two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sealed = stream.with_suffix(SEALED)
    partial = sealed.with_suffix(PARTIAL)
    with pq.ParquetWriter(partial, schema(), compression=COMPRESSION) as writer:
        for batch in batches(stream):
            writer.write_table(pa.Table.from_batches([batch]), row_group_size=len(batch))
    _sync(partial)
    partial.rename(sealed)
    _sync(sealed.parent)
    stream.unlink()


def paths(folder: Path) -> dict[int, Path]:
    """The files of a folder by segment number, in order; of a segment that is there in both forms, the sealed one."""
    found: dict[int, Path] = {}
    for ending in (STREAM, SEALED):
        for path in folder.glob(f"segment-*{ending}"):
            if (number := re.fullmatch(r"segment-(\d+)", path.stem)) is not None:
                found[int(number[1])] = path
    return dict(sorted(found.items()))


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The records of a segment in order. A torn one at the end of a stream is left out."""
    import pyarrow as pa

    if path.suffix == SEALED:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for record in range(file.num_row_groups):
                yield _row_group(file, record)
        return
    with pa.memory_map(str(path)) as source:
        for message, _ in _messages(source):
            yield pa.ipc.read_record_batch(message, schema())


def groups(path: Path) -> Iterator[tuple[Group, Split]]:
    """The groups of a segment in order, and the split that each one's task is of."""
    yield from map(decode, batches(path))


def group_ids(stream: Path) -> list[str]:
    """The id of each record's group in a stream without a torn end, in order. No other column is read."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=[schema().get_field_index("group_id")])
    with pa.memory_map(str(stream)) as source, pa.ipc.open_stream(source, options=options) as reader:
        return [batch.column(0)[0].as_py() for batch in reader]


def read_group(folder: Path, address: Address) -> Group:
    """Return the group at an address, whether its segment is sealed or not.

    Raises:
        ValueError: no such record is there (any more), or it cannot be read.
    """
    stream = folder / _name(address.segment, STREAM)
    try:
        return _read(stream, address.record)
    except FileNotFoundError:
        pass  # sealed, maybe just now
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{stream}: record {address.record} cannot be read: {error}") from error
    sealed = folder / _name(address.segment, SEALED)
    try:
        return _read(sealed, address.record)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{sealed}: record {address.record} cannot be read: {error}") from error


def tidy(folder: Path) -> list[str]:
    """Clean up after writers that are gone. Return one line for each stream whose end was cut.

    Nobody may be writing. A stream whose sealed form is there is deleted, and so are streams without a record and files
    that were being sealed.
    """
    for partial in folder.glob(f"segment-*{PARTIAL}"):
        partial.unlink()
    told = []
    for stream in sorted(folder.glob(f"segment-*{STREAM}")):
        end = _end(stream)
        if stream.with_suffix(SEALED).exists() or end <= len(header()):
            stream.unlink()
        elif (torn := stream.stat().st_size - end) > 0:
            os.truncate(stream, end)
            told.append(f"{stream.name}: cut {torn} bytes at its end, of a group that was not written whole")
    return told


def _claim(folder: Path) -> tuple[int, Path, int]:
    number = max(paths(folder), default=0)
    while True:
        number += 1
        path = folder / _name(number, STREAM)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            continue
        if not path.with_suffix(SEALED).exists():  # else another process began, filled and sealed it just now
            return number, path, descriptor
        os.close(descriptor)
        path.unlink()


def _name(number: int, ending: str) -> str:
    return f"segment-{number:06d}{ending}"


def _read(path: Path, record: int) -> Group:
    import pyarrow as pa

    if path.suffix == SEALED:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            if record >= file.num_row_groups:
                raise ValueError(f"it has {file.num_row_groups} records")
            return decode(_row_group(file, record))[0]
    with pa.memory_map(str(path)) as source:
        for number, (message, _) in enumerate(_messages(source)):
            if number == record:
                return decode(pa.ipc.read_record_batch(message, schema()))[0]
    raise ValueError("the stream ends before it")


def _row_group(file: pa.parquet.ParquetFile, record: int) -> pa.RecordBatch:
    (batch,) = file.read_row_group(record).combine_chunks().to_batches()
    return batch


def _messages(source: pa.MemoryMappedFile) -> Iterator[tuple[pa.Message, int]]:
    """Each complete record of a stream, not decoded yet, and the position in the file where it ends."""
    import pyarrow as pa

    if source.size() == 0:
        return
    reader = pa.ipc.MessageReader.open_stream(source)
    try:
        reader.read_next_message()  # the schema
        while True:
            message = reader.read_next_message()
            yield message, source.tell()
    except (StopIteration, pa.ArrowInvalid, OSError):  # the end, or a torn record
        return


def _end(stream: Path) -> int:
    """Where the last complete record of a stream ends; 0 without any."""
    import pyarrow as pa

    if stream.stat().st_size == 0:
        return 0
    with pa.memory_map(str(stream)) as source:
        return max((end for _, end in _messages(source)), default=0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

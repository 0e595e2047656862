"""Segments: the files that hold a run's finished groups, in the folder `trajectories` of its directory.

    segment-000003.arrows    being written by one worker: an Arrow IPC stream without an end
    segment-000003.parquet   full and sealed: the same records, one row group each

A group's address is the number of its segment and of its record there. It holds in both forms: the stream is deleted
only after the sealed file is durable under its name. Only the worker that began a segment writes to it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.store import streams
from rollout.store.files import sync, write_whole
from rollout.store.groups import decode, encode, header, schema
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
        self.records = 0
        self.size = 0
        self._write(header())
        sync(folder)

    def append(self, group: Group, split: Split) -> Address:
        """Write one group. It is durable after the next `sync`.

        Raises:
            OSError: the disk is full, say. The segment then ends where it ended before.
        """
        self._write(encode(group, split))
        self.records += 1
        return Address(segment=self.number, record=self.records - 1)

    def sync(self) -> None:
        """Return when everything that was appended before the call would survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, content: bytes) -> None:
        write_whole(self._descriptor, content, self.size)
        self.size += len(content)


def seal(stream: Path) -> None:
    """Replace a finished stream by a Parquet file with one row group a record. Readers always find one of the two.

    Raises:
        ValueError: the stream is damaged. It stays as it is.
        OSError: the disk is full, say. The stream stays as it is, and nothing else is left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, end = _whole(stream)
    if end != stream.stat().st_size:
        raise ValueError(f"{stream} is damaged at byte {end}")
    sealed = stream.with_suffix(SEALED)
    partial = sealed.with_suffix(PARTIAL)
    try:
        with pq.ParquetWriter(partial, schema(), compression=streams.COMPRESSION, write_page_checksum=True) as writer:
            for batch in batches(stream):
                writer.write_table(pa.Table.from_batches([batch]), row_group_size=len(batch))
        sync(partial)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    partial.rename(sealed)
    sync(sealed.parent)
    stream.unlink()


def paths(folder: Path) -> dict[int, Path]:
    """The files of a folder by segment number, in order; of a segment that is there in both forms, the sealed one."""
    found: dict[int, Path] = {}
    for ending in (STREAM, SEALED):
        for path in folder.glob(f"segment-*{ending}"):
            if (number := re.fullmatch(r"segment-(\d+)", path.stem)) is not None:
                found[int(number[1])] = path
    return dict(sorted(found.items()))


def sealed(folder: Path) -> set[int]:
    """The numbers of the segments that are full and sealed."""
    return {number for number, path in paths(folder).items() if path.suffix == SEALED}


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The records of a segment in order. A torn one at the end of a stream is left out."""
    for _, read in _records(path):
        yield read()


def groups(path: Path) -> Iterator[tuple[int, Group, Split]]:
    """The groups of a segment in order, the record of each, and the split that its task is of. A record that cannot be
    read is left out, with a warning."""
    try:
        for record, read in _records(path):
            found = _decoded(path, record, read)
            if isinstance(found, ValueError):
                warnings.warn(f"{found}; it is left out", stacklevel=2)
            else:
                yield record, *found
    except FileNotFoundError:
        raise
    except Exception as error:
        warnings.warn(f"{path} cannot be read: {error}; it is left out", stacklevel=2)


def group_ids(path: Path) -> list[str]:
    """The id of each record's group in a segment without a torn end, in order. No other column is read."""
    import pyarrow as pa

    if path.suffix == SEALED:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            columns = (file.read_row_group(i, columns=["group_id"]) for i in range(file.num_row_groups))
            return [column["group_id"][0].as_py() for column in columns]
    options = pa.ipc.IpcReadOptions(included_fields=[schema().get_field_index("group_id")])
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source, options=options) as reader:
        return [batch.column(0)[0].as_py() for batch in reader]


def read_group(folder: Path, address: Address) -> Group:
    """Return the group at an address, whether its segment is sealed or not.

    Raises:
        ValueError: no such record is there (any more), or it cannot be read.
    """
    (found,) = read_groups(folder, address.segment, [address.record]).values()
    if isinstance(found, ValueError):
        raise found
    return found


def read_groups(folder: Path, segment: int, records: Collection[int]) -> dict[int, Group | ValueError]:
    """Return the groups of several records of a segment, which is read once. In the place of one that is not there (any
    more), or cannot be read, stands the error that says so."""
    for path in (folder / _name(segment, STREAM), folder / _name(segment, SEALED)):
        try:
            found = _read(path, records)
        except FileNotFoundError as error:  # of a stream: it was sealed, maybe just now
            found = {record: ValueError(f"{path}: record {record} cannot be read: {error}") for record in records}
            continue
        return found
    return found


def tidy(folder: Path, known: Mapping[int, int]) -> list[str]:
    """Clean up after writers that are gone. Return one line for each stream whose end was cut, or is damaged.

    Nobody may be writing. A stream whose sealed form is there is deleted, and so are streams without a record and files
    that were being sealed. A stream is damaged, and nothing of it is cut, where a whole record follows what cannot be
    read.

    Args:
        known: the number of records that a segment must have, because the ledger lists them. A stream that has fewer is
            damaged as well.
    """
    for unfinished in folder.glob(f"segment-*{PARTIAL}"):
        unfinished.unlink()
    told = []
    for number, stream in paths(folder).items():
        if stream.suffix == SEALED:
            stream.with_suffix(STREAM).unlink(missing_ok=True)
            continue
        records, end = _whole(stream)
        torn = stream.stat().st_size - end
        if records < known.get(number, 0) or (torn > 0 and streams.goes_on(stream, end)):
            told.append(f"{stream.name}: damaged at byte {end}, where a finished group should be; it is left as it is")
        elif records == 0:
            stream.unlink()
            if torn > 0:
                told.append(f"{stream.name}: deleted, because its only group was not written whole")
        elif torn > 0:
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


def _read(path: Path, records: Collection[int]) -> dict[int, Group | ValueError]:
    why: Exception | str = "there is none"
    found: dict[int, tuple[Group, Split] | ValueError] = {}
    try:
        found = {record: _decoded(path, record, read) for record, read in _records(path) if record in records}
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        why = error
    lacking = {record: ValueError(f"{path}: record {record} cannot be read: {why}") for record in records}
    return {record: one if isinstance(one, ValueError) else one[0] for record, one in (lacking | found).items()}


def _records(path: Path) -> Iterator[tuple[int, Callable[[], pa.RecordBatch]]]:
    """The records of a segment, and how to read each, while the next one has not been asked for."""
    if path.suffix == SEALED:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for record in range(file.num_row_groups):
                yield record, partial(_row_group, file, record)
        return
    for record, (_, message) in enumerate(streams.records(path)):
        yield record, partial(streams.batch, message, schema())


def _decoded(path: Path, record: int, read: Callable[[], pa.RecordBatch]) -> tuple[Group, Split] | ValueError:
    try:
        batch = read()
        batch.validate(full=True)
        return decode(batch)
    except Exception as error:  # pyarrow and what builds a group raise many kinds for damaged bytes
        return ValueError(f"{path}: record {record} cannot be read: {error}")


def _row_group(file: pa.parquet.ParquetFile, record: int) -> pa.RecordBatch:
    (batch,) = file.read_row_group(record).combine_chunks().to_batches()
    return batch


def _whole(stream: Path) -> tuple[int, int]:
    """The number of complete records of a stream, and where the last one ends."""
    ends = [begin + message.size for begin, message in streams.records(stream)]
    return len(ends), ends[-1] if ends else min(len(header()), stream.stat().st_size)

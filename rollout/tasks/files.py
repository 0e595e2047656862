"""Files of rows: jsonl, JSON, CSV, TSV, Parquet and Arrow, each read from its beginning to its end, a row at a time.

A file comes as pairs of the place of a row and a call that reads it. What is wrong with one row is raised by its call,
so that the others can still be read; what is wrong with the file is raised between rows.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

Read = Callable[[], Any]
"""Reads one row. Raises ValueError, which names the row, if it cannot be read."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_CHARACTERS = 300
"""The most of a library's message that ours shows."""
_BEGINNING = 8
"""Bytes of a file by which its encoding is known."""


def read_file(path: Path) -> Iterator[tuple[str, Read]]:
    """Read a file whose name ends with one of SUFFIXES.

    Raises:
        ValueError: the file is not of its kind, or it is torn. The message names it.
    """
    return SUFFIXES[path.suffix](path)


def parse_json(text: str, where: str) -> Any:
    """Return what JSON text says. Raises ValueError, which names the place, if it is not JSON or a key comes twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: not usable JSON (nested too deeply)") from None
    except ValueError as error:  # an integer of too many digits, or a key that comes twice
        raise ValueError(f"{where}: not usable JSON ({str(error)[:_CHARACTERS]})") from None


def first_line(error: Exception) -> str:
    """The first line of an exception's message, cut, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_CHARACTERS]


def without_nulls(value: Any) -> Any:
    """Drop every key whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def numbered(dataset: str, rows: Iterable[Any]) -> Iterator[tuple[str, Read]]:
    """Rows that have been read, by their numbers from 0."""
    for number, row in enumerate(rows):
        yield f"dataset {dataset} row {number}", partial(_same, row)


def _same(row: Any) -> Any:
    return row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Read]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, partial(_parse_line, line, where)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            _check_encoding(path, file.read(_BEGINNING))
            file.seek(0)
            for line in file:  # of bytes, so that a row ends at a newline and at no other separator
                yield line.rstrip(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _parse_line(line: bytes, where: str) -> Any:
    return parse_json(_decoded(line, where), where)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise ValueError(f"{where}: not UTF-8 (byte 0x{byte:02x} at position {error.start})") from None


def _check_encoding(path: Path, beginning: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if beginning.startswith(magic):
            raise ValueError(f"{path} is compressed ({name}): unpack it")
    if beginning.startswith(_UTF_16):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        double = counts.most_common(1)[0][0]
        raise ValueError(f"the key {double!r:.100} comes twice in one object")
    return values


def _read_json(path: Path) -> Iterator[tuple[str, Read]]:
    rows = parse_json(_decoded(b"\n".join(_lines(path)), str(path)), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a .json file of rows is one list of objects; one object a line is .jsonl")
    return numbered(str(path), rows)


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[str, Read]]:
    """Every value is a text, as it is written: `007` stays `007`. An empty cell means that the key is missing."""
    csv.field_size_limit(2**31 - 1)  # the library's own limit, 128 KiB a cell, is shorter than conversations are
    reader = csv.reader(_text_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(path, header)
        begins = reader.line_num + 1
        for cells in reader:
            where, begins = f"{path}:{begins}", reader.line_num + 1
            if cells:
                yield where, partial(_record, header, cells, where)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not {path.suffix[1:].upper()} ({error})") from None


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        marked = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line  # as spreadsheets write it
        yield _decoded(marked, f"{path}:{number}") + "\n"


def _check_header(path: Path, header: list[str]) -> None:
    for name, count in Counter(header).items():
        if count > 1:
            raise ValueError(f"{path}:1: the column {name!r:.100} comes twice in the header")
        if not name.strip():
            raise ValueError(f"{path}:1: a column of the header has no name")


def _record(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise ValueError(f"{where}: it has {len(cells)} cells, and the header names {len(header)} columns")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _read_parquet(path: Path) -> Iterator[tuple[str, Read]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows() -> Iterator[Any]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from map(without_nulls, batch.to_pylist(maps_as_pydicts="strict"))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"dataset {path}: not a whole Parquet file ({first_line(error)})") from None

    return numbered(str(path), rows())


def _read_arrow(path: Path) -> Iterator[tuple[str, Read]]:
    """Both of Arrow's forms: a stream, as `datasets` writes, or a file."""
    import pyarrow as pa

    def rows() -> Iterator[Any]:
        try:
            with pa.memory_map(str(path)) as source:
                for batch in _batches(source):
                    yield from map(without_nulls, batch.to_pylist(maps_as_pydicts="strict"))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"dataset {path}: not a whole Arrow file ({first_line(error)})") from None

    return numbered(str(path), rows())


def _batches(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        yield from map(file.get_batch, range(file.num_record_batches))
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


SUFFIXES: Mapping[str, Callable[[Path], Iterator[tuple[str, Read]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""The readers of files, by the ends of their names."""

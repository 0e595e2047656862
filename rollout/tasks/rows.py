"""Rows of a dataset as plain values, each with the words that name it in messages.

A row leaves as it came in: nulls stay, and what has no plain form (`rollout.plain`) is refused with file, row and
field. There is one exception. Arrow gives each object in a column the keys of all others, with nulls as their values,
and then nobody can tell a null from a key that is not there. So in Parquet files and Hugging Face datasets a null
means that the key is missing. Where a null matters, write the column as JSON text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.plain import plain

Row = dict[str, Any]
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_CHARACTERS = 300
"""The most of a library's message that ours shows."""


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row, and the place that it comes from: `FILE:LINE` of a jsonl file, else `dataset NAME row NUMBER`, from 0."""

    where: str
    values: Row


def read_rows(dataset: str, split: str = "train") -> list[NamedRow]:
    """Return all rows of `dataset`: a .jsonl or .parquet file, or else the `split` of a Hugging Face dataset.

    Raises:
        ValueError: there is no such dataset, it cannot be read, has no rows, or one of them has no plain form. The
            message names the file and the row.
    """
    if dataset.endswith(".jsonl"):
        rows = _read_jsonl(_existing(dataset))
    elif dataset.endswith(".parquet"):
        rows = _numbered(dataset, _read_parquet(_existing(dataset)))
    elif _is_file(dataset):
        raise ValueError(f"dataset {dataset}: a file of rows ends with .jsonl or .parquet")
    else:
        rows = _numbered(dataset, _read_hub(dataset, split))
    found = [NamedRow(where, _plain_row(row, where)) for where, row in rows]
    if not found:
        raise ValueError(f"dataset {dataset}: it has no rows")
    return found


def from_text(value: Any, where: str) -> Any:
    """Return a field's value; what is written as JSON text is read.

    Raises:
        ValueError: the text is not JSON.
    """
    return plain(_json(value, where), where) if isinstance(value, str) else value


def _plain_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    return {str(key): plain(value, f"{where}: field {key!r:.100}") for key, value in row.items()}


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    for beginning, name in _COMPRESSED.items():
        if content.startswith(beginning):
            raise ValueError(f"{path} is compressed ({name}): unpack it")
    if content.startswith(_UTF_16):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8")
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        if line.strip():
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise ValueError(f"{where}: not UTF-8 (byte 0x{byte:02x} at position {error.start})") from None
            yield where, _json(text, where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: not usable JSON (nested too deeply)") from None
    except ValueError as error:  # an integer of too many digits, or a key that comes twice
        raise ValueError(f"{where}: not usable JSON ({str(error)[:_CHARACTERS]})") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        double = counts.most_common(1)[0][0]
        raise ValueError(f"the key {double!r:.100} comes twice in one object")
    return values


def _read_parquet(path: Path) -> Iterable[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from map(_without_nulls, batch.to_pylist(maps_as_pydicts="strict"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"dataset {path}: not a whole Parquet file ({_first_line(error)})") from None


def _read_hub(name: str, split: str) -> Iterable[Any]:
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
        yield from map(_without_nulls, table)
    except Exception as error:
        problem = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(
            f"dataset {name}: no such file, and not a Hugging Face dataset that can be loaded ({problem})"
        ) from None


def _numbered(dataset: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows):
        yield f"dataset {dataset} row {number}", row


def _existing(dataset: str) -> Path:
    if not _is_file(dataset):
        raise ValueError(f"dataset {dataset!r:.300}: no such file")
    return Path(dataset)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a part of it is too long, or holds a NUL byte
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_CHARACTERS]


def _without_nulls(value: Any) -> Any:
    """Drop every key whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value

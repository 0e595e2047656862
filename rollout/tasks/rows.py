"""Rows of a dataset as plain values, each with the words that name it in messages.

A row leaves as it came in: nulls stay, and what has no plain form (`rollout.plain`) is refused with file, row and
field. There is one exception. Arrow gives each object in a column the keys of all others, with nulls as their values,
and then nobody can tell a null from a key that is not there. So in Parquet and Arrow files and in Hugging Face datasets
a null means that the key is missing. Where a null matters, write the column as JSON text.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rollout.plain import plain
from rollout.tasks.columns import Row, has, rename
from rollout.tasks.config import DatasetConfig
from rollout.tasks.files import SUFFIXES, Read, parse_json, read_file
from rollout.tasks.hub import read_hub
from rollout.tasks.slices import parse_slice

Made = TypeVar("Made")
_SIGNS = "*?["
"""What makes a path a pattern of several files."""
_LOOKED_AT = 1000
"""Rows among which a column that `columns` names has to be seen."""


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row, its number from 0, and where it is: `FILE:LINE` of a text file, else `dataset NAME row NUMBER`."""

    where: str
    number: int
    values: Row


@dataclass(slots=True)
class Skipped:
    """What `on_bad_row: skip` left out of a dataset."""

    dataset: str
    rows: int = 0
    first: str = field(default="", compare=False)
    """Why the first one was left out."""

    def add(self, error: ValueError) -> None:
        self.first = self.first or str(error)
        self.rows += 1

    def __str__(self) -> str:
        return f"dataset {self.dataset}: {self.rows} bad rows are skipped (on_bad_row); the first: {self.first}"


def from_rows(dataset: DatasetConfig, make: Callable[[NamedRow], Made], skipped: Skipped) -> Iterator[Made]:
    """Make something of each row of `dataset`, in order.

    A row that cannot be read, or of which `make` raises a ValueError, is bad. `on_bad_row` says what becomes of it: its
    error is raised, or it is counted in `skipped`.

    Raises:
        ValueError: there is no such dataset, it cannot be read, or it has no row that can be used.
    """
    rows = good = 0
    columns = _Columns(dataset)
    for where, read in _places(dataset):
        rows += 1
        try:
            row = _plain_row(read(), where)
            columns.look_at(row)
            made = make(NamedRow(where, rows - 1, _renamed(row, dataset, where)))
        except ValueError as error:
            if dataset.on_bad_row == "error":
                columns.check()
                raise
            skipped.add(error)
            continue
        finally:
            if rows == _LOOKED_AT:
                columns.check()
        good += 1
        yield made
    columns.check()
    if not rows:
        raise ValueError(f"dataset {dataset.path}: it has no rows")
    if not good:
        raise ValueError(f"dataset {dataset.path}: none of its {rows} rows can be used; the first: {skipped.first}")


def from_text(value: Any, where: str) -> Any:
    """Return a field's value; what is written as JSON text is read.

    Raises:
        ValueError: the text is not JSON.
    """
    return plain(parse_json(value, where), where) if isinstance(value, str) else value


def local_files(path: str) -> list[Path]:
    """The files of rows that a path names: itself, or those that its pattern finds, by name. Empty if it names none."""
    if _is_file(path):
        return [Path(path)]
    if not any(sign in path for sign in _SIGNS) or "\0" in path:
        return []
    return [Path(name) for name in sorted(glob.glob(path, recursive=True)) if _is_file(name)]


def is_of_files(path: str) -> bool:
    """Whether a name can only be that of files of rows: it ends as they do."""
    return Path(path).suffix in SUFFIXES


def _places(dataset: DatasetConfig) -> Iterator[tuple[str, Read]]:
    """The rows of the part of the dataset that `split` names."""
    part = parse_slice(dataset.split)
    files = local_files(dataset.path)
    if not files and not is_of_files(dataset.path):
        yield from read_hub(dataset, part)
        return
    if not files:
        raise ValueError(f"dataset {dataset.path!r:.300}: no such file")
    if part.split != "train" or dataset.subset is not None or dataset.revision is not None:
        raise ValueError(
            f"dataset {dataset.path}: a file has no subset and no revision, and its only split is 'train', of which a "
            "part can be named, as in train[:100]"
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"dataset {file}: a file of rows ends with {' or '.join(SUFFIXES)}")
    yield from part.of(row for file in files for row in read_file(file))


def _plain_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    return {str(key): plain(value, f"{where}: field {key!r:.100}") for key, value in row.items()}


def _renamed(row: Row, dataset: DatasetConfig, where: str) -> Row:
    try:
        return rename(row, dataset.columns) if dataset.columns else row
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


class _Columns:
    """Refuses a map of columns that maps nothing: a name which none of the first rows has is a mistake."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self._dataset = dataset
        self._unseen = dict(dataset.columns)
        self._columns: set[str] = set()

    def look_at(self, row: Row) -> None:
        if self._unseen:
            self._columns |= row.keys()
            self._unseen = {name: source for name, source in self._unseen.items() if not has(row, source)}

    def check(self) -> None:
        """Raise ValueError if rows have been looked at, and a column has not been seen in any of them."""
        if self._unseen and self._columns:
            name, source = next(iter(self._unseen.items()))
            raise ValueError(
                f"dataset {self._dataset.path}: no row so far has the column {source!r}, which columns.{name} names; "
                f"there are {', '.join(map(repr, sorted(self._columns)))[:300]}"
            )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a part of it is too long, or holds a NUL byte
        return False

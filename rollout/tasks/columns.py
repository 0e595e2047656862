"""The `columns` map of a dataset: its own names for what Sluice reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
_MISSING = object()


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the row under Sluice's names: `columns` gives for each of them where the row has its value.

    Both may have dots: `payload.tests: extra.test_list` puts the item `test_list` of the column `extra` into the
    payload. A column whose own name has dots is found, too. What is read by its column's name leaves the row, so that
    nothing is in it twice; an item of a column leaves the column alone. A value that the row lacks stays lacking.

    Raises:
        ValueError: a name leads into something that is no object.
    """
    found = {name: _value(row, source) for name, source in columns.items()}
    renamed = {key: value for key, value in row.items() if key not in columns.values()}
    for name, value in found.items():
        if value is not _MISSING:
            _put(renamed, name, value)
    return renamed


def has(row: Row, source: str) -> bool:
    """Whether the row has the column or item that is called so."""
    return _value(row, source) is not _MISSING


def _value(row: Any, source: str) -> Any:
    if not isinstance(row, dict):
        return _MISSING
    if source in row:
        return row[source]
    head, dot, rest = source.partition(".")
    return _value(row.get(head), rest) if dot else _MISSING


def _put(row: Row, name: str, value: Any) -> None:
    head, dot, rest = name.partition(".")
    if not dot:
        row[head] = value
        return
    inner = row.get(head, {})
    if not isinstance(inner, dict):
        raise ValueError(f"columns.{name}: the row's own {head!r} is no object, so nothing can be put into it")
    row[head] = dict(inner)
    _put(row[head], rest, value)

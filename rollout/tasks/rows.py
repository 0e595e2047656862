"""Rows of a dataset as plain dictionaries: jsonl (with line numbers in errors), parquet, or Hugging Face datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


def read_rows(dataset: str) -> list[Row]:
    """Return all rows of `dataset`: a .jsonl or .parquet path, or else a Hugging Face name (its `train` split).

    Raises ValueError for a file that does not exist, and names the line of a .jsonl file that cannot be read.
    """
    if dataset.endswith(".jsonl"):
        return _read_jsonl(_existing(dataset))
    import datasets

    if dataset.endswith(".parquet"):
        table = datasets.load_dataset("parquet", data_files=str(_existing(dataset)), split="train")
    else:
        table = datasets.load_dataset(dataset, split="train")
    return [_without_nulls(row) for row in table]


def checked_messages(row: Row, where: str) -> list[dict[str, Any]]:
    """Return the row's `messages`; one without content gets an empty one.

    Raises ValueError, which names row and field, unless they are a non-empty list of chat messages.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: field 'messages' must be a non-empty list, not {messages!r}")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ValueError(f"{where}: field 'messages[{index}].role' is {role!r}; use one of {', '.join(ROLES)}")
        if not isinstance(message.get("content", ""), str):
            raise ValueError(f"{where}: field 'messages[{index}].content' must be a string")
    return [{"content": "", **message} for message in messages]


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Not splitlines: inside of JSON strings it would split at U+2028 and its like.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
        rows.append(_without_nulls(row))
    return rows


def _existing(dataset: str) -> Path:
    path = Path(dataset)
    if not path.is_file():
        raise ValueError(f"dataset {dataset}: no such file")
    return path


def _without_nulls(value: Any) -> Any:
    """Drop every key whose value is null, at any depth.

    Arrow tables give each object the keys of all others, with nulls as their values. A null that was written on purpose
    cannot be told from those, so it is dropped as well.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value

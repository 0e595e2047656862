"""Datasets of the Hugging Face hub, and folders: of data files, or as `Dataset.save_to_disk` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout.tasks.config import DatasetConfig
from rollout.tasks.files import Read, first_line, numbered, without_nulls
from rollout.tasks.slices import Slice

HUB_S = 60.0
"""How long the hub may take to say which commit a revision is."""
_COMMIT = re.compile("[0-9a-f]{40}")
_SAVED = ("state.json", "dataset_dict.json")
"""What is in a folder that `save_to_disk` has written."""


def is_saved(path: str) -> bool:
    """Whether `save_to_disk` has written this folder."""
    return _is_folder(path) and any((Path(path) / name).is_file() for name in _SAVED)


def read_hub(dataset: DatasetConfig, part: Slice) -> Iterator[tuple[str, Read]]:
    """Read the rows of a split, or of a part of it.

    Raises:
        ValueError: there is no such dataset, split or revision, or it cannot be read. The message is one line.
    """
    try:
        yield from numbered(dataset.path, map(without_nulls, _rows(dataset, part)))
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        known = _is_folder(dataset.path)
        what = "cannot be loaded" if known else "no such file, and not a Hugging Face dataset that can be loaded"
        raise ValueError(f"dataset {dataset.path}: {what} ({problem})") from None


def _rows(dataset: DatasetConfig, part: Slice) -> Iterable[Any]:
    import datasets

    if _is_folder(dataset.path) and dataset.revision is not None:
        raise ValueError("a folder has no revisions")
    if is_saved(dataset.path):
        rows = _saved_split(datasets.load_from_disk(dataset.path), dataset, part.split)
    else:
        builder = datasets.load_dataset_builder(dataset.path, dataset.subset, revision=dataset.revision)
        if dataset.revision is not None:
            _check_revision(builder, dataset.path, dataset.revision)
        if dataset.streaming:
            return part.of(builder.as_streaming_dataset(split=part.split))
        builder.download_and_prepare()
        rows = builder.as_dataset(split=part.split)
    begin, end = part.bounds(len(rows))
    return (rows[number] for number in range(begin, end))


def _check_revision(builder: Any, path: str, revision: str) -> None:
    """`datasets` takes whatever it has cached of a dataset, with no more than a warning, where the hub does not give
    what was asked for."""
    from huggingface_hub import HfApi

    commit: str | None = revision
    if not _COMMIT.fullmatch(revision):
        commit = HfApi().dataset_info(path, revision=revision, timeout=HUB_S).sha
    if builder.hash != commit:
        raise ValueError(f"the hub did not give revision {revision}, and what is cached here is another one")


def _saved_split(saved: Any, dataset: DatasetConfig, split: str) -> Any:
    import datasets

    if dataset.subset is not None:
        raise ValueError("a saved dataset has no subsets")
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise ValueError(f"it has no split {split!r}; there is {', '.join(splits)}")
    return splits[split]


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # a part of it is too long, or holds a NUL byte
        return False

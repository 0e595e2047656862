"""What a step made of the tokens that it trained: files of the trainer's ranks, in the folder `trained` of a run.

    trained-000003.growing   being written by one rank: an Arrow IPC stream without an end
    trained-000003.arrows    the same, finished

Each record has one step of one rank, a row for each sample: which one it is, and of each of its trained tokens the
advantage and the log-probability under the policy that the step began with. A file that a crash left behind stays
growing, which is as good to readers. Nothing in a run depends on these files; they are for people.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rollout.store import streams
from rollout.store.files import write_whole
from rollout.types import Address

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "trained"
_CACHED = 16
"""Records that a reader keeps: groups that lie together were mostly trained in few steps."""
GROWING, FINISHED = ".growing", ".arrows"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedSample:
    """Sample number `sample` of the group at `address`, as a step trained it. The arrays [M] have one number for each
    trained token, in order."""

    step: int
    address: Address
    sample: int
    advantages: npt.NDArray[np.float32]
    logprobs: npt.NDArray[np.float32]


class TrainedLog:
    """Appends what one rank trains to a file of its own, and begins another when that has `limit` bytes."""

    def __init__(self, folder: Path, limit: float) -> None:
        self._folder, self._limit = folder, limit
        self._path: Path | None = None
        self._descriptor = -1
        self._size = 0

    def append(self, samples: Sequence[TrainedSample]) -> None:
        """Write the samples of a step.

        Raises:
            OSError: the disk is full, say. Nothing of the step is in the file then.
        """
        if self._path is None:
            self._path, self._descriptor = _claim(self._folder)
            self._size = 0
            self._write(streams.header(schema()))
        self._write(streams.message(_batch(samples)))
        if self._size >= self._limit:
            self.close()

    def close(self) -> None:
        """Finish the file, if there is one. One that cannot be renamed stays growing, which is as good to readers."""
        path, self._path = self._path, None
        if path is not None:
            os.close(self._descriptor)
            with suppress(OSError):
                path.rename(path.with_suffix(FINISHED))

    def _write(self, content: bytes) -> None:
        write_whole(self._descriptor, content, self._size)
        self._size += len(content)


def read_trained(run_dir: str | Path) -> Iterator[TrainedSample]:
    """Every sample that was trained, file by file. Steps that a resumed run took again come again, later."""
    for path in paths(Path(run_dir) / FOLDER).values():
        for begin, size, _ in _rows(path):
            for of_group in _step_at(path, begin, size).values():
                yield from of_group.values()


class TrainedReader:
    """Finds what steps made of a group, without having it all in memory. The run may be going on."""

    def __init__(self, run_dir: str | Path) -> None:
        self._places: dict[tuple[int, Address], list[tuple[Path, int, int]]] = {}
        for path in paths(Path(run_dir) / FOLDER).values():
            for begin, size, rows in _rows(path):
                for step, segment, record in dict.fromkeys(rows):
                    key = step, Address(segment=segment, record=record)
                    self._places.setdefault(key, []).append((path, begin, size))
        self._step = lru_cache(maxsize=_CACHED)(_step_at)

    def of(self, step: int, address: Address) -> dict[int, TrainedSample]:
        """What a step trained of the group at an address, by the numbers of its samples; empty where that is not
        known."""
        found: dict[int, TrainedSample] = {}
        for path, begin, size in self._places.get((step, address), ()):
            found |= self._step(path, begin, size).get((step, address), {})
        return found


def _step_at(path: Path, begin: int, size: int) -> dict[tuple[int, Address], dict[int, TrainedSample]]:
    """The samples of the record of `size` bytes that begins there, by step and group."""
    import pyarrow as pa

    found: dict[tuple[int, Address], dict[int, TrainedSample]] = {}
    form = path if path.exists() else path.with_suffix(FINISHED)
    try:
        with pa.memory_map(str(form)) as source:
            source.seek(begin)
            step = streams.batch(source.read_buffer(size), schema())
    except (OSError, ValueError):  # deleted to save space, or damaged
        return found
    for one in _samples(step):
        found.setdefault((one.step, one.address), {})[one.sample] = one
    return found


def paths(folder: Path) -> dict[int, Path]:
    """The files by number, in order; of one that is there in both forms, the finished one."""
    found = {}
    for ending in (GROWING, FINISHED):
        for path in folder.glob(f"trained-*{ending}"):
            if (number := re.fullmatch(r"trained-(\d+)", path.stem)) is not None:
                found[int(number[1])] = path
    return dict(sorted(found.items()))


def trim(folder: Path, segments: Collection[int], first_own: int) -> list[Path]:
    """Delete the files about groups whose segments are all gone, but neither the newest, whose number must not be given
    again, nor one that may be growing: those from number `first_own` on that are not finished. `segments` are the
    numbers of those that are left. Return what was deleted."""
    deleted, found = [], paths(folder)
    for number, path in found.items():
        stays = number == max(found) or (path.suffix == GROWING and number >= first_own)
        if not stays and not {segment for _, segment, _ in _named(path)} & set(segments):
            path.unlink(missing_ok=True)
            deleted.append(path)
    return deleted


@cache
def schema() -> pa.Schema:
    import pyarrow as pa

    numbers = [(name, pa.int32()) for name in ("step", "segment", "record", "sample")]
    return pa.schema([*numbers, *((name, pa.list_(pa.float32())) for name in ("advantages", "logprobs"))])


def _batch(samples: Sequence[TrainedSample]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = {
        "step": [one.step for one in samples],
        "segment": [one.address.segment for one in samples],
        "record": [one.address.record for one in samples],
        "sample": [one.sample for one in samples],
        "advantages": [one.advantages for one in samples],
        "logprobs": [one.logprobs for one in samples],
    }
    return pa.RecordBatch.from_pydict(columns, schema=schema())


def _samples(batch: pa.RecordBatch) -> Iterator[TrainedSample]:
    steps, segments, records, numbers = (batch.column(i).to_pylist() for i in range(4))
    advantages, logprobs = (_split(batch.column(name)) for name in ("advantages", "logprobs"))
    for i in range(len(batch)):
        yield TrainedSample(
            step=steps[i],
            address=Address(segment=segments[i], record=records[i]),
            sample=numbers[i],
            advantages=advantages[i],
            logprobs=logprobs[i],
        )


def _split(column: pa.ListArray) -> list[npt.NDArray[np.float32]]:
    return np.split(column.values.to_numpy(), column.offsets.to_numpy()[1:-1])


def _rows(path: Path) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Where each record of a file begins, its bytes, and the step, segment and record of each of its rows. The arrays
    are not read. The file may be finished, or deleted, meanwhile. What comes after a torn record is left out."""
    import pyarrow as pa

    form = path if path.exists() else path.with_suffix(FINISHED)
    options = pa.ipc.IpcReadOptions(included_fields=[0, 1, 2])
    try:
        with pa.memory_map(str(form)) as source:
            batches = pa.ipc.open_stream(source, options=options)
            for begin, message in streams.records(form):
                columns = (column.to_pylist() for column in batches.read_next_batch().columns)
                yield begin, message.size, list(zip(*columns, strict=True))
    except (OSError, pa.ArrowInvalid):
        return


def _named(path: Path) -> Iterator[tuple[int, int, int]]:
    for _, _, rows in _rows(path):
        yield from rows


def _claim(folder: Path) -> tuple[Path, int]:
    """Begin a file with a number of its own, on a folder that all machines share."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max(paths(folder), default=0)
    while True:
        number += 1
        path = folder / f"trained-{number:06d}{GROWING}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            continue
        if not path.with_suffix(FINISHED).exists():  # else another rank began and finished it just now
            return path, descriptor
        os.close(descriptor)
        path.unlink()

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
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rollout.store.files import write_whole
from rollout.store.streams import header, message, messages
from rollout.types import Address

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "trained"
_CACHED = 64
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
            self._write(header(schema()))
        self._write(message(_batch(samples)))
        if self._size >= self._limit:
            self.close()

    def close(self) -> None:
        """Finish the file, if there is one."""
        if self._path is not None:
            os.close(self._descriptor)
            self._path.rename(self._path.with_suffix(FINISHED))
            self._path = None

    def _write(self, content: bytes) -> None:
        write_whole(self._descriptor, content, self._size)
        self._size += len(content)


def read_trained(run_dir: str | Path) -> Iterator[TrainedSample]:
    """Every sample that was trained, file by file. Steps that a resumed run took again come again, later."""
    for path in paths(Path(run_dir) / FOLDER).values():
        for batch, _ in _batches(path):
            yield from _samples(batch)


class TrainedReader:
    """Finds what steps made of a group, without having it all in memory. The run may be going on."""

    def __init__(self, run_dir: str | Path) -> None:
        self._places: dict[tuple[int, Address], list[tuple[Path, int]]] = {}
        for path in paths(Path(run_dir) / FOLDER).values():
            for batch, begin in _batches(path):
                steps, segments, records = (batch.column(i).to_pylist() for i in range(3))
                for step, segment, record in dict.fromkeys(zip(steps, segments, records, strict=True)):
                    key = step, Address(segment=segment, record=record)
                    self._places.setdefault(key, []).append((path, begin))
        self._step = lru_cache(maxsize=_CACHED)(_step_at)

    def of(self, step: int, address: Address) -> dict[int, TrainedSample]:
        """What a step trained of the group at an address, by the numbers of its samples; empty where that is not
        known."""
        found: dict[int, TrainedSample] = {}
        for path, begin in self._places.get((step, address), ()):
            found |= self._step(path, begin).get((step, address), {})
        return found


def _step_at(path: Path, begin: int) -> dict[tuple[int, Address], dict[int, TrainedSample]]:
    """The samples of the record that begins there, by step and group."""
    import pyarrow as pa

    found: dict[tuple[int, Address], dict[int, TrainedSample]] = {}
    form = path if path.exists() else path.with_suffix(FINISHED)
    try:
        with pa.memory_map(str(form)) as source:
            source.seek(begin)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema())
    except FileNotFoundError:  # deleted to save space
        return found
    for one in _samples(batch):
        found.setdefault((one.step, one.address), {})[one.sample] = one
    return found


def paths(folder: Path) -> dict[int, Path]:
    """The files by number, in order."""
    found = {}
    for path in folder.glob("trained-*"):
        if (number := re.fullmatch(r"trained-(\d+)", path.stem)) is not None and path.suffix in (GROWING, FINISHED):
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def trim(folder: Path, segments: Collection[int], first_own: int) -> list[Path]:
    """Delete the files about groups whose segments are all gone, but none that may be growing: those from number
    `first_own` on that are not finished. `segments` are the numbers of those that are left. Return what was deleted."""
    deleted = []
    for number, path in paths(folder).items():
        growing = path.suffix == GROWING and number >= first_own
        if not growing and not _segments(path) & set(segments):
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


def _batches(path: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The records of a file, which may be finished meanwhile, and where each begins. A torn one at its end is left
    out."""
    import pyarrow as pa

    form = path if path.exists() else path.with_suffix(FINISHED)
    if not form.exists():  # deleted to save space
        return
    with pa.memory_map(str(form)) as source:
        begin = len(header(schema()))
        for found, end in messages(source):
            yield pa.ipc.read_record_batch(found, schema()), begin
            begin = end


def _segments(path: Path) -> set[int]:
    return {number for batch, _ in _batches(path) for number in batch.column("segment").to_pylist()}


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

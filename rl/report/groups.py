"""The groups of a run for the page: an index that is there at once, and two packed parts of each for later."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rl.report.load import Load
from rl.report.packed import arrays, as_json, packed
from rollout.store import read
from rollout.store.reading import Stored
from rollout.store.trained import TrainedReader, TrainedSample
from rollout.types import Trajectory


@dataclass(slots=True)
class Kept:
    """The groups of a run that the page holds. Of `total` groups it has each `stride`-th, in the order of the store."""

    total: int = 0
    stride: int = 1
    index: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    token_ids: set[int] = field(default_factory=set)
    load: Load = field(default_factory=Load)


class Packer:
    """Packs groups into a file that nobody sees until they are written to the page (`parts`)."""

    def __init__(self, run: Path, limit: float) -> None:
        """`limit`: the bytes that the packed parts and the index may have."""
        self.kept = Kept()
        self._limit = limit
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._places: list[tuple[int, int, int]] = []
        self._size = 0
        trained: TrainedReader | None = None
        for ordinal, stored in enumerate(read(run)):
            trained = trained or TrainedReader(run)  # after the ledger: it knows then what every step made
            self.kept.total += 1
            for member in stored.group.trajectories:
                self.kept.load.add(member.spans)
            if ordinal % self.kept.stride == 0:
                self._keep(ordinal, stored, trained)

    def parts(self) -> Iterator[tuple[int, str, str]]:
        """Of each kept group its number in the index, and its packed messages and tokens."""
        for number, (begin, messages, tokens) in enumerate(self._places):
            self._file.seek(begin)
            yield number, self._file.read(messages).decode(), self._file.read(tokens).decode()

    def close(self) -> None:
        self._file.close()

    def _keep(self, ordinal: int, stored: Stored, trained: TrainedReader) -> None:
        found = {} if stored.step is None else trained.of(stored.step, stored.address)
        messages, tokens = _messages(stored), _tokens(stored, found)
        begin = self._file.seek(0, 2)
        self._file.write((messages + tokens).encode())
        self._places.append((begin, len(messages), len(tokens)))
        entry = _entry(stored, found)
        self.kept.index.append({"ordinal": ordinal, **entry})
        self.kept.sizes.append(len(messages) + len(tokens) + len(as_json(entry)))
        self._size += self.kept.sizes[-1]
        for sample in _samples(stored):
            self.kept.token_ids.update(np.unique(sample.token_ids).tolist())
        while self._size > self._limit and len(self.kept.sizes) > 1:
            self._thin()

    def _thin(self) -> None:
        """Keep each second of the kept groups, and from here on as few."""
        kept = self.kept
        kept.stride *= 2
        left = [i for i, entry in enumerate(kept.index) if entry["ordinal"] % kept.stride == 0]
        kept.index = [kept.index[i] for i in left]
        kept.sizes = [kept.sizes[i] for i in left]
        self._size = sum(kept.sizes)
        self._places = [self._places[i] for i in left]


def _entry(stored: Stored, trained: dict[int, TrainedSample]) -> dict[str, Any]:
    group = stored.group
    return {
        "id": group.id,
        "task": group.task.id,
        "source": group.task.source,
        "split": stored.split,
        "step": stored.step,
        "segment": stored.address.segment,
        "record": stored.address.record,
        "members": [
            {
                "reward": member.reward,
                "success": member.success,
                "stop": member.stop_reason,
                "outcome": member.outcome,
                "turns": len(member.turns),
                "tokens": sum(sample.trained_tokens for sample in member.samples),
                "versions": _versions(member),
                "advantage": _advantage(first, member, trained),
            }
            for first, member in _numbered(group.trajectories)
        ],
    }


def _numbered(members: Sequence[Trajectory]) -> Iterator[tuple[int, Trajectory]]:
    """Each trajectory with the number of its first sample in the group."""
    first = 0
    for member in members:
        yield first, member
        first += len(member.samples)


def _versions(member: Trajectory) -> list[int]:
    """The oldest and the newest policy version that sampled it; empty where nothing was sampled."""
    sampled = [sample.sampled_versions() for sample in member.samples]
    every = np.concatenate([np.zeros(0, np.int32), *sampled])
    return [int(every.min()), int(every.max())] if every.size else []


def _advantage(first: int, member: Trajectory, trained: dict[int, TrainedSample]) -> float | None:
    """The mean over its trained tokens; None where it was not trained."""
    found = [trained[first + i].advantages for i in range(len(member.samples)) if first + i in trained]
    every = np.concatenate([np.zeros(0, np.float32), *found])
    return _finite(float(every.mean())) if every.size else None


def _messages(stored: Stored) -> str:
    """What was said, and what rewards and tools measured."""
    members = [
        {
            "messages": member.messages,
            "parts": {name: _finite(value) for name, value in member.reward_parts.items()},
            "metrics": {name: _finite(value) for name, value in member.metrics.items()},
            "error": member.error,
            "spans": [asdict(span) for span in member.spans],
        }
        for member in stored.group.trajectories
    ]
    return packed(as_json({"prompt": stored.group.task.messages, "members": members}))


def _tokens(stored: Stored, trained: dict[int, TrainedSample]) -> str:
    """The tokens of all samples: what was sampled, and what the step made of it, in half precision."""
    samples = _samples(stored)
    counts = [trained[number].advantages.size if number in trained else 0 for number in range(len(samples))]
    about = [
        {"member": member, "length": len(sample), "trained": count}
        for member, sample, count in zip(_owners(stored), samples, counts, strict=True)
    ]
    found = [trained[number] for number in sorted(trained)]
    behaviour = [samples[one.sample].logprobs[samples[one.sample].loss_mask == 1] for one in found]
    empty = np.zeros(0, np.float32)
    columns: dict[str, Sequence[npt.NDArray[Any]]] = {
        "ids": [np.zeros(0, np.int32), *(sample.token_ids for sample in samples)],
        "versions": [np.zeros(0, np.int32), *(sample.versions for sample in samples)],
        "logprobs": [_half(sample.logprobs[sample.loss_mask == 1]) for sample in samples] or [_half(empty)],
        "advantages": [one.advantages for one in found] or [empty],
        "log_ratios": [_half(one.logprobs - old) for one, old in zip(found, behaviour, strict=True)] or [_half(empty)],
    }
    return packed(arrays({"samples": about}, columns))


def _samples(stored: Stored) -> list[Any]:
    return [sample for member in stored.group.trajectories for sample in member.samples]


def _owners(stored: Stored) -> list[int]:
    """The number of the trajectory that each sample is of."""
    return [number for number, member in enumerate(stored.group.trajectories) for _ in member.samples]


def _half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    return np.clip(values, -65000, 65000).astype(np.float16)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""The bookkeeping of one update of an engine: what was announced, and what has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewards.errors import listed
from rollout.contracts import EngineError
from rollout.types import WeightSpec

if TYPE_CHECKING:
    from rollout.transfer.bucket import Bucket


class WeightUpdateError(EngineError):
    """A weight update failed, or was called out of order. The engine keeps the weights that it had, or stays paused,
    until a whole update succeeds."""


@dataclass(slots=True)
class Update:
    """An update to `version`. Tensors arrive in buckets, each once and in order; the last one may be repeated."""

    version: int
    expected: frozenset[str]
    loaded: dict[str, str] = field(default_factory=dict)
    """The digest of each tensor that has arrived; empty where the push is not verified."""
    last_sequence: int | None = None

    @classmethod
    def of(cls, version: int, manifest: Sequence[WeightSpec]) -> Update:
        return cls(version=version, expected=frozenset(spec.name for spec in manifest))

    def is_due(self, bucket: Bucket) -> bool:
        """Whether none is missing between this bucket and the last one. Of the first one that is not known."""
        return self.last_sequence is None or bucket.sequence <= self.last_sequence + 1

    def is_new(self, bucket: Bucket) -> bool:
        """Whether a bucket must be loaded; False for a repetition of the last one.

        Raises:
            ValueError: a bucket was lost, or this one has tensors that were not announced or were sent already.
        """
        if bucket.sequence == self.last_sequence:
            return False
        if self.last_sequence is not None and bucket.sequence != self.last_sequence + 1:
            raise ValueError(f"bucket {bucket.sequence} came after bucket {self.last_sequence}")
        unknown = [name for name in bucket.names if name not in self.expected or name in self.loaded]
        if unknown:
            raise ValueError(f"{listed(unknown)}: not announced in the manifest, or sent twice")
        return True

    def add(self, bucket: Bucket) -> None:
        """Note that a bucket has been loaded."""
        self.loaded.update(zip(bucket.names, bucket.digests or [""] * len(bucket.names), strict=True))
        self.last_sequence = bucket.sequence

    def check_complete(self, version: int) -> None:
        """Raise ValueError unless this is the update to `version` and all that was announced has arrived."""
        if self.version != version:
            raise ValueError(f"finish_update({version}) while version {self.version} is loading")
        if missing := sorted(self.expected - self.loaded.keys()):
            raise ValueError(f"announced but never sent: {listed(missing)}")


@dataclass(slots=True)
class Findings:
    """What was found of the tensors that were sent in a model: how many it computes with, the names of those that it
    holds with other values, and of those that cannot be found in it."""

    same: int = 0
    differ: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

"""The life of a weight version, as trainer rank 0 sees it.

    pause(keep) → begin_update → every bucket → finish_update(version) → [verify] → resume

`verify` proves two things. What arrived is what was sent: every worker of every engine hashes each tensor it received,
by name, and compares that with the sender's hash of its own, before anything is loaded. And the replicas agree: their
checksums of the weights as they compute with them, fused and packed, are equal. Always checked: that every announced
tensor came, and that every weight of the model was filled. What only tests prove: that the names mean the same on both
sides and that vLLM fuses and packs rightly (tests/rl/weights/test_push_equals_export.py); at run time the gap between
the engine's and the trainer's logprobs of fresh tokens (`mismatch/*`) would show it.

Every rank walks the source's buckets, because gathering one is a collective; only rank 0 has `engines` and sends. A
stage that fails or misses its deadline is remembered, the remaining buckets are still gathered (or the other ranks
would wait in their collective for ever), and the error is raised at the end with the stage's name. `resume` is called
in a `finally`; an engine whose update did not finish refuses it and stays paused, so nothing is sampled from half of
two versions. Publishing the same version again is safe: a retry starts the update over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rollout.transfer.config import WeightSyncConfig
from rollout.types import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from rollout.transfer.bucket import Sender


class Source(Protocol):
    """What `rl.weights.source.WeightSource` offers."""

    def manifest(self) -> list[WeightSpec]: ...

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]: ...


class Engines(Protocol):
    """All replicas at once. `start` calls a method on each and returns at once; `wait` returns their results in order.

    `wait` raises TimeoutError after `timeout_s`, or what the engine raised.
    """

    def start(self, method: str, *args: Any) -> Any: ...

    def wait(self, started: Any, timeout_s: float) -> list[Any]: ...


class PublishError(RuntimeError):
    """A weight version did not reach every engine. Names the version, the stage and what the engine said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """One push: `bytes` of full tensors in `buckets` messages, and the seconds engines stood still for it."""

    version: int
    bytes: int
    buckets: int
    paused_s: float


def publish(
    source: Source, version: int, cfg: WeightSyncConfig, engines: Engines | None, sender: Sender | None, verify: bool
) -> PublishReport | None:
    """Push the source's weights as `version`. A collective of all trainer ranks; the report is rank 0's.

    Raises:
        PublishError: on rank 0, after every rank has left the collective.
    """
    max_bytes = int(cfg.bucket_mb * 2**20)
    if engines is None or sender is None:
        for _ in source.buckets(max_bytes):
            pass
        return None
    return _Push(source, version, cfg, engines, sender).run(max_bytes, verify)


class _Push:
    """Rank 0's half of one push: the first error wins, later stages are skipped."""

    def __init__(self, source: Source, version: int, cfg: WeightSyncConfig, engines: Engines, sender: Sender) -> None:
        self._source, self._version, self._engines, self._sender = source, version, engines, sender
        self._manifest = source.manifest()
        self._bytes = sum(spec.nbytes for spec in self._manifest)
        self._deadline_s = cfg.deadline_s(self._bytes)
        self._error: PublishError | None = None

    def run(self, max_bytes: int, verify: bool) -> PublishReport:
        started = time.monotonic()
        self._stage("pause")
        try:
            self._stage("begin_update", self._version, self._manifest)
            count = self._send_all(max_bytes, verify)
            self._stage("finish_update", self._version)
            if verify and self._error is None:
                self._compare_replicas()
        finally:
            self._resume()
        if self._error is not None:
            raise self._error
        return PublishReport(
            version=self._version, bytes=self._bytes, buckets=count, paused_s=time.monotonic() - started
        )

    def _stage(self, method: str, *args: Any) -> list[Any]:
        if self._error is not None:
            return []
        return self._wait(method, self._engines.start(method, *args))

    def _wait(self, method: str, started: Any) -> list[Any]:
        try:
            return self._engines.wait(started, self._deadline_s)
        except Exception as error:
            self._fail(method, error)
            return []

    def _fail(self, stage: str, error: Exception) -> None:
        if self._error is not None:
            return
        # An engine that waits for a broadcast which failed here says no more than that it waited.
        own = self._sender.abandon()
        self._error = PublishError(
            f"weights version {self._version}: stage {stage} failed "
            f"(deadline {self._deadline_s:.0f} s, {self._bytes / 2**20:.1f} MiB): {type(error).__name__}: {error}"
            + ("" if own in (None, error) else f"; the sender: {type(own).__name__}: {own}")
        )
        self._error.__cause__ = error

    def _send_all(self, max_bytes: int, verify: bool) -> int:
        """Engines load one bucket while the ranks gather the next; at most two are alive."""
        count, loading = 0, None
        for bucket in self._source.buckets(max_bytes):
            if self._error is not None:
                continue
            if loading is not None:
                self._wait("load_bucket", loading)
            if self._error is not None:
                continue
            try:
                description = self._sender.send(bucket, verify)
            except Exception as error:
                self._fail("send", error)
                continue
            loading = self._engines.start("load_bucket", description)
            count += 1
        if loading is not None and self._error is None:
            self._wait("load_bucket", loading)
        return count

    def _compare_replicas(self) -> None:
        """Replicas of one version must hold the same weights, bit for bit."""
        checksums = self._stage("checksums")
        for replica, other in enumerate(checksums[1:], start=1):
            names = sorted(n for n in checksums[0].keys() | other.keys() if checksums[0].get(n) != other.get(n))
            if names:
                self._fail("verify", ValueError(f"engine {replica} differs from engine 0 in {', '.join(names[:5])}"))

    def _resume(self) -> None:
        try:
            self._engines.wait(self._engines.start("resume"), self._deadline_s)
        except Exception as error:
            self._fail("resume", error)

"""Push a weight version from the trainer to every engine. Trainer rank 0 drives these stages:

    whole weights   begin_update → every bucket → pause → finish_update(version) → resume
    an adapter      begin_adapter → every bucket → finish_adapter(version) → use_adapter(version)

Engines collect the buckets while they sample, and stand still only to load the version. Where the transport has no
stage for that (nccl, ipc), `pause` comes first, and every bucket is loaded as it arrives.
An adapter's push pauses nothing: engines give it to new requests once all of them hold it (rollout.lora.updates).

Every push checks that all announced tensors arrived and that every weight of the model was filled. `verify` proves two
more things:
  * The tensors arrived as they were sent. Every engine hashes each tensor, where it has collected or received it, and
    compares the hash with the sender's for the same name.
  * Engines compute with what was sent. Where they have collected it, that is compared afterwards, while they sample
    (`rl.weights.read_back`). Elsewhere the replicas' checksums of the weights in the form that they compute with are
    compared with each other, before they sample again.
Only tests prove that the names mean the same on both sides (tests/rl/weights/test_push_equals_export.py). During a run,
an error there would show as a gap between the engine's and the trainer's logprobs of fresh tokens (`mismatch/*`).

Every rank walks the source's buckets, because gathering one is a collective; only rank 0 has `engines` and sends. When
a stage fails or misses its deadline, rank 0 remembers the error and still gathers the remaining buckets: otherwise the
other ranks would wait in their collective for ever. It raises the error at the end, with the stage's name. `resume` is
called in a `finally`, unless replicas differ, or the driver does it later because trainer and engines take turns on
their devices (rl.driver.turns). An engine that has loaded only a part of a version refuses it and stays paused, so
nothing is sampled from a mixture of two versions. Publishing the same version again is safe: a retry starts the update
over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from rl.weights.compare import unlike
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.content import content_hash
from rollout.types import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from rollout.transfer.bucket import Follower, Sender, Tensors


class Source(Protocol):
    """The methods of `rl.weights.source.WeightSource` that a push uses."""

    def manifest(self) -> list[WeightSpec]: ...

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]: ...


class Engines(Protocol):
    """The engines of a push together, with their `numbers` in the run. `start` calls a method on each without waiting;
    `done` says whether all have answered; `wait` returns the results in order. `only` has one of them alone.

    `wait` raises TimeoutError after `timeout_s`, or the error that an engine raised.
    """

    @property
    def numbers(self) -> Sequence[int]: ...

    def only(self, number: int) -> Engines: ...

    def start(self, method: str, *args: Any) -> Any: ...

    def done(self, started: Any) -> bool: ...

    def wait(self, started: Any, timeout_s: float) -> list[Any]: ...


class PublishError(RuntimeError):
    """A weight version did not reach every engine. The message has the version, the stage and the stage's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """One push: `bytes` of full tensors in `buckets` messages, and the seconds for which engines stood still, from
    `pause` to the end of `resume`, 0 for an adapter.

    `verified` is the number of replicas that were found equal, with every tensor as it was sent; 0 without `verify`.
    Of an adapter it is the number of those that got every tensor as it was sent, which is always compared. `content`
    is the content hash of what they hold then, empty where nothing was compared. `superseded` requests were given up
    for room. `readable` tensors were verified and can now be read back; 0 where engines have not kept them.
    """

    version: int
    bytes: int
    buckets: int
    verified: int
    paused_s: float
    content: str = ""
    superseded: int = 0
    readable: int = 0


def publish(
    source: Source,
    version: int,
    cfg: WeightSyncConfig,
    engines: Engines | None,
    sender: Follower,
    verify: bool,
    *,
    resume: bool = True,
) -> PublishReport | None:
    """Push the source's weights as `version`. A collective of all trainer ranks; only rank 0 returns a report.

    Args:
        engines: on rank 0 alone.
        sender: a `Sender` on rank 0.
        resume: whether the engines sample again afterwards.

    Raises:
        PublishError: on rank 0, after all buckets have been gathered.
    """
    return _push(_Push, source, version, cfg, engines, sender, verify, resume)


def publish_adapter(
    source: Source, version: int, cfg: WeightSyncConfig, engines: Engines | None, sender: Follower, verify: bool
) -> PublishReport | None:
    """Push an adapter to engines that hold its base model. Otherwise as `publish`."""
    return _push(_AdapterPush, source, version, cfg, engines, sender, verify, resume=False)


def _push(
    kind: type[_Push],
    source: Source,
    version: int,
    cfg: WeightSyncConfig,
    engines: Engines | None,
    sender: Follower,
    verify: bool,
    resume: bool,
) -> PublishReport | None:
    max_bytes = int(cfg.bucket_mb * 2**20)
    try:
        if engines is not None:
            return kind(source, version, cfg, engines, cast("Sender", sender), resume).run(max_bytes, verify)
        for bucket in source.buckets(max_bytes):
            sender.follow(bucket)
        return None
    finally:
        sender.rest()


class _Push:
    """Rank 0's part of one push. It keeps the first error and skips the stages after it."""

    _load = "load_bucket"

    def __init__(
        self, source: Source, version: int, cfg: WeightSyncConfig, engines: Engines, sender: Sender, resume: bool
    ) -> None:
        self._source, self._version, self._engines, self._sender = source, version, engines, sender
        self._resumes = resume
        self._manifest = source.manifest()
        self._bytes = sum(spec.nbytes for spec in self._manifest)
        self._deadline_s = cfg.deadline_s(self._bytes)
        self._error: PublishError | None = None
        self._verified, self._differ = 0, False
        self._paused_at = 0.0
        self._running: deque[tuple[str, Any]] = deque()
        self._digests: dict[str, str] = {}
        self._superseded = 0
        self._ahead = sender.ahead

    def run(self, max_bytes: int, verify: bool) -> PublishReport:
        if not self._sender.stages:
            self._pause()
        try:
            self._start("begin_update", self._version, self._manifest)
            count = self._send_all(max_bytes, verify)
            if self._sender.stages:
                self._pause()
            self._stage("finish_update", self._version)
            if verify:
                self._compare_contents()
            if verify and not self._sender.stages:
                self._compare_checksums()
        finally:
            if self._resumes and not self._differ:
                self._resume()
        paused_s = time.monotonic() - self._paused_at
        if self._error is not None:
            raise self._error
        return self._report(count, paused_s, readable=len(self._manifest) if verify and self._sender.stages else 0)

    def _pause(self) -> None:
        self._paused_at = time.monotonic()
        self._stage("pause")

    def _report(self, buckets: int, paused_s: float, readable: int) -> PublishReport:
        return PublishReport(
            version=self._version,
            bytes=self._bytes,
            buckets=buckets,
            verified=self._verified,
            paused_s=paused_s,
            content=content_hash(self._digests) if self._verified else "",
            superseded=self._superseded,
            readable=readable,
        )

    def _stage(self, method: str, *args: Any) -> list[Any]:
        if self._error is not None:
            return []
        return self._wait(method, self._engines.start(method, *args))

    def _start(self, method: str, *args: Any) -> None:
        """Start a stage, for whose end `_settle` waits."""
        if self._error is None:
            self._running.append((method, self._engines.start(method, *args)))

    def _settle(self, most: int = 0) -> None:
        """Wait until of the stages that were started at most so many run."""
        while len(self._running) > most and self._error is None:
            self._wait(*self._running.popleft())

    def _wait(self, method: str, started: Any) -> list[Any]:
        try:
            return self._engines.wait(started, self._deadline_s)
        except Exception as error:
            self._fail(method, error)
            return []

    def _fail(self, stage: str, error: Exception) -> None:
        if self._error is not None:
            return
        # If the broadcast failed on this side, engines only report a timeout. So add the sender's own error.
        own = self._sender.abandon()
        self._error = PublishError(
            f"weights version {self._version}: stage {stage} failed "
            f"(deadline {self._deadline_s:.0f} s, {self._bytes / 2**20:.1f} MiB): {type(error).__name__}: {error}"
            + ("" if own in (None, error) else f"; the sender: {type(own).__name__}: {own}")
        )
        self._error.__cause__ = error

    def _send_all(self, max_bytes: int, verify: bool) -> int:
        """Send every bucket and return how many were sent. While engines take those that may be on their way together,
        the ranks gather the next, and its digests are computed. A sender that keeps them never waits: as soon as
        engines have taken some, they are told of all that have come since."""
        count, kept = 0, []
        for bucket in self._source.buckets(max_bytes):
            digests = self._prepare(bucket, verify)
            if not self._sender.keeps or self._idle():
                # Engines must have the first one to know which is the next.
                self._settle(self._ahead - 1 if count > 1 else 0)
            if self._error is not None:
                self._sender.follow(bucket)
                continue
            try:
                description = self._sender.send(bucket, digests)
            except Exception as error:
                self._fail("send", error)
                continue
            self._digests |= dict(zip(description.names, digests, strict=False))
            kept.append(description)
            if not self._sender.keeps or not self._running:
                self._start(self._load, *kept)
                kept = []
            count += 1
        self._settle()
        if kept:
            self._start(self._load, *kept)
            self._settle()
        return count

    def _idle(self) -> bool:
        """Whether engines have ended the stage that was started."""
        return all(self._engines.done(started) for _, started in self._running)

    def _prepare(self, bucket: Tensors, verify: bool) -> tuple[str, ...]:
        """Do this side's part for a bucket while engines take the one before. Returns its digests, if wanted."""
        if self._error is not None:
            return ()
        try:
            return self._sender.prepare(bucket, verify)
        except Exception as error:
            self._fail("send", error)
            return ()

    def _compare_contents(self) -> None:
        """Fail the push unless every engine has got what was sent. One that has not stays paused: what it sampled would
        carry the version of weights that it does not come from."""
        sent, held = content_hash(self._digests), self._stage("content")
        for number, content in zip(self._engines.numbers, held, strict=False):
            if content != sent:
                self._fail_replica(f"engine {number} holds weights of another content than was sent")
        self._verified = len(held)

    def _compare_checksums(self) -> None:
        """Fail the push unless all replicas hold the same weights."""
        for difference in unlike(self._stage("checksums"), self._engines.numbers):
            self._fail_replica(difference)

    def _fail_replica(self, what: str) -> None:
        self._differ = True
        self._fail("verify", ValueError(what))

    def _resume(self) -> None:
        try:
            self._engines.wait(self._engines.start("resume"), self._deadline_s)
        except Exception as error:
            self._fail("resume", error)


class _AdapterPush(_Push):
    """Rank 0's part of an adapter's push. Every engine compares digests of all tensors with the sender's."""

    _load = "load_adapter"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ahead = 1  # engines do not put an adapter's buckets in order

    def run(self, max_bytes: int, verify: bool) -> PublishReport:
        self._superseded = sum(self._stage("begin_adapter", self._version, self._manifest))
        count = self._send_all(max_bytes, verify=True)  # it is small
        held = self._stage("finish_adapter", self._version)
        self._verified = len(held)
        self._stage("use_adapter", self._version)
        if self._error is not None:
            raise self._error
        return self._report(count, paused_s=0.0, readable=0)

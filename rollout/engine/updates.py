"""The whole weights of one engine: which version they are, and how the next one arrives.

    collected       begin → load … → (pause) finish       the engine samples until `finish`, which loads all of it
    streamed        (pause) begin → load … → finish       the engine stands still, and loads every bucket as it arrives

The transport decides which (`rollout.transfer.bucket.Stage`). What fails while a version is collected leaves the engine
as it was. What fails while it is loaded leaves a mixture of two versions, the `damage`, until a whole version succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.contracts import EngineDeadError
from rollout.engine.arrivals import Arrivals
from rollout.engine.settings import EngineSettings
from rollout.transfer.bucket import Bucket, StagePlace
from rollout.transfer.content import content_hash
from rollout.transfer.registry import make_transport
from rollout.transfer.update import Findings, Update, WeightUpdateError
from rollout.types import WeightSpec

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")

READ_BYTES = 8 * 2**20
"""The most bytes, but for a larger tensor, that are read back between two steps of an engine."""

ORDER_S = 10.0
"""How long a bucket that came too early waits for those before it."""

Call = Callable[[Callable[["LLMEngine"], Any]], Awaitable[Any]]
"""Runs a command on the engine's thread, between two steps."""


class Updates:
    """What both ways share. `call` runs a command in the engine; with `recompute` requests that run lose their KV cache
    with a new version."""

    def __init__(self, call: Call, replica: int, *, recompute: bool) -> None:
        self._call, self._replica, self._recompute = call, replica, recompute
        self._update: Update | None = None
        self._loading = asyncio.Condition()
        self.version: int | None = None
        self.damage: str | None = None
        """Why the engine must not sample."""
        self.content = ""
        """The content hash of the last weights that were pushed whole and verified."""

    async def begin(self, version: int, manifest: Sequence[WeightSpec]) -> None:
        """Expect `version`; `manifest` lists every tensor that will be sent. Another call starts over.

        Raises:
            WeightUpdateError: the engine has a newer version.
        """
        if self.version is not None and version < self.version:
            raise WeightUpdateError(f"update to version {version}: the engine has version {self.version} already")
        self._update = None
        await self._expect(version)
        self._update = Update.of(version, manifest)

    async def load(self, bucket: Bucket) -> None:
        """Collect, or load, one bucket, after those that were sent before it: Ray may bring a call earlier than the one
        before. Repeating the last one does nothing.

        Raises:
            WeightUpdateError: no update is open, a name was not announced, was sent twice or is unknown to the model,
                a tensor does not fit or was damaged on the way (if the bucket carries digests), or a bucket was
                lost. Begin the update again.
        """
        update = self._opened("load_bucket")
        async with self._loading:
            with suppress(TimeoutError):
                async with asyncio.timeout(ORDER_S):
                    await self._loading.wait_for(lambda: update is not self._update or update.is_due(bucket))
            if update is not self._update:
                raise WeightUpdateError(f"load_bucket: the update to version {update.version} has ended")
            try:
                if self._checked(lambda: update.is_new(bucket)):
                    await self._take(update.version, bucket)
                    update.add(bucket)
            finally:
                self._loading.notify_all()

    async def finish(self, version: int) -> int:
        """Make what has arrived version `version`. Repeating it does nothing.

        Raises:
            WeightUpdateError: another or no update is open, announced tensors are missing, or weights of the model
                were not sent. Begin the update again.
        """
        if self._update is None and self.damage is None and self.version == version:
            return version
        update = self._opened("finish_update")
        self._checked(lambda: update.check_complete(version))
        await self._complete(version)
        self.content = content_hash(update.loaded)
        self.version, self._update, self.damage = version, None, None
        return version

    async def read_back(self) -> Findings | None:
        """Compare the weights that the engine computes with, with those that arrived last; None if these are not here
        any more, or not whole."""
        return None

    def give_up(self, why: str) -> None:
        """Note that the engine has no weights any more."""
        self.damage, self._update = why, None

    def close(self) -> None:
        """Free everything. Idempotent."""

    async def clear(self) -> None:
        """Expect the buckets of an adapter."""

    async def arrived(self, version: int, bucket: Bucket) -> Bucket:
        """Return the description of an adapter's bucket with which workers can receive it."""
        raise NotImplementedError

    async def _expect(self, version: int) -> None:
        raise NotImplementedError

    async def _take(self, version: int, bucket: Bucket) -> None:
        raise NotImplementedError

    async def _complete(self, version: int) -> None:
        raise NotImplementedError

    def _failed(self, why: str) -> None:
        """The update has failed, for that reason."""
        self._update = None

    def _opened(self, method: str) -> Update:
        if self._update is None:
            raise WeightUpdateError(f"{method}: no update is open ({self.damage or 'call begin_update first'})")
        return self._update

    def _checked(self, check: Callable[[], T]) -> T:
        """The result of a check of the open update. What it raises ends the update."""
        assert self._update is not None
        try:
            return check()
        except ValueError as error:
            why = f"the update to version {self._update.version} failed: {error}"
            self._failed(why)
            raise WeightUpdateError(why) from None

    async def _stage(self, stage: str, version: int, run: Callable[[LLMEngine], Any]) -> None:
        """Run a command that changes the engine's weights."""
        try:
            await self._call(run)
        except EngineDeadError:
            raise
        except Exception as error:
            self._update = None
            self.damage = f"the update to version {version} failed in {stage}: {error}"
            raise WeightUpdateError(self.damage) from error


class Collected(Updates):
    """A version that arrives while the engine samples."""

    def __init__(self, call: Call, arrivals: Arrivals, replica: int, *, recompute: bool) -> None:
        super().__init__(call, replica, recompute=recompute)
        self._arrivals = arrivals

    def close(self) -> None:
        self._arrivals.close()

    async def clear(self) -> None:
        if self.damage is not None:
            await self._call(_settled)  # a version that was given up may still be loading
        await self._arrivals.begin()

    async def arrived(self, version: int, bucket: Bucket) -> Bucket:
        try:
            return await self._arrivals.collect(bucket)
        except Exception as error:
            why = f"the update to version {version} failed on its way: {error}"
            self._failed(why)
            raise WeightUpdateError(why) from error

    async def read_back(self) -> Findings | None:
        """The engine samples on between the parts."""
        await self._call(lambda llm: llm.collective_rpc("sluice_begin_read_back"))
        found: list[Findings] = []
        for bucket in self._arrivals.collected:
            for first, last in parts(bucket, READ_BYTES):
                arguments = (bucket, first, last)
                found = await self._call(partial(_collective, method="sluice_read_back", arguments=arguments))
        return found[0] if len(found) == 1 else None

    async def _expect(self, version: int) -> None:
        await self.clear()

    async def _take(self, version: int, bucket: Bucket) -> None:
        await self.arrived(version, bucket)

    async def _complete(self, version: int) -> None:
        self.damage = f"the update to version {version} did not finish"
        collected = self._arrivals.collected
        await self._stage("apply", version, lambda llm: _apply(llm, collected, version, self._recompute))


class Streamed(Updates):
    """A version that the engine loads as it arrives, while it stands still."""

    _membership: dict[str, Any] | None = None

    async def arrived(self, version: int, bucket: Bucket) -> Bucket:
        """All replicas join the sender at the same time: before its first bucket, and again when a bucket names another
        group."""
        membership = bucket.join(self._replica)
        if membership is not None and membership != self._membership:
            info = {"membership": membership}
            await self._stage("load", version, lambda llm: worker(llm, "init_weight_transfer_engine", init_info=info))
            self._membership = membership
        return bucket

    async def _expect(self, version: int) -> None:
        self.damage = f"the update to version {version} did not finish"
        await self._stage("begin", version, _begin)

    async def _take(self, version: int, bucket: Bucket) -> None:
        await self.arrived(version, bucket)
        await self._stage("load", version, lambda llm: _load_bucket(llm, bucket))

    async def _complete(self, version: int) -> None:
        await self._stage("finish", version, lambda llm: _finish(llm, version, self._recompute))

    def _failed(self, why: str) -> None:
        super()._failed(why)
        self.damage = why


def updates(call: Call, settings: EngineSettings, replica: int, address: str) -> Updates:
    """The updates of an engine on the machine with that address."""
    recompute = settings.cache_policy == "recompute"
    stage = make_transport(settings.transport).stage(StagePlace(address=address))
    if stage is None:
        return Streamed(call, replica, recompute=recompute)
    return Collected(call, Arrivals(stage, replica), replica, recompute=recompute)


def worker(llm: LLMEngine, method: str, **arguments: Any) -> None:
    """Call a method of every vLLM worker."""
    llm.collective_rpc(method, kwargs=arguments)


def parts(bucket: Bucket, most: int) -> Iterator[tuple[int, int]]:
    """Places in a bucket from the first up to the last of parts of so many bytes, or of a larger tensor."""
    first, size = 0, 0
    for place, spec in enumerate(bucket.tensors):
        if size and size + spec.nbytes > most:
            yield first, place
            first, size = place, 0
        size += spec.nbytes
    yield first, len(bucket.tensors)


def _collective(llm: LLMEngine, method: str, arguments: tuple[Any, ...]) -> Any:
    return llm.collective_rpc(method, args=arguments)


def _settled(llm: LLMEngine) -> None:
    """Every command before this one has ended."""


def _begin(llm: LLMEngine) -> None:
    llm.collective_rpc("sluice_abandon_update")
    llm.collective_rpc("start_weight_update")


def _load_bucket(llm: LLMEngine, bucket: Bucket) -> None:
    worker(llm, "update_weights", update_info={"bucket": bucket})


def _finish(llm: LLMEngine, version: int, recompute: bool) -> None:
    llm.collective_rpc("finish_weight_update")
    llm.set_weight_version(str(version))
    if recompute:
        llm.reset_prefix_cache(reset_running_requests=True)


def _apply(llm: LLMEngine, collected: Sequence[Bucket], version: int, recompute: bool) -> None:
    _begin(llm)
    for bucket in collected:
        _load_bucket(llm, bucket)
    _finish(llm, version, recompute)

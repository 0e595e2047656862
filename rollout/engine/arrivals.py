"""The buckets of a weight version, or of an adapter, as they arrive in an engine's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rollout.transfer.bucket import Bucket, Stage

T = TypeVar("T")


class Arrivals:
    """A stage on a thread of its own, and what it has collected."""

    def __init__(self, stage: Stage, replica: int) -> None:
        self._stage, self._replica = stage, replica
        self._membership: dict[str, Any] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")
        self._receiving = 0
        self.collected: list[Bucket] = []

    async def begin(self) -> None:
        """Expect the buckets of another version. A bucket that has not arrived yet never will."""
        if self._receiving:
            self._membership = None
            self._stage.interrupt()
        self.collected = []
        await self._run(self._stage.begin)

    async def collect(self, bucket: Bucket) -> Bucket:
        """Bring a bucket to this machine, and return its description there. Repeating the last one does nothing."""
        collected = self.collected  # `begin` may come meanwhile, and then this bucket belongs to nothing any more
        if collected and collected[-1].sequence == bucket.sequence:
            return collected[-1]
        membership = bucket.join(self._replica)
        if membership is not None and membership != self._membership:
            self._membership = None
            await self._run(self._stage.join, membership)
            self._membership = membership
        self._receiving += 1
        try:
            stored: Bucket = await self._run(self._stage.receive, bucket)
        finally:
            self._receiving -= 1
        collected.append(stored)
        return stored

    def close(self) -> None:
        """Give up whatever is arriving."""
        self._stage.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

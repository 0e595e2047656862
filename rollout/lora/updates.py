"""An engine's adapters: how one arrives, and which request uses which.

    begin(version) → load(bucket) … → finish(version) → use(version)

No request pauses meanwhile. `finish` puts the adapter into a slot beside the others; the driver calls `use` once all
engines have finished. A request that runs keeps the adapter that it began with. Where no slot is free, the oldest
adapter goes, and its requests are given up as `Superseded`: with staleness bound S there are S + 2 slots, so that what
they sample is older than S versions by the time it could be trained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from rollout.contracts import Superseded
from rollout.lora.slots import Slots
from rollout.transfer.bucket import Bucket
from rollout.transfer.update import Update, WeightUpdateError
from rollout.types import WeightSpec

Rpc = Callable[..., Awaitable[Any]]
"""Calls a method of every vLLM worker by name, between two steps of the engine."""


class Adapters:
    """The adapters of one engine. `abort` ends a running request with an error."""

    def __init__(self, slots: int, rpc: Rpc, abort: Callable[[str, Exception], Awaitable[None]]) -> None:
        self._slots = Slots(slots)
        self._rpc = rpc
        self._abort = abort
        self._update: Update | None = None
        self._arriving = asyncio.Lock()
        """Held during a stage: a late one must not mix with those of a repeated push."""

    @property
    def newest(self) -> int | None:
        """The version that new requests use; None before the first."""
        return self._slots.newest

    @property
    def loaded(self) -> list[int]:
        """The versions that the engine holds."""
        return self._slots.loaded

    @property
    def expected(self) -> int:
        """The version whose tensors are expected."""
        return self._open().version

    def take(self, request_id: str) -> int:
        """The version that a new request uses to its end."""
        return self._slots.begin(request_id)

    async def give_back(self, request_id: str, version: int) -> None:
        """Note that a request has ended, and unload what nobody uses any more."""
        self._slots.end(request_id, version)
        await self._unload(self._slots.idle())

    async def begin(self, version: int, manifest: Sequence[WeightSpec]) -> int:
        """Make room for an adapter, and expect its tensors. Another call starts over.

        Returns the number of requests that were given up for room.

        Raises:
            WeightUpdateError: new requests use a newer one already.
        """
        async with self._arriving:
            if self.newest is not None and version < self.newest:
                raise WeightUpdateError(f"adapter of version {version}: the engine uses version {self.newest} already")
            crowded_out = self._slots.crowded_out(version)
            reasons = {
                request_id: Superseded(f"the adapter of version {old} had to go for that of {version}")
                for old, requests in crowded_out.items()
                for request_id in requests
            }
            # All at once: the engine takes a step between two commands that do not wait together.
            await asyncio.gather(*(self._abort(request_id, reason) for request_id, reason in reasons.items()))
            await self._unload([*crowded_out])
            await self._rpc("sluice_begin_adapter")
            self._update = Update.of(version, manifest)
            return len(reasons)

    async def load(self, bucket: Bucket) -> None:
        """Receive one bucket; repeating the last one does nothing.

        Raises:
            WeightUpdateError: no adapter is expected, or the bucket is not the next one.
        """
        async with self._arriving:
            update = self._open()
            if self._checked(partial(update.is_new, bucket)):
                await self._rpc("sluice_receive_adapter", bucket)
                update.add(bucket)

    async def finish(self, version: int) -> None:
        """Put the adapter into a slot. Repeating it does nothing.

        Raises:
            WeightUpdateError: tensors are missing.
        """
        async with self._arriving:
            if self._update is None and version in self.loaded:
                return
            self._checked(partial(self._open().check_complete, version))
            await self._rpc("sluice_put_adapter", version)
            self._slots.add(version)
            self._update = None

    async def use(self, version: int) -> None:
        """Give new requests the adapter, and unload older ones that nobody uses. Repeating it does nothing."""
        async with self._arriving:
            self._slots.use(version)
            await self._unload(self._slots.idle())

    async def _unload(self, versions: Sequence[int]) -> None:
        for version in versions:
            if version in self.loaded:  # else the end of its last request has come before
                self._slots.remove(version)
                await self._rpc("sluice_drop_adapter", version)

    def _open(self) -> Update:
        if self._update is None:
            raise WeightUpdateError("no adapter is expected; begin the update first")
        return self._update

    def _checked(self, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except ValueError as error:
            self._update = None
            raise WeightUpdateError(f"the adapter's update failed: {error}. Begin it again") from None

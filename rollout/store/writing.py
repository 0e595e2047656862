"""A worker's way into the store: groups are appended to its own segments, and made durable in batches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from rollout.store.config import TrajectoriesConfig
from rollout.store.segments import Segment, seal
from rollout.types import Address, Group, Split

log = logging.getLogger(__name__)

MAX_RECORDS = 2000
"""A segment is full with so many groups, however small: to read one of them takes time for all of them."""


class GroupWriter:
    """Appends groups for one process, whose event loop it belongs to. It begins a segment with the first group.

    While one fsync runs, further groups are written and wait together for the next. Full segments are sealed in a
    thread; one that cannot be sealed stays a stream, which is as good to readers.
    """

    def __init__(self, folder: Path, config: TrajectoriesConfig) -> None:
        self._folder = folder
        self._limit = config.segment_mb * 1e6
        self._segment: Segment | None = None
        self._syncing = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._sealing: set[asyncio.Task[None]] = set()

    async def append(self, group: Group, split: Split) -> Address:
        """Append a group and return its address as soon as it would survive a power cut.

        Raises:
            OSError: the disk is full or broken.
        """
        if self._segment is None:
            self._segment = Segment(self._folder)
        address = self._segment.append(group, split)
        if self._next is None:
            self._next = asyncio.create_task(self._sync())
        await asyncio.shield(self._next)
        return address

    async def seal(self) -> None:
        """Seal everything that was appended. Later groups begin another segment."""
        if self._next is not None:
            await self._next
        async with self._syncing:
            segment, self._segment = self._segment, None
            if segment is not None:
                await asyncio.to_thread(segment.sync)
                self._finish(segment)
        await asyncio.gather(*self._sealing)

    async def _sync(self) -> None:
        async with self._syncing:
            self._next = None  # what is appended from here on waits for the next one
            segment = self._segment
            if segment is None:  # `seal` has made it durable
                return
            full = segment.size >= self._limit or segment.records >= MAX_RECORDS
            if full:
                self._segment = None
            await asyncio.to_thread(segment.sync)
            if full:
                self._finish(segment)

    def _finish(self, segment: Segment) -> None:
        segment.close()
        task = asyncio.create_task(_seal(segment.path))
        self._sealing.add(task)
        task.add_done_callback(self._sealing.discard)


async def _seal(stream: Path) -> None:
    try:
        await asyncio.to_thread(seal, stream)
    except Exception:
        log.exception("%s could not be sealed; it stays a stream", stream)

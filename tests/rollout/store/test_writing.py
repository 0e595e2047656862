"""A worker's writer: groups are durable when `append` returns, full segments are sealed, old ones may be deleted."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from rollout.store.config import TrajectoriesConfig
from rollout.store.retention import trim
from rollout.store.segments import Segment, paths, read_group, sealed
from rollout.store.writing import GroupWriter
from rollout.types import Address, Group
from tests.rollout.store.test_segments import some

SMALL = TrajectoriesConfig(segment_mb=0.004)


async def append_all(folder: Path, made: list[Group], config: TrajectoriesConfig = SMALL) -> list[Address]:
    writer = GroupWriter(folder, config)
    addresses = [await writer.append(group, "train") for group in made]
    await writer.seal()
    return addresses


def test_full_segments_are_sealed_and_every_address_holds(tmp_path: Path) -> None:
    made = some(8)
    addresses = asyncio.run(append_all(tmp_path, made))
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert 1 < len(paths(tmp_path)) < len(made)
    assert [read_group(tmp_path, address) for address in addresses] == made


def test_groups_that_arrive_during_an_fsync_wait_together_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    async def at_once(made: list[Group]) -> list[int]:
        """The size of the segment that was durable when each append returned."""
        writer = GroupWriter(tmp_path, TrajectoriesConfig())

        async def append(group: Group) -> int:
            await writer.append(group, "train")
            return synced[-1]

        return await asyncio.gather(*(append(group) for group in made))

    monkeypatch.setattr(os, "fsync", counted)
    made = some(6)
    durable = asyncio.run(at_once(made))
    assert len(synced) < len(made)
    (path,) = tmp_path.iterdir()
    assert durable == sorted(durable) and max(durable) == path.stat().st_size


def test_a_disk_that_fails_reaches_whoever_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        asyncio.run(append_all(tmp_path, some(1)))


def test_a_segment_that_cannot_be_sealed_stays_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stream: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("rollout.store.writing.seal", broken)
    made = some(3)
    addresses = asyncio.run(append_all(tmp_path, made))
    assert [read_group(tmp_path, address) for address in addresses] == made
    assert "could not be sealed; it stays a stream" in caplog.text


def test_the_oldest_segments_go_but_none_that_is_needed_or_growing(tmp_path: Path) -> None:
    asyncio.run(append_all(tmp_path, some(8)))
    full = list(paths(tmp_path))
    assert len(full) >= 4
    dead, own = Segment(tmp_path), Segment(tmp_path)
    settled = {*full, dead.number}
    everything = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert trim(tmp_path, everything, set(), settled) == []
    first = paths(tmp_path)[full[0]].stat().st_size
    assert [path.stem for path in trim(tmp_path, everything - first, set(), settled)] == ["segment-000001"]
    gone = trim(tmp_path, 0, {full[2]}, settled)
    assert [*paths(tmp_path)] == [full[2], own.number] and dead.path in gone


def test_a_segment_that_was_sealed_just_now_stays(tmp_path: Path) -> None:
    """Its worker may not have told of its last groups yet."""
    asyncio.run(append_all(tmp_path, some(8)))
    settled = sealed(tmp_path)
    asyncio.run(append_all(tmp_path, some(8)))
    fresh = sealed(tmp_path) - settled
    assert len(fresh) > 1
    trim(tmp_path, 0, set(), settled)
    assert set(paths(tmp_path)) == fresh


def test_the_newest_number_stays_so_that_it_is_not_given_again(tmp_path: Path) -> None:
    asyncio.run(append_all(tmp_path, some(8)))
    newest = max(paths(tmp_path))
    trim(tmp_path, 0, set(), set(paths(tmp_path)))
    assert [*paths(tmp_path)] == [newest] and Segment(tmp_path).number == newest + 1


def test_groups_that_arrive_while_everything_is_sealed_are_durable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One arrives during the fsync that the sealing waits for."""
    synced: dict[int, int] = {}
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.05)
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    async def run(made: list[Group]) -> list[Address]:
        writer = GroupWriter(tmp_path, TrajectoriesConfig())
        first = asyncio.create_task(writer.append(made[0], "train"))
        await asyncio.sleep(0.02)
        sealing = asyncio.create_task(writer.seal())
        await asyncio.sleep(0)
        others = [asyncio.create_task(writer.append(one, "train")) for one in made[1:]]
        addresses = [await first, *(await asyncio.gather(*others))]
        await sealing
        await writer.seal()
        return addresses

    monkeypatch.setattr(os, "fsync", slow)
    made = some(3)
    addresses = asyncio.run(run(made))
    assert [read_group(tmp_path, address) for address in addresses] == made
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_a_segment_is_full_with_many_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.store.writing.MAX_RECORDS", 2)
    addresses = asyncio.run(append_all(tmp_path, some(5), TrajectoriesConfig()))
    assert [(a.segment, a.record) for a in addresses] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]

"""Measure one buffer, a real actor in a real Ray instance, while many trajectories are open.

Groups of GROUP trajectories of TURNS turns are issued until the gate is shut. Then CALLERS callers put them in a random
order, while a driver takes, trains and publishes one step after the other, and the places that become free are issued
again. A random order is harder than a real run's: old groups are missing all the time, so the driver often waits
although there are groups enough for a step. It is checked that no token is older than the bound.

CPU is the actor's alone, from the operating system. "a quiet take" asks for a step that is ready, with nothing else
going on: the answer brings the cards of a third of the open trajectories.

    .venv/bin/python -m benchmarks.buffer_scale [--trajectories 1000,10000,100000] [--steps 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks.orchestration import STALENESS
from benchmarks.trajectory_path import build, group_of, turn_of
from rl.driver.cluster import Cluster
from rl.driver.config import RunConfig
from rl.processes.tree import kill_run, new_run_id
from rl.rundir.directory import RunDir
from rollout.actors.process import relax_gc
from rollout.buffer.buffer import BufferSpec
from rollout.cards import Card, card_of
from rollout.envs.config import EnvironmentSettings
from rollout.store.shared import LOCK_NAME, RunFolder
from rollout.tasks.config import TasksConfig, TaskSource
from rollout.types import Address, Task

GROUP, TURNS, TURN_TOKENS = 16, 8, 256
CALLERS = 32
"""Calls of workers that are under way at the same time."""
WAIT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", default="1000,10000,100000", help="comma-separated: open trajectories")
    parser.add_argument("--steps", type=int, default=3, help="steps that are taken in a random order")
    options = parser.parse_args()
    relax_gc()  # as the driver does, which gets the cards
    columns = (
        "open | groups a step | issue, µs a trajectory | put and take, µs a trajectory | calls/s | "
        "a quiet take, ms | of the actor's CPU, ms | its cards, MB | actor, MB | state, ms | state, MB | "
        "log, bytes a trajectory"
    )
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    for trajectories in map(int, options.trajectories.split(",")):
        print(measured(trajectories, options.steps), flush=True)


def measured(trajectories: int, steps: int) -> str:
    """The table's row for so many open trajectories."""
    run_id = new_run_id()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        run = RunDir.open(Path(folder) / "run", resume="never", run_id=run_id)
        cluster = Cluster(run.logs, run_id)
        cluster.connect(RunConfig(), 512 * 2**20)
        try:
            row = asyncio.run(Callers(cluster, run, trajectories).row(steps))
        finally:
            cluster.close()
            run.close()
            kill_run(run_id)
    return row


class Callers:
    """The workers and the driver of one buffer."""

    def __init__(self, cluster: Cluster, run: RunDir, trajectories: int) -> None:
        self.per_step = max(1, trajectories // GROUP // (STALENESS + 1))
        self.log = run.ledger
        folder = RunFolder(path=str(run.path), run_id=run.path.joinpath(LOCK_NAME).read_text().strip())
        source = TaskSource(environment=EnvironmentSettings(name="benchmarks.orchestration:Scene"))
        spec = BufferSpec(
            tasks=TasksConfig(sources=(source,)),
            max_staleness=STALENESS,
            groups_per_step=self.per_step,
            failure_share_limit=1.0,
            seed=0,
        )
        self.buffer: Any = cluster.start_buffer(spec, folder, None)
        self.process = psutil.Process(ray.get(self.buffer.__ray_call__.remote(lambda _: os.getpid())))
        self.card = example()
        self.running: dict[str, tuple[Task, int]] = {}
        self.version = self.calls = self.puts = self.oldest = 0
        self.random = random.Random(0)

    async def row(self, steps: int) -> str:
        await self.buffer.published.remote(0)
        begun = self.cpu()
        await self.issue()
        issue_us = (self.cpu() - begun) / (len(self.running) * GROUP) * 1e6
        is_open = len(self.running) * GROUP
        state_ms, state = await timed(self.buffer.state.remote())
        begun, clock, issued = self.cpu(), time.perf_counter(), self.issued()
        await self.rounds(steps)
        cpu, seconds = self.cpu() - begun, time.perf_counter() - clock
        put_us = (cpu - issue_us / 1e6 * GROUP * (self.issued() - issued)) / (self.puts * GROUP) * 1e6
        calls = self.calls / seconds
        takes = [await self.quiet_take() for _ in range(3)]
        take_ms, take_cpu_ms, cards_mb = sorted(takes)[1]
        assert self.oldest <= STALENESS
        state_mb = len(json.dumps(asdict(state))) / 1e6
        log = self.log.stat().st_size / (self.issued() * GROUP)
        memory = self.process.memory_info().rss / 1e6
        cells = f"{is_open:,} | {self.per_step:,} | {issue_us:.1f} | {put_us:.1f} | {calls:,.0f}"
        cells += f" | {take_ms:,.0f} | {take_cpu_ms:,.0f}"
        return f"| {cells} | {cards_mb:.1f} | {memory:.0f} | {state_ms:,.0f} | {state_mb:.2f} | {log:.0f} |"

    def cpu(self) -> float:
        return sum(self.process.cpu_times()[:2])

    def issued(self) -> int:
        return len(self.running) + self.puts

    async def issue(self) -> None:
        """Issue tasks until the gate is shut."""

        async def caller() -> None:
            while (issue := await self.call("issue", 0.0)) is not None:
                self.running[issue[0]] = (issue[1], self.version)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def rounds(self, steps: int) -> None:
        """Put running groups in a random order until so many steps are taken."""
        for _ in range(steps):
            taken = asyncio.create_task(self.take())
            order = list(self.running)
            self.random.shuffle(order)
            await asyncio.gather(*(self.put_until(taken, order) for _ in range(CALLERS)))
            await self.trained(await taken)
            await self.issue()

    async def put_until(self, taken: asyncio.Task[list[Card]], order: list[str]) -> None:
        while order and not taken.done():
            await self.put(order.pop())

    async def quiet_take(self) -> tuple[float, float, float]:
        """Put every running group, then take: milliseconds, those of the actor's CPU, and the cards' megabytes."""
        ids = list(self.running)
        for begin in range(0, len(ids), CALLERS):
            await asyncio.gather(*(self.put(issue_id) for issue_id in ids[begin : begin + CALLERS]))
        begun = self.cpu()
        milliseconds, cards = await timed(self.take())
        cpu_ms = (self.cpu() - begun) * 1e3
        await self.trained(cards)
        await self.issue()
        return milliseconds, cpu_ms, sum(len(ray.cloudpickle.dumps(card)) for card in cards) / 1e6

    async def call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        return await getattr(self.buffer, method).remote(*arguments)

    async def put(self, issue_id: str) -> None:
        task, version = self.running.pop(issue_id)
        self.puts += 1
        address = Address(segment=1, record=self.puts)
        await self.call("put", sampled_by(replace(self.card, id=issue_id, task_id=task.id, address=address), version))

    async def take(self) -> list[Card]:
        while (cards := (await self.call("take", self.version, WAIT_S)).cards) is None:
            pass
        self.oldest = max(self.oldest, *(self.version - min(card.versions()) for card in cards))
        return list(cards)

    async def trained(self, cards: list[Card]) -> None:
        self.version += 1
        await self.call("mark_trained", [card.id for card in cards], self.version)
        await self.call("published", self.version)


def example() -> Card:
    """The card of a group with real turns."""
    numbers = np.random.default_rng(0)
    prompt = turn_of(TURN_TOKENS, numbers)
    rows = [[prompt, *(turn_of(TURN_TOKENS, numbers) for _ in range(TURNS - 1))] for _ in range(GROUP)]
    return card_of(group_of([build(row) for row in rows], TURN_TOKENS), Address(segment=1, record=0))


def sampled_by(card: Card, version: int) -> Card:
    """The card as it is when all tokens are of `version`."""
    members = tuple(
        replace(
            member,
            samples=tuple(replace(one, versions={version: sum(one.versions.values())}) for one in member.samples),
        )
        for member in card.trajectories
    )
    return replace(card, trajectories=members)


async def timed(answer: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = await answer
    return (time.perf_counter() - begun) * 1e3, result


if __name__ == "__main__":
    main()

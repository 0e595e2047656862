"""Real Ray with small actors: a failure is blamed on the right process, and control never queues behind requests."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from rewards.errors import InfrastructureError
from rl.driver.cluster import Cluster
from rl.driver.placement import Place
from rl.driver.specs import worker_spec
from rl.driver.waiting import ProcessFailure
from rl.processes.stopping import Stopped
from rl.recipe.load import load_recipe
from rl.rundir.directory import RunDir
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS as GROUPS
from rollout.actors.engine import EngineClient, Engines, InferenceActor
from rollout.actors.process import enter_role
from rollout.actors.worker import WorkerActor
from rollout.store import read
from rollout.store.shared import RunFolder
from rollout.tasks.stream import EVAL_SEED, task_stream
from rollout.types import Completion, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SAMPLING = SamplingParams(max_tokens=1)
RECIPE = load_recipe("recipes/quickstart.yaml", ["sandbox=unsafe-none", "rollout.groups_per_worker=2"])


class Actor:
    """An actor that fails in the ways in which a process of a run may fail."""

    def __init__(self, role: str, logs_dir: str, broken: str = "") -> None:
        enter_role(role, logs_dir)
        if broken:
            raise ValueError(broken)

    async def pid(self) -> int:
        return os.getpid()

    async def forever(self) -> None:
        await asyncio.Event().wait()

    async def lose_peer(self, pid: int) -> None:
        """Kill the peer and fail like a process that hears of its death before anybody else."""
        os.kill(pid, signal.SIGKILL)
        raise ConnectionError("connection closed by peer")

    async def fail_in_a_slot(self) -> None:
        async with asyncio.TaskGroup() as slots:
            slots.create_task(self._fail())

    async def _fail(self) -> None:
        raise ValueError("slot 3 is broken")


class ScriptedEngine:
    """An engine that answers once it was resumed. It counts its requests: running, most at once, cancelled."""

    version, paused_s = 0, 0.0

    def __init__(self) -> None:
        self.resumed = False
        self.running = self.most = self.cancelled = 0

    async def generate(self, request_id: str, prompt: list[int], sampling: SamplingParams) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.05)
            while not self.resumed:  # control calls have a loop of their own, in another thread: no Event of asyncio
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return Completion(token_ids=(1,), logprobs=(0.0,), versions=(0,), finish_reason="length")

    async def resume(self) -> None:
        self.resumed = True

    async def counts(self) -> tuple[int, int, int]:
        return self.running, self.most, self.cancelled


class ScriptedInference(InferenceActor):
    """The real actor around a scripted engine."""

    def __init__(self, role: str, logs_dir: str) -> None:
        super().__init__(role, logs_dir, 1, 0)
        self._engine = ScriptedEngine()


@pytest.fixture
def cluster(ray_instance: None, tmp_path: Path) -> Cluster:
    """A cluster without actors. Actors of the test before have ended with their handles."""
    return Cluster(tmp_path, "test")


def engine(cluster: Cluster) -> Any:
    return cluster.spawn(ScriptedInference, "engine-0", Place(), groups=GROUPS)


def test_an_actor_that_could_not_start_says_why(cluster: Cluster) -> None:
    actor = cluster.spawn(Actor, "worker-0", Place(), "the renderer knows no <|observation|>")
    with pytest.raises(
        ProcessFailure, match=r"start: process worker-0 died \(ValueError: .* no <\|observation\|>\); its"
    ):
        cluster.calls.ask(actor, "pid", what="start")


def test_a_slot_that_fails_is_named_by_its_own_error(cluster: Cluster) -> None:
    actor = cluster.spawn(Actor, "worker-0", Place())
    with pytest.raises(ProcessFailure, match="worker-0 failed with ValueError: slot 3 is broken; its log") as failure:
        cluster.calls.ask(actor, "fail_in_a_slot", what="rollouts")
    assert isinstance(failure.value.cause, ValueError)


def test_the_process_that_died_is_blamed_and_not_the_one_that_lost_its_connection(cluster: Cluster) -> None:
    first, second = (cluster.spawn(Actor, f"trainer-{i}", Place()) for i in range(2))
    pid = cluster.calls.ask(second, "pid", what="start")
    with pytest.raises(ProcessFailure, match=r"training: process trainer-1 died .*trainer-1\.log"):
        cluster.calls.ask(first, "lose_peer", pid, what="training")


def test_a_watched_process_that_dies_ends_the_wait_for_another(cluster: Cluster) -> None:
    buffer, worker = (cluster.spawn(Actor, role, Place()) for role in ("buffer", "worker-0"))
    cluster.calls.watch([buffer], "forever")
    os.kill(cluster.calls.ask(buffer, "pid", what="start"), signal.SIGKILL)
    with pytest.raises(ProcessFailure, match="process buffer died"):
        cluster.calls.ask(worker, "forever", what="taking")


def test_a_process_that_dies_of_the_signal_that_ends_the_run_is_not_blamed(cluster: Cluster) -> None:
    engine, worker = (cluster.spawn(Actor, role, Place()) for role in ("engine-0", "worker-0"))
    cluster.calls.watch([engine], "forever")
    os.kill(cluster.calls.ask(engine, "pid", what="start"), signal.SIGTERM)
    later = threading.Timer(1.0, cluster.calls.stop.request, ("SIGTERM", 143))
    later.start()
    with pytest.raises(Stopped, match="SIGTERM"):
        cluster.calls.ask(worker, "forever", what="taking")
    later.join()


def test_a_call_in_the_background_that_fails_ends_the_wait_for_another(cluster: Cluster) -> None:
    engine, worker = (cluster.spawn(Actor, role, Place()) for role in ("engine-0", "worker-0"))
    started = cluster.calls.background(cluster.calls.start([engine], "fail_in_a_slot"))
    with pytest.raises(ProcessFailure, match="taking: engine-0 failed with ValueError: slot 3 is broken"):
        cluster.calls.wait(cluster.calls.start([worker], "forever"), "taking")
    assert list(started.values()) == ["engine-0"]


def test_results_come_in_order_and_each_arrival_is_told(cluster: Cluster) -> None:
    actors = [cluster.spawn(Actor, f"worker-{i}", Place()) for i in range(2)]
    arrivals: list[int] = []
    calls = cluster.calls.start_each([actors[0], actors[1], actors[0]], "pid", [()] * 3)
    pids = cluster.calls.wait(calls, "start", lambda: arrivals.append(1))
    assert pids[0] == pids[2] != pids[1] and len(arrivals) == 3


def test_an_engine_flooded_with_requests_while_it_is_paused_can_still_be_resumed(cluster: Cluster) -> None:
    """Requests one by one, and more of them than calls that an actor takes at once."""
    replica = engine(cluster)

    async def flood() -> None:
        client, requests = EngineClient(Engines({0: replica}), "g", 1, timeout_s=100), []
        for i in range(1200):
            requests.append(asyncio.create_task(client.generate(f"r{i}", [1], SAMPLING)))
            await asyncio.sleep(0.001)
        while (await replica.call.remote("counts"))[0] != 1200:
            await asyncio.sleep(0.05)
        await replica.call.remote("resume")
        assert len(await asyncio.gather(*requests)) == 1200

    cluster.calls.ask(replica, "call", "counts", what="starting")
    asyncio.run(asyncio.wait_for(flood(), 120))


def test_a_request_that_nobody_waits_for_is_cancelled_in_the_engine(cluster: Cluster) -> None:
    replica = engine(cluster)
    cluster.calls.ask(replica, "call", "counts", what="starting")

    async def counts() -> tuple[int, int, int]:
        return await replica.call.remote("counts")

    async def give_up() -> None:
        engines = Engines({0: replica})
        with pytest.raises(InfrastructureError, match="generate_timeout_s"):
            await EngineClient(engines, "g", 1, timeout_s=2.0).generate("late", [1], SAMPLING)
        while (await counts())[0] != 0:
            await asyncio.sleep(0.05)
        before = (await counts())[2]
        request = asyncio.create_task(EngineClient(engines, "g", 1, timeout_s=100).generate("r", [1], SAMPLING))
        while (await counts())[0] != 1:
            await asyncio.sleep(0.05)
        request.cancel()
        while await counts() != (0, 1, before + 1):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(give_up(), 60))


def test_groups_go_to_the_engine_with_the_least_to_do_and_leave_one_that_died(cluster: Cluster) -> None:
    """Members of a group stay together. Three groups of 10 tokens each: two engines get 20 and 10."""
    first, second = (cluster.spawn(ScriptedInference, f"engine-{i}", Place(), groups=GROUPS) for i in range(2))

    async def busy(replica: Any) -> int:
        running: int = (await replica.call.remote("counts"))[0]
        return running

    async def run() -> None:
        await asyncio.gather(busy(first), busy(second))  # one that has not started yet gets no group
        engines = Engines({0: first, 1: second})
        clients = [EngineClient(engines, f"g{i}", 10, timeout_s=100) for i in range(3)]
        running = []
        for client in clients:
            running += [asyncio.create_task(client.generate(f"{id(client)}/{i}", [1], SAMPLING)) for i in range(2)]
            while await busy(first) + await busy(second) < len(running):
                await asyncio.sleep(0.05)
        assert sorted([await busy(first), await busy(second)]) == [2, 4]
        alive, victim = (first, second) if await busy(first) == 2 else (second, first)
        ray.kill(victim)
        await alive.call.remote("resume")
        ended = await asyncio.gather(*running)
        assert [type(one) for one in ended] == [Completion] * 6, "the other engine takes what this one had"
        again = await asyncio.gather(*(client.generate(f"again/{id(client)}", [1], SAMPLING) for client in clients))
        assert len(again) == 3
        ray.kill(alive)
        for client in clients:
            client.close()
        late = asyncio.create_task(clients[0].generate("late", [1], SAMPLING))
        again = cluster.spawn(ScriptedInference, "engine-0", Place(), groups=GROUPS)
        await again.call.remote("resume")
        await asyncio.sleep(1)
        engines.use(0, again)
        assert (await late).finish_reason == "length"

    asyncio.run(asyncio.wait_for(run(), 100))


def test_a_worker_evaluates_no_more_groups_at_once_than_it_trains(cluster: Cluster, tmp_path: Path) -> None:
    replica = engine(cluster)
    with RunDir.open(tmp_path / "run", resume="never", run_id="r1"):
        spec = worker_spec(RECIPE, RunFolder(path=str(tmp_path / "run"), run_id="r1"))
        worker = cluster.spawn(WorkerActor, "worker-0", Place(), spec, {0: replica}, replica)
        evaluate_eight_groups(cluster, replica, worker)
    assert [(stored.split, stored.step) for stored in read(tmp_path / "run")] == [("eval", None)] * 8


def test_a_worker_that_does_not_see_the_run_directory_says_so(cluster: Cluster, tmp_path: Path) -> None:
    """As on a machine that has another disk under this path."""
    spec = worker_spec(RECIPE, RunFolder(path=str(tmp_path), run_id="r1"))
    worker = cluster.spawn(WorkerActor, "worker-0", Place(), spec, {}, None)
    with pytest.raises(ProcessFailure, match=r"NotShared: worker-0 on .* does not see the run directory .* share"):
        cluster.calls.ask(worker, "seal", what="start")


def evaluate_eight_groups(cluster: Cluster, replica: Any, worker: Any) -> None:
    arguments = [
        (f"eval-0-{i}", task) for i, task in enumerate(task_stream(RECIPE.tasks, "eval", EVAL_SEED).once()[:8])
    ]
    calls = cluster.calls.start_each([worker] * len(arguments), "evaluate", arguments)
    while cluster.calls.ask(replica, "call", "counts", what="counting")[0] < 2:
        time.sleep(0.05)
    cluster.calls.ask(replica, "call", "resume", what="resuming")
    cards = cluster.calls.wait(calls, "evaluation")
    assert [card.id for card in cards] == [group_id for group_id, _ in arguments]
    assert all(card.usable for card in cards)
    cluster.calls.ask(worker, "seal", what="sealing")
    assert cluster.calls.ask(replica, "call", "counts", what="counting")[1] == 2

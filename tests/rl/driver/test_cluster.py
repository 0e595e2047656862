"""Real Ray, with small actors: who is blamed when a process fails, and that control never queues behind requests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rewards.errors import InfrastructureError
from rl.driver.cluster import Cluster, ProcessFailure
from rl.driver.placement import Resources
from rl.driver.processes import kill_run, new_run_id
from rl.recipe.load import load_recipe
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, EngineClient, InferenceActor
from rollout.actors.process import enter_role
from rollout.actors.worker import WorkerActor, WorkerSpec
from rollout.tasks.stream import task_stream
from rollout.types import Completion, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SAMPLING = SamplingParams(max_tokens=1)
RECIPE = load_recipe("recipes/quickstart.yaml", ["sandbox=unsafe-none", "rollout.groups_per_worker=2"])


class Actor:
    """Does what a process of a run may do wrong."""

    def __init__(self, role: str, logs_dir: str, broken: str = "") -> None:
        enter_role(role, logs_dir)
        if broken:
            raise ValueError(broken)

    async def pid(self) -> int:
        return os.getpid()

    async def forever(self) -> None:
        await asyncio.Event().wait()

    async def lose_peer(self, pid: int) -> None:
        """The peer dies, and this process hears of it before anybody else."""
        os.kill(pid, signal.SIGKILL)
        raise ConnectionError("connection closed by peer")

    async def fail_in_a_slot(self) -> None:
        async with asyncio.TaskGroup() as slots:
            slots.create_task(self._fail())

    async def _fail(self) -> None:
        raise ValueError("slot 3 is broken")


class ScriptedEngine:
    """Answers once it was resumed; counts."""

    def __init__(self) -> None:
        self.resumed = False
        self.running = self.most = self.cancelled = 0

    async def generate(self, request_id: str, prompt: list[int], sampling: SamplingParams) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.05)
            while not self.resumed:
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
    """The real shell around a scripted engine."""

    def __init__(self, role: str, logs_dir: str) -> None:
        super().__init__(role, logs_dir, 1, 0)
        self._engine = ScriptedEngine()


@pytest.fixture(scope="module")
def ray_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    run_id = new_run_id()
    cluster = Cluster(RECIPE, tmp_path_factory.mktemp("logs"), run_id)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("TMPDIR", "PYTHONPATH", "RAY_worker_niceness"):  # what connect sets is put back
            environment.setenv(name, "")
            environment.delenv(name)
        cluster.connect()
        yield
        cluster.close()
    kill_run(run_id)


@pytest.fixture
def cluster(ray_instance: None, tmp_path: Path) -> Cluster:
    """One without actors; those of the test before end with their handles."""
    return Cluster(RECIPE, tmp_path, "test")


def engine(cluster: Cluster) -> Any:
    return cluster.spawn(ScriptedInference, "engine-0", Resources(), groups=ENGINE_CONCURRENCY_GROUPS)


def test_an_actor_that_could_not_start_says_why(cluster: Cluster) -> None:
    actor = cluster.spawn(Actor, "worker-0", Resources(), "the renderer knows no <|observation|>")
    with pytest.raises(
        ProcessFailure, match=r"start: process worker-0 died \(ValueError: .* no <\|observation\|>\); its"
    ):
        cluster.wait(cluster.call([actor], "pid"), "start")


def test_a_slot_that_fails_is_named_by_its_own_error(cluster: Cluster) -> None:
    actor = cluster.spawn(Actor, "worker-0", Resources())
    with pytest.raises(ProcessFailure, match="worker-0 failed with ValueError: slot 3 is broken; its log") as failure:
        cluster.wait(cluster.call([actor], "fail_in_a_slot"), "rollouts")
    assert isinstance(failure.value.cause, ValueError)


def test_the_process_that_died_is_blamed_and_not_the_one_that_lost_its_connection(cluster: Cluster) -> None:
    first, second = (cluster.spawn(Actor, f"trainer-{i}", Resources()) for i in range(2))
    pid = cluster.wait(cluster.call([second], "pid"), "start")[0]
    with pytest.raises(ProcessFailure, match=r"training: process trainer-1 died .*trainer-1\.log"):
        cluster.wait(cluster.call([first], "lose_peer", pid), "training")


def test_a_watched_process_that_dies_ends_the_wait_for_another(cluster: Cluster) -> None:
    buffer, worker = (cluster.spawn(Actor, role, Resources()) for role in ("buffer", "worker-0"))
    cluster.watch([buffer], "forever")
    os.kill(cluster.wait(cluster.call([buffer], "pid"), "start")[0], signal.SIGKILL)
    with pytest.raises(ProcessFailure, match="process buffer died"):
        cluster.wait(cluster.call([worker], "forever"), "taking")


def test_results_come_in_order_and_each_arrival_is_told(cluster: Cluster) -> None:
    actors = [cluster.spawn(Actor, f"worker-{i}", Resources()) for i in range(2)]
    arrivals: list[int] = []
    calls = cluster.call_each([actors[0], actors[1], actors[0]], "pid", [()] * 3)
    pids = cluster.wait(calls, "start", lambda: arrivals.append(1))
    assert pids[0] == pids[2] != pids[1] and len(arrivals) == 3


def test_an_engine_flooded_with_requests_while_it_is_paused_can_still_be_resumed(cluster: Cluster) -> None:
    replica = engine(cluster)
    requests = [replica.generate.remote(f"r{i}", [1], SAMPLING) for i in range(1200)]
    cluster.wait(cluster.call([replica], "call", "resume"), "resuming")
    assert len(ray.get(requests, timeout=120)) == 1200


def test_a_request_that_nobody_waits_for_is_cancelled_in_the_engine(cluster: Cluster) -> None:
    replica = engine(cluster)
    cluster.wait(cluster.call([replica], "call", "counts"), "starting")

    async def counts() -> tuple[int, int, int]:
        return await replica.call.remote("counts")

    async def give_up() -> None:
        with pytest.raises(InfrastructureError, match="generate_timeout_s"):
            await EngineClient([replica], "g", timeout_s=2.0).generate("late", [1], SAMPLING)
        while (await counts())[0] != 0:
            await asyncio.sleep(0.05)
        before = (await counts())[2]
        request = asyncio.create_task(EngineClient([replica], "g", timeout_s=100).generate("r", [1], SAMPLING))
        while (await counts())[0] != 1:
            await asyncio.sleep(0.05)
        request.cancel()
        while await counts() != (0, 1, before + 1):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(give_up(), 60))


def test_a_worker_evaluates_no_more_groups_at_once_than_it_trains(cluster: Cluster) -> None:
    replica = engine(cluster)
    spec = WorkerSpec(
        model_path=RECIPE.model.path,
        renderer=RECIPE.model.renderer,
        rollout=RECIPE.rollout,
        sandbox=RECIPE.sandbox,
        evaluation=RECIPE.eval,
        reward_weights={},
        generate_timeout_s=60.0,
        seed=0,
    )
    worker = cluster.spawn(WorkerActor, "worker-0", Resources(), spec, [replica], replica)
    arguments = [(f"eval-0-{i}", task) for i, task in enumerate(task_stream(RECIPE.tasks, "eval").once()[:8])]
    calls = cluster.call_each([worker] * len(arguments), "evaluate", arguments)
    while cluster.wait(cluster.call([replica], "call", "counts"), "counting")[0][0] < 2:
        time.sleep(0.05)
    cluster.wait(cluster.call([replica], "call", "resume"), "resuming")
    groups = cluster.wait(calls, "evaluation")
    assert [group.id for group in groups] == [group_id for group_id, _ in arguments]
    assert all(group.usable for group in groups)
    assert cluster.wait(cluster.call([replica], "call", "counts"), "counting")[0][1] == 2

"""Engines that die: real Ray, and actors whose vLLM is scripted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rl import run as loop
from rl.driver import cluster as module
from rl.driver.cluster import Cluster
from rl.driver.engines import Engines
from rl.driver.placement import Place
from rl.driver.session import ReadingBack, Session
from rl.driver.specs import engine_settings, wanted
from rl.driver.steps import admit_engines, checkpoint, finish_read_back, publish
from rl.driver.trainer import RayEngines
from rl.driver.waiting import ProcessFailure
from rl.processes.stopping import Stopped
from rl.recipe.load import load_recipe
from rl.weights.publish import PublishReport
from rl.weights.read_back import ReadBack, ReadBackReport
from rollout.contracts import EngineDeadError
from rollout.engine.settings import EngineSettings
from rollout.transfer.update import Findings
from tests.rl.driver.scripted import Refusing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPE = load_recipe("recipes/quickstart.yaml", ["sandbox=unsafe-none", "inference.replicas=2"])


class ScriptedVllm:
    """Lives until it is told to fail."""

    def __init__(self) -> None:
        self.failed = self.paused = False
        self.found: Findings | None = Findings(same=5)

    async def pid(self) -> int:
        return os.getpid()

    async def fail(self) -> None:
        self.failed = True

    async def hold(self, found: Findings | None) -> None:
        """What it finds when it reads weights back; None: it never ends."""
        self.found = found

    async def read_back(self) -> Findings:
        while self.found is None:
            await asyncio.sleep(0.05)
        return self.found

    async def pause(self) -> None:
        self.paused = True

    async def is_paused(self) -> bool:
        return self.paused

    async def watch(self) -> None:
        while not self.failed:
            await asyncio.sleep(0.05)
        raise EngineDeadError("the vLLM engine is gone: out of memory")


class ScriptedInference(Refusing):
    async def start(self, settings: EngineSettings) -> None:
        await super().start(settings)
        self._engine = ScriptedVllm()


@pytest.fixture
def cluster(ray_instance: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "InferenceActor", ScriptedInference)
    cluster = Cluster(tmp_path, "test")
    cluster.look()
    cluster.lay_out(wanted(RECIPE, "cpu"))
    return cluster


def started(cluster: Cluster, restarts: int, told: list[str]) -> Engines:
    engines = Engines(cluster, engine_settings(RECIPE, "cpu"), "split", restarts, told.append)
    engines.wait()
    return engines


def kill(cluster: Cluster, number: int) -> None:
    os.kill(cluster.calls.ask(cluster.engines[number], "call", "pid", what="asking"), signal.SIGKILL)


def test_engines_come_back_and_serve_once_they_were_admitted_until_their_restarts_are_used(cluster: Cluster) -> None:
    told: list[str] = []
    engines = started(cluster, 2, told)
    first = dict(engines.all)
    assert engines.serving == first and engines.ready == [] and engines.restarted == 0

    cluster.calls.ask(first[1], "call", "fail", what="failing")
    cluster.calls.wait_until(lambda: engines.ready == [1], "coming back")
    assert engines.serving == {0: first[0]} and not engines.holds(1, first[1]) and engines.holds(0, first[0])
    assert "out of memory" in told[0] and "engine-1.log" in told[0] and "1 of inference.restarts=2" in told[0]
    engines.admit(1, first[1])
    assert engines.serving == {0: first[0]}, "a process that died before it was admitted"
    engines.admit(1, engines.all[1])
    assert engines.serving == engines.all and engines.ready == []

    kill(cluster, 0)
    cluster.calls.wait_until(lambda: engines.ready == [0], "coming back")
    kill(cluster, 1)
    with pytest.raises(ProcessFailure, match="process engine-1 died"):
        cluster.calls.wait_until(lambda: False, "working")
    assert engines.restarted == 2 and len(told) == 2


def test_none_is_started_again_in_a_run_that_is_being_stopped(cluster: Cluster) -> None:
    told: list[str] = []
    engines = started(cluster, 2, told)
    kill(cluster, 0)
    threading.Timer(1.0, cluster.calls.stop.request, ("SIGTERM", 143)).start()
    with pytest.raises(Stopped, match="SIGTERM"):
        cluster.calls.wait_until(lambda: False, "working")
    assert engines.restarted == 0 and told == []


def test_one_that_does_not_start_again_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    told: list[str] = []
    engines = started(cluster, 2, told)
    (tmp_path / "refuse-0").touch()
    kill(cluster, 0)
    cluster.calls.wait_until(lambda: engines.ready == [0], "coming back")
    assert engines.restarted == 2 and "ValueError: no room" in told[1]


def test_one_that_never_started_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "refuse-1").touch()
    with pytest.raises(ProcessFailure, match="engine-1 failed with ValueError: no room"):
        started(cluster, 2, [])


class Reading:
    """The part of a trainer that waits for engines which read back a push of five tensors. It notes what else it is
    asked for, as does the part of a worker that hears of engines."""

    def __init__(self, role: str, logs_dir: str) -> None:
        self._reading: ReadBack | None = None
        self._asked: list[str] = []

    def begin(self, handles: Mapping[int, ActorHandle]) -> None:
        self._reading = ReadBack(1, RayEngines(handles), 5, 60.0)

    def publish(self, version: int, handles: Mapping[int, ActorHandle], verify: bool) -> PublishReport:
        self._asked.append("publish")
        self.begin(handles)
        return PublishReport(version=version, bytes=0, buckets=0, verified=1, paused_s=0.0, readable=5)

    def save(self, folder: str) -> None:
        self._asked.append("save")

    def use_engine(self, number: int, handle: ActorHandle) -> None:
        self._asked.append("use_engine")

    def asked(self) -> list[str]:
        return self._asked

    def finish_read_back(self, numbers: list[int]) -> ReadBackReport:
        assert self._reading is not None
        return self._reading.finish(numbers)


def reading(cluster: Cluster, engines: Engines, logged: list[tuple[dict[str, float], int]]) -> SimpleNamespace:
    """What of a session is needed while engines read back the weights of step 3."""
    cluster.trainers = cluster.trainers or [cluster.spawn(Reading, "trainer-0", Place())]
    cluster.calls.ask(cluster.trainers[0], "begin", engines.serving, what="beginning")
    return SimpleNamespace(
        reading_back=ReadingBack(step=3, engines=engines.serving),
        engines=engines,
        calls=cluster.calls,
        cluster=cluster,
        log=lambda values, step: logged.append((values, step)),
        progress=SimpleNamespace(step=3, version=3),
        timed=lambda *of: nullcontext([]),
        turns=SimpleNamespace(training=nullcontext, push=lambda: None),
        recipe=RECIPE,
    )


@pytest.mark.parametrize("noticed", [False, True])
def test_weights_are_read_back_unless_the_engine_dies_and_other_values_end_the_run(
    cluster: Cluster, noticed: bool
) -> None:
    engines, logged = started(cluster, 1, []), list[tuple[dict[str, float], int]]()
    run = reading(cluster, engines, logged)
    finish_read_back(run)
    finish_read_back(run)
    assert logged == [({"policy/read_back_tensors": 5.0}, 3)] and run.reading_back is None

    cluster.calls.ask(engines.all[0], "call", "hold", None, what="holding")
    run = reading(cluster, engines, logged)
    kill(cluster, 0)
    if noticed:
        cluster.calls.wait_until(lambda: engines.ready == [0], "coming back")
    finish_read_back(run)
    assert len(logged) == 2 and engines.restarted == 1, "the other one has read back"

    cluster.calls.ask(engines.all[1], "call", "hold", Findings(same=4, differ=["w"]), what="holding")
    with pytest.raises(
        ProcessFailure, match="read_back failed: engine 1 computes with other values of w than were sent"
    ):
        finish_read_back(reading(cluster, engines, logged))
    assert cluster.calls.ask(engines.all[1], "call", "is_paused", what="asking")


def test_a_silent_engine_is_named_and_a_dead_one_is_told_before_the_others_have_answered(cluster: Cluster) -> None:
    engines = started(cluster, 1, [])
    for handle in engines.all.values():
        cluster.calls.ask(handle, "call", "hold", None, what="holding")
    both = RayEngines(engines.all)
    reading = both.start("read_back")
    with pytest.raises(TimeoutError, match=r"no answer of engine 0, 1 in 0.1 s: .* raise weight_sync.timeout_s"):
        both.wait(reading, 0.1)
    kill(cluster, 0)
    with pytest.raises(RayActorError):
        both.wait(reading, 3600.0)


OTHER = Findings(same=4, differ=["w"])


def test_an_engine_that_reads_back_other_values_never_serves(cluster: Cluster) -> None:
    engines = started(cluster, 1, [])
    kill(cluster, 0)
    cluster.calls.wait_until(lambda: engines.ready == [0], "coming back")
    cluster.calls.ask(engines.all[0], "call", "hold", OTHER, what="holding")
    run = reading(cluster, engines, [])
    cluster.workers = [cluster.spawn(Reading, "worker-0", Place())]
    with pytest.raises(ProcessFailure, match="engine 0 computes with other values of w"):
        admit_engines(run)
    assert [*engines.serving] == [1]
    assert cluster.calls.ask(cluster.trainers[0], "asked", what="asking") == ["publish"]
    assert cluster.calls.ask(cluster.workers[0], "asked", what="asking") == []


@pytest.mark.parametrize("then", [checkpoint, partial(publish, verify=False)])
def test_nothing_is_saved_or_pushed_after_a_version_that_engines_do_not_compute_with(
    cluster: Cluster, then: Callable[[Session], None]
) -> None:
    engines = started(cluster, 1, [])
    cluster.calls.ask(engines.all[1], "call", "hold", OTHER, what="holding")
    with pytest.raises(ProcessFailure, match="engine 1 computes with other values of w"):
        then(reading(cluster, engines, []))
    assert cluster.calls.ask(cluster.trainers[0], "asked", what="asking") == []


def test_the_first_gate_stays_closed_until_the_first_version_was_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for step in ("forget_result", "prepare_policy", "begin_rollouts", "publish", "evaluate", "open_gate"):
        monkeypatch.setattr(loop, step, lambda *of, step=step, **how: done.append(step))

    def fail(run: Session) -> None:
        raise ProcessFailure("engine 1 computes with other values")

    monkeypatch.setattr(loop, "finish_read_back", fail)
    with pytest.raises(ProcessFailure, match="other values"):
        loop.reinforcement(SimpleNamespace(recipe=RECIPE, progress=SimpleNamespace(eval_before={})), "model")
    assert done == ["forget_result", "prepare_policy", "begin_rollouts", "publish", "evaluate"]


class Pushing:
    """The part of a trainer that pushes to one engine, while another one is killed."""

    def __init__(self, role: str, logs_dir: str) -> None:
        self._pushed: list[int] = []

    def publish(self, version: int, handles: Mapping[int, ActorHandle], verify: bool, victim: int) -> PublishReport:
        self._pushed += handles
        os.kill(victim, signal.SIGKILL)
        time.sleep(3.0)  # the driver hears of it
        return PublishReport(version=version, bytes=0, buckets=0, verified=1, paused_s=0.0)

    def pushed(self) -> list[int]:
        return self._pushed


def test_one_that_dies_while_another_is_admitted_waits_for_the_next_time(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = started(cluster, 3, [])
    kill(cluster, 0)
    kill(cluster, 1)
    cluster.calls.wait_until(lambda: engines.ready == [0, 1], "coming back")
    (tmp_path / "hold-1").touch()
    victim = cluster.calls.ask(engines.all[1], "call", "pid", what="asking")
    cluster.trainers = [cluster.spawn(Pushing, "trainer-0", Place())]
    asked = cluster.calls.ask_all
    monkeypatch.setattr(
        cluster.calls,
        "ask_all",
        lambda to, method, *args, what: asked(to, method, *args, victim, what=what) if to else [],
    )
    told: list[str] = []
    admit_engines(
        SimpleNamespace(
            reading_back=None,
            engines=engines,
            calls=cluster.calls,
            cluster=cluster,
            progress=SimpleNamespace(version=4),
            watchdog=SimpleNamespace(beat=told.append),
            console=SimpleNamespace(note=told.append),
        )
    )
    assert cluster.calls.ask(cluster.trainers[0], "pushed", what="asking") == [0]
    assert "engine-0 serves from now on, with version 4" in told and [*engines.serving] == [0]
    (tmp_path / "hold-1").unlink()
    cluster.calls.wait_until(lambda: engines.ready == [1], "coming back")

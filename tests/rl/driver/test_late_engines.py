"""Engines that join a run when a machine joins its cluster: real raylets, and engines whose vLLM is scripted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from rl.driver import cluster as module
from rl.driver import engines as engines_module
from rl.driver.cluster import Cluster
from rl.driver.engines import Engines
from rl.driver.placement import alive_nodes
from rl.driver.specs import engine_settings, transport_of, wanted
from rl.driver.waiting import ProcessFailure
from rl.recipe.load import load_recipe
from rollout.engine.settings import EngineSettings
from tests.rl.driver.scripted import Refusing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPE = load_recipe(
    "recipes/quickstart.yaml", ["sandbox=unsafe-none", "inference.replicas=3", "inference.min_replicas=1"]
)
MIB = 2**20


class Scripted(Refusing):
    """Its vLLM lives as long as its process."""

    async def start(self, settings: EngineSettings) -> None:
        await super().start(settings)
        self._engine = self

    async def watch(self) -> None:
        await asyncio.Event().wait()


class Machine:
    """Another raylet, as `ray start` makes one, at 127.0.0.`number`. `leave` kills it, which Ray notices later; `end`
    lets it say so."""

    def __init__(self, number: int) -> None:
        head = ray.get_runtime_context().gcs_address
        options = (
            "--block",
            "--num-cpus=2",
            f"--object-store-memory={100 * MIB}",
            f"--node-ip-address=127.0.0.{number}",
        )
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head}", *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )

        self._address = f"127.0.0.{number}"
        while not self._is_alive():
            assert self._process.poll() is None, "ray start has failed"
            time.sleep(0.1)  # those that start at once in one session are in each other's way

    def _is_alive(self) -> bool:
        return any(node["NodeManagerAddress"] == self._address for node in alive_nodes())

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        while self._is_alive():
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            self.leave()

    def leave(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def join(ray_instance: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Machine]]:
    """Makes machines, which leave in the end."""
    monkeypatch.setattr(module, "InferenceActor", Scripted)
    monkeypatch.setattr(engines_module, "LOOK_S", 0.1)
    made: list[Machine] = []

    def join() -> Machine:
        made.append(Machine(2 + len(made)))
        return made[-1]

    yield join
    for machine in made:
        machine.end()


def test_engines_join_with_machines_and_wait_for_others_when_these_leave(
    join: Callable[[], Machine], tmp_path: Path
) -> None:
    told: list[str] = []
    cluster = Cluster(tmp_path, "test")
    cluster.look()
    table = cluster.lay_out(wanted(RECIPE, "cpu"))
    assert table["no machine yet"] == "engine-1…2"
    engines = Engines(cluster, engine_settings(RECIPE, "cpu"), "split", 0, told.append, move=True)
    engines.wait()
    assert [*engines.all] == [*engines.serving] == [0] and not engines.any_ready()

    machine = join()
    cluster.calls.wait_until(engines.any_ready, "joining")
    assert engines.ready == [1] and [*engines.serving] == [0], "it has no weights yet"
    engines.admit(1, engines.all[1])
    assert [*engines.serving] == [0, 1] and not engines.any_ready(), "each machine has an engine, and one waits"

    machine.leave()
    cluster.calls.wait_until(lambda: [*engines.all] == [0], "leaving")
    assert [*engines.serving] == [0] and "its machine is gone, and it waits for another one" in told[-1]
    (tmp_path / "refuse-1").touch()
    join()
    cluster.calls.wait_until(lambda: not engines.any_ready() and "than that one" in told[-1], "failing")
    join()
    cluster.calls.wait_until(lambda: engines.any_ready() and engines.ready == [1], "joining")
    assert engines.restarted == 0, "neither to lose a machine is counted as a death, nor one that an engine can't use"
    ray.kill(engines.all[1])
    with pytest.raises(ProcessFailure, match="process engine-1 died"):
        cluster.calls.wait_until(lambda: False, "working")


class Job:
    """It holds what Ray gave to it."""


def test_an_engine_whose_room_another_job_took_waits_for_a_machine_again(
    join: Callable[[], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "BEGIN_S", 3.0)
    told: list[str] = []
    cluster, jobs = Cluster(tmp_path, "test"), list[ray.actor.ActorHandle]()
    cluster.look()
    cluster.lay_out(wanted(RECIPE, "cpu"))
    engines = Engines(cluster, engine_settings(RECIPE, "cpu"), "split", 0, told.append, move=True)
    engines.wait()
    find = cluster.find_machines

    def find_one_that_is_taken_then(widths: Mapping[int, int]) -> list[int]:
        found = find(widths)
        for number in found:
            place = replace(cluster._engine_places[number][0], cpus=2)
            cluster._engine_places[number] = place, None
            if not jobs:
                jobs.append(ray.remote(Job).options(**place.options()).remote())
                ray.get(jobs[0].__ray_ready__.remote())
        return found

    monkeypatch.setattr(cluster, "find_machines", find_one_that_is_taken_then)
    join()
    cluster.calls.wait_until(lambda: not engines.any_ready() and bool(told), "waiting for room")
    assert told[0].startswith("engine-1 got no room on its machine in 3 s")
    ray.kill(jobs[0])
    cluster.calls.wait_until(engines.any_ready, "joining")
    assert engines.ready == [1] and engines.restarted == 0


def test_weights_travel_over_the_network_to_engines_that_are_not_there_yet() -> None:
    assert transport_of(RECIPE, "cpu", machines=1).name == "gloo"
    assert (
        transport_of(load_recipe("recipes/quickstart.yaml", ["sandbox=unsafe-none"]), "cpu", machines=1).name == "shm"
    )

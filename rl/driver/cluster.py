"""The processes of a run: one Ray instance, its actors, and waiting on them without ever waiting on a dead one.

`Cluster` starts and stops; `wait` is the only place where the driver blocks. While it waits for some results it also
watches every long-running actor, the stop flag and the deadline, so a dead worker, a dead engine, Ctrl-C and a stall
all end the wait within about a second with an error that names the process and its log.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config import Recipe
from rl.driver.actors import TrainerActor
from rl.driver.placement import Resources
from rl.driver.processes import TEMP, resource_prefix
from rl.driver.stopping import StopRequest
from rl.paths import REPOSITORY
from rl.recipe.hardware import missing_hardware, resolve_device
from rollout.actors.buffer import BufferActor
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, InferenceActor
from rollout.actors.worker import WorkerActor
from rollout.types import Device

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local Ray instance; groups and packed batches are the only large objects, and they live for one step."""
JOIN_S = 10.0
SHUTDOWN_S = 5.0
CLOSE_S = 20.0
POLL_S = 0.5
PING_S = 2.0
DEATH_S = 3.0
"""How long a failure waits for news of another process's death, which would be its cause."""


class ProcessFailure(RuntimeError):
    """A process of the run failed. The text names its role, what it said, and its log; `cause` is what it raised."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class NoCluster(RuntimeError):
    """No Ray cluster answers at run.ray_address, or it wants another token."""


class Cluster:
    """Every actor of one run. Between `connect` and `close`."""

    def __init__(self, recipe: Recipe, logs_dir: Path, run_id: str) -> None:
        self._recipe, self._logs_dir, self._run_id = recipe, logs_dir, run_id
        self._temp_dir = TEMP / f"{resource_prefix(run_id)}ray"
        self.device: Device = "cpu"
        self._roles: dict[ActorHandle, str] = {}
        self._watched: dict[ray.ObjectRef, str] = {}
        self._background: dict[ray.ObjectRef, str] = {}
        self._pings: dict[ActorHandle, ray.ObjectRef] = {}
        self._pinged = 0.0
        self.stop = StopRequest()
        self._waiting = "nothing yet"
        self.trainers: list[ActorHandle] = []
        self.engines: list[ActorHandle] = []
        self.workers: list[ActorHandle] = []
        self.buffer: ActorHandle | None = None

    def connect(self) -> None:
        """Start a local Ray instance, or join the one that the recipe names.

        Raises:
            NoCluster: nobody answers there.
        """
        environment = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])}
        if self._recipe.run.ray_address is not None:
            _join_cluster(self._recipe.run.ray_address, environment)
        else:
            # Ray would start its workers at niceness 15: whatever else runs on the machine would starve the run.
            os.environ.update(environment | {"RAY_worker_niceness": "0"})
            ray.init(
                "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(self._temp_dir),
                _node_ip_address="127.0.0.1",
            )
        self.device = resolve_device(self._recipe, self._gpus())

    def close(self) -> None:
        """Kill the actors and stop a local Ray instance. Never raises. If that hangs, it is given up after CLOSE_S
        with all stacks on standard error: the run has its exit code, and the guardian sweeps up.
        """
        ending = threading.Thread(target=self._shut_down, name="shutdown", daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            faulthandler.dump_traceback()
        shutil.rmtree(self._temp_dir, ignore_errors=True)

    def _shut_down(self) -> None:
        if ray.is_initialized():
            self._end_actors()
            ray.shutdown()

    def _end_actors(self) -> None:
        """Who asks ends before who answers, so that no log ends in errors that mean nothing."""
        for actor in self._roles:
            if actor not in self.engines:
                ray.kill(actor)
        endings = [engine.shutdown.remote() for engine in self.engines]
        if endings:
            ray.wait(endings, num_returns=len(endings), timeout=SHUTDOWN_S)
        for engine in self.engines:
            ray.kill(engine)

    def _gpus(self) -> int:
        return int(ray.cluster_resources().get("GPU", 0))

    def missing_hardware(self) -> list[str]:
        """What the recipe wants and this Ray cluster lacks, in words; empty when it fits."""
        largest = max(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        cpus = int(ray.cluster_resources()["CPU"])
        return missing_hardware(self._recipe, cpus=cpus, gpus=self._gpus(), largest_node_gpus=largest)

    def waiting_for(self) -> str:
        """Who the driver waits for now, in words."""
        return self._waiting

    def start_trainers(self) -> None:
        ranks = self._recipe.trainer.ranks
        resources = Resources(cpus=1, gpus=1) if self.device == "cuda" else Resources()
        strategies: list[Any] = ["DEFAULT"] * ranks
        if self.device == "cuda":
            group = placement_group([{"CPU": 1, "GPU": 1}] * ranks, strategy="PACK")
            strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(ranks)]
        self.trainers = [
            self.spawn(
                TrainerActor,
                f"trainer-{rank}",
                resources,
                rank,
                self._recipe,
                self._run_id,
                self.device,
                strategy=strategies[rank],
            )
            for rank in range(ranks)
        ]

    def start_engines(self) -> None:
        config = self._recipe.inference
        on_gpu = Resources(cpus=1, gpus=config.tensor_parallel)
        resources = on_gpu if self.device == "cuda" else Resources()
        self.engines = [
            self.spawn(
                InferenceActor, f"engine-{i}", resources, config.cpu_threads, i, groups=ENGINE_CONCURRENCY_GROUPS
            )
            for i in range(config.replicas)
        ]

    def start_workers(self, *args: Any) -> None:
        resources = Resources(cpus=1) if self.device == "cuda" else Resources()
        self.workers = [
            self.spawn(WorkerActor, f"worker-{i}", resources, *args) for i in range(self._recipe.rollout.workers)
        ]

    def start_buffer(self, *args: Any) -> None:
        self.buffer = self.spawn(BufferActor, "buffer", Resources(), *args)

    def spawn(
        self,
        actor: type,
        role: str,
        resources: Resources,
        *args: Any,
        strategy: Any = "DEFAULT",
        groups: Mapping[str, int] | None = None,
    ) -> ActorHandle:
        """Start an actor whose first arguments are its role and the directory of its log.

        `groups` are Ray's concurrency groups; methods outside of them share one of 1000 (a trainer rank does one thing
        at a time).
        """
        remote = ray.remote(concurrency_groups=dict(groups))(actor) if groups else ray.remote(actor)
        handle = remote.options(
            **resources.options(),
            max_concurrency=1 if actor is TrainerActor else 1000,
            scheduling_strategy=strategy,
        ).remote(role, str(self._logs_dir), *args)
        self._roles[handle] = role
        return handle

    def watch(self, handles: Sequence[ActorHandle], method: str, *args: Any) -> None:
        """Call a method that runs as long as the actor should live; its end in any way ends the run."""
        for handle in handles:
            self._watched[getattr(handle, method).remote(*args)] = self._roles[handle]

    def call(self, handles: Sequence[ActorHandle], method: str, *args: Any) -> dict[ray.ObjectRef, str]:
        """Start a method on each handle; pass the result to `wait`."""
        return {getattr(handle, method).remote(*args): self._roles[handle] for handle in handles}

    def call_each(
        self, handles: Sequence[ActorHandle], method: str, arguments: Sequence[tuple[Any, ...]]
    ) -> dict[ray.ObjectRef, str]:
        """Like `call`, with arguments of its own for each handle."""
        return {
            getattr(handle, method).remote(*args): self._roles[handle]
            for handle, args in zip(handles, arguments, strict=True)
        }

    def background(self, calls: dict[ray.ObjectRef, str]) -> dict[ray.ObjectRef, str]:
        """Let every later `wait` notice when one of these fails, long before somebody waits for them."""
        self._background |= calls
        return calls

    def wait(
        self, calls: Mapping[ray.ObjectRef, str], what: str, on_result: Callable[[], None] | None = None
    ) -> list[Any]:
        """The results of `calls`, in order. How long it may take is the watchdog's business; `on_result` is called for
        every result that arrives.

        Raises:
            ProcessFailure: one of them, or a watched actor, failed or died.
            Stopped: `stop` was requested.
        """
        with self.stop.deferred():  # nothing may be raised inside of Ray
            return self._wait(calls, what, on_result)

    def _wait(self, calls: Mapping[ray.ObjectRef, str], what: str, on_result: Callable[[], None] | None) -> list[Any]:
        results: dict[ray.ObjectRef, Any] = {}
        while pending := {ref: role for ref, role in calls.items() if ref not in results}:
            self._waiting = f"{what}: {self._names(pending.values())}"
            self.stop.check()
            self._ping_trainers()
            others = {ref: role for ref, role in (self._watched | self._background).items() if ref not in pending}
            done, _ = ray.wait([*pending, *others], num_returns=1, timeout=POLL_S)
            for reference in done:
                value = self._check(reference, pending.get(reference) or others[reference], what)
                self._background.pop(reference, None)
                if reference in self._watched:
                    role = self._watched[reference]
                    raise ProcessFailure(f"{what}: {role} ended by itself; its log: {self.log(role)}")
                if reference in pending:
                    results[reference] = value
                    if on_result is not None:
                        on_result()
        return [results[reference] for reference in calls]

    def _ping_trainers(self) -> None:
        """A rank does one thing at a time and cannot be watched; a ping waits behind its work, or fails if it died."""
        if time.monotonic() - self._pinged < PING_S:
            return
        self._pinged = time.monotonic()
        for trainer in self.trainers:
            ping = self._pings.get(trainer)
            if ping is not None and ray.wait([ping], timeout=0)[0]:
                self._check(ping, self._roles[trainer], "heartbeat")
                ping = None
            self._pings[trainer] = trainer.ping.remote() if ping is None else ping

    def log(self, role: str) -> Path:
        return self._logs_dir / f"{role}.log"

    def _names(self, roles: Any) -> str:
        return ", ".join(f"{role} ({self.log(role)})" for role in sorted(set(roles)))

    def _check(self, reference: ray.ObjectRef, role: str, what: str) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            # First, because Ray's error for a task that raised a RayActorError is both: the task's process lives.
            cause = _cause(error)
            death = self._death()
            if death is not None:
                raise self._died(*death, what) from cause
            raise ProcessFailure(
                f"{what}: {role} failed with {type(cause).__name__}: {cause}; its log: {self.log(role)}", cause
            ) from error
        except RayActorError as error:
            raise self._died(role, error, what) from error

    def _death(self) -> tuple[str, RayActorError] | None:
        """The first process found dead. Its peers complain of a closed connection before Ray has noticed."""
        asked = {actor.__ray_ready__.remote(): role for actor, role in self._roles.items()}
        end = time.monotonic() + DEATH_S
        while asked and (left := end - time.monotonic()) > 0:
            for reference in ray.wait(list(asked), num_returns=1, timeout=left)[0]:
                role = asked.pop(reference)
                try:
                    ray.get(reference)
                except RayActorError as error:
                    return role, error
        return None

    def _died(self, role: str, error: RayActorError, what: str) -> ProcessFailure:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # An __init__ that failed ends in what it raised; else the first line says it, and process ids follow.
        cause = lines[-1] if error.actor_init_failed else lines[0]
        return ProcessFailure(f"{what}: process {role} died ({cause}); its log: {self.log(role)}", error)


def _cause(error: RayTaskError) -> Exception:
    """What the task raised. A group's first member says more than "unhandled errors in a TaskGroup"."""
    cause: Exception = error if error.cause is None else error.cause
    while isinstance(cause, ExceptionGroup):
        cause = cause.exceptions[0]
    return cause


def _join_cluster(address: str, environment: dict[str, str]) -> None:
    try:
        # Asked first, because ray.init takes more than five minutes to notice, and then ends the process.
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), timeout=JOIN_S).close()
        ray.init(address, log_to_driver=False, logging_level="error", runtime_env={"env_vars": environment})
    except OSError as error:
        raise NoCluster(
            f"no Ray cluster answers at run.ray_address={address} ({error}): start one with the environment's "
            "`ray start --head`, share its token (~/.ray/auth_token), or leave run.ray_address out"
        ) from error

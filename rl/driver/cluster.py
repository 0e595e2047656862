"""The processes of a run: one Ray instance and its actors. It knows no recipe; specs say what each process is.

`Cluster` starts and stops the actors. All calls to them, and all waiting for their results, go through its `calls`.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rl.driver.config import RunConfig
from rl.driver.layout import Layout, Node, Wanted, held_by_others, late_on_cpus, late_on_gpus, lay_out
from rl.driver.placement import Place, alive_nodes, beside, nodes_of_cluster, shared_seats
from rl.driver.specs import TrainerSpec
from rl.driver.trainer import TrainerActor
from rl.driver.waiting import Calls
from rl.launch.addresses import own_address
from rl.launch.greeting import cluster_token, greeting
from rl.launch.hosts import Hosts, Others
from rl.launch.others import other_machines
from rl.launch.own_ray import LOOPBACK, ended_here, start_ray
from rl.paths import REPOSITORY
from rl.processes.tree import TEMP, resource_prefix
from rl.recipe.machine import cpu_count, in_job
from rollout.actors.buffer import BufferActor
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, InferenceActor
from rollout.actors.worker import WorkerActor, WorkerSpec
from rollout.buffer.buffer import BufferSpec, BufferState
from rollout.engine.config import InferenceConfig
from rollout.store.shared import RunFolder
from rollout.types import Device, Placement

JOIN_S = 10.0
GATHER_S = 900.0
"""How long the other machines of a run may take to join: each may have to build its environment first."""
POLL_S = 0.3
SHUTDOWN_S = 5.0
CLOSE_S = 20.0
CONCURRENCY = 1000
"""How many calls an actor runs at once."""


class NoCluster(RuntimeError):
    """No Ray cluster answers at run.ray_address, or it wants another token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The hardware of a Ray cluster: the sums over all its machines, what other jobs hold not counted, the GPUs of the
    machine with the most, and what others hold, in words."""

    cpus: int
    gpus: int
    all_gpus: int
    largest_node_gpus: int
    held: str


class Cluster:
    """Every actor of one run. Call `connect` and `lay_out`, then start the actors; `close` ends them."""

    def __init__(self, logs_dir: Path, run_id: str, *, logs_stay: bool = True) -> None:
        self._logs_dir, self._logs_stay = logs_dir, logs_stay
        self._run_id = run_id
        self._hosts: Hosts | None = None
        self._nodes: list[Node] = []
        self._layout: Layout | None = None
        self._temp_dir = TEMP / f"{resource_prefix(run_id)}ray"
        self.calls = Calls(logs_dir)
        self.device: Device = "cpu"
        self.trainers: list[ActorHandle] = []
        self.engines: dict[int, ActorHandle] = {}
        self._engine_places: dict[int, tuple[Place, list[str] | None]] = {}
        self._avoided: set[str | None] = set()
        self._engine_threads = 1
        self.workers: list[ActorHandle] = []
        self.buffer: ActorHandle | None = None

    def connect(self, run: RunConfig, object_store_bytes: int, gather_s: float = GATHER_S) -> Hardware:
        """Start a Ray instance with an object store of this size, here and on the machines of a hostfile or of a SLURM
        job, which may take `gather_s` to join, or join an existing cluster.

        Raises:
            NoCluster: nobody answers there, or a machine does not join.
        """
        environment = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])}
        if run.ray_address is not None:
            _join_cluster(run.ray_address, environment)
        else:
            # By default Ray starts its workers at niceness 15: any other program on the machine would starve the run.
            os.environ.update(environment | {"RAY_worker_niceness": "0"})
            others = _other_machines(run)
            address = _own_address(run, others) if others else LOOPBACK
            try:
                start_ray(address, object_store_bytes, self._temp_dir, cpu_count() if in_job() else None)
            except ValueError as error:
                raise NoCluster(str(error)) from error
            if others is not None:
                self._hosts = Hosts(others, self._logs_dir, logs_stay=self._logs_stay)
                self._gather(others, gather_s)
            self.calls.gone = self._ended
        return self.look()

    def _ended(self) -> list[str]:
        """What nothing goes on without and has ended: Ray's own processes here, and the other machines."""
        return [*ended_here(), *(self._hosts.ended() if self._hosts is not None else ())]

    def look(self) -> Hardware:
        """Ask the Ray instance of this process for its machines."""
        self._nodes = nodes_of_cluster(ray.get_runtime_context().get_node_id())
        return Hardware(
            cpus=sum(node.cpus for node in self._nodes),
            gpus=sum(node.gpus for node in self._nodes),
            all_gpus=sum(node.all_gpus for node in self._nodes),
            largest_node_gpus=max(node.all_gpus for node in self._nodes),
            held=held_by_others(self._nodes),
        )

    def lay_out(self, wanted: Wanted) -> dict[str, str]:
        """Give every actor its machine, before any is started. Returns by the address of each machine its actors.

        Raises:
            Unplaceable: the machines cannot hold them.
        """
        self.device = wanted.device
        self._layout = lay_out(self._nodes, wanted)
        return self._layout.table(self._nodes)

    def _gather(self, others: Others, limit_s: float) -> None:
        """Let the other machines join, and wait for them."""
        assert self._hosts is not None
        count, source = len(others.commands), others.source
        head = ray.get_runtime_context().gcs_address
        self._hosts.start(greeting(head, cluster_token(), self._run_id, os.environ))
        end = time.monotonic() + limit_s
        while len(alive_nodes()) <= count:
            self.calls.stop.check()
            if ended := self._hosts.ended():
                raise NoCluster(f"a machine of {source} did not join: {'; '.join(ended)}")
            if time.monotonic() > end:
                raise NoCluster(f"{len(alive_nodes()) - 1} of {count} machines of {source} joined within {limit_s:g} s")
            time.sleep(POLL_S)

    @property
    def machines(self) -> int:
        return len(self._nodes)

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "actors are laid out before they start"
        return self._layout

    def _at(self, machine: int, gpus: float = 0) -> Place:
        """A place on a machine by its number, 0 for the one with the driver, with a core where there are GPUs. Where
        no machine is known, it is Ray's choice."""
        cpus = 1 if self.device == "cuda" else 0
        return Place(cpus=cpus, gpus=gpus, node=self._nodes[machine].id if self._nodes else None)

    def start_on_machines(self, actor: type, role: str) -> dict[str, ActorHandle]:
        """Start one actor on each machine, the driver's first, and return them by the addresses of their machines."""
        return {
            node.address: self.spawn(actor, f"{role}-{number}", self._at(number))
            for number, node in enumerate(self._nodes)
        }

    def start_on_ranks(self, actor: type, role: str, ranks: int) -> list[ActorHandle]:
        """Start one actor on the place of each trainer rank and, on CPUs, on each other machine."""
        alone = Wanted(device=self.device, ranks=ranks, expert_parallel=1, engines=(), workers=0, buffer=False)
        gpus = 1 if self.device == "cuda" else 0
        places = [self._at(machine, gpus) for machine in lay_out(self._nodes, alone).trainers]
        if self.device == "cpu":
            places += [self._at(number) for number in range(1, self.machines)]
        return [self.spawn(actor, f"{role}-{number}", place) for number, place in enumerate(places)]

    def close(self) -> None:
        """Kill the actors and stop a local Ray instance. Never raises.

        If it hangs, give up after CLOSE_S seconds and print all stacks to standard error. The run has its exit code by
        then, and the guardian sweeps up.
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
        if self._hosts is not None:
            self._hosts.close()

    def _end_actors(self) -> None:
        """Stop workers and trainers before engines. Otherwise their last requests fail and fill the logs with
        misleading errors."""
        for actor in self.calls.handles():
            if actor not in self.engines.values():
                ray.kill(actor)
        endings = [engine.shutdown.remote() for engine in self.engines.values()]
        if endings:
            ray.wait(endings, num_returns=len(endings), timeout=SHUTDOWN_S)
        for engine in self.engines.values():
            ray.kill(engine)

    def start_trainers(self, spec: TrainerSpec) -> None:
        """Start one actor per rank."""
        gpus = 1 if self.device == "cuda" else 0
        self.trainers = [
            self.spawn(TrainerActor, f"trainer-{rank}", self._at(machine, gpus), rank, spec)
            for rank, machine in enumerate(self.layout.trainers)
        ]

    def start_engines(self, configs: Sequence[InferenceConfig], placement: Placement = "split") -> None:
        """Start one actor per engine that has a machine: on GPUs of its own, or colocated with the trainer, which has
        been started."""
        widths = [config.widths[0] for config in configs]
        if placement == "colocated" and self.device == "cuda":
            seats = self.calls.ask_all(self.trainers, "seat", what="looking for the trainer's GPUs")
            dealt = shared_seats(seats, len(widths), widths[0])
            self._engine_places = {
                number: (beside(own[0]), [seat.gpu for seat in own]) for number, own in enumerate(dealt)
            }
        else:
            reserved = widths if self.device == "cuda" else [0] * len(widths)
            self._engine_places = {
                number: (self._at(machine, reserved[number]), None)
                for number, machine in enumerate(self.layout.engines)
                if machine is not None
            }
        self._engine_threads = configs[0].cpu_threads
        for number in self._engine_places:
            self.start_engine(number)

    def find_machines(self, engines: Mapping[int, int]) -> list[int]:
        """Look for machines for engines that have none, given the GPUs of each by its number. Returns the numbers of
        those that have one now."""
        nodes = [node for node in nodes_of_cluster(self._nodes[0].id) if node.id not in self._avoided]
        if self.device == "cuda":
            found = late_on_gpus(nodes, engines)
        else:
            used = {self._engine_machine(number) for number in self._engine_places}
            found = late_on_cpus(len(nodes), engines, [place for place, node in enumerate(nodes) if node.id in used])
        for number, place in found.items():
            gpus = engines[number] if self.device == "cuda" else 0
            self._engine_places[number] = (replace(self._at(0, gpus), node=nodes[place].id), None)
        return list(found)

    def machine_is_gone(self, number: int) -> bool:
        """Whether an engine's machine has left the cluster."""
        return self._engine_machine(number) not in {node["NodeID"] for node in alive_nodes()}

    def leave_machine(self, number: int, *, avoid: bool) -> None:
        """Let an engine that has died have no machine any more, and no other have that one, if it is to `avoid`."""
        if avoid:
            self._avoided.add(self._engine_machine(number))
        del self.engines[number], self._engine_places[number]

    def _engine_machine(self, number: int) -> str | None:
        return self._engine_places[number][0].node

    def start_engine(self, number: int) -> ActorHandle:
        """Start the actor of an engine on its place, instead of one that has died if there was one."""
        place, gpus = self._engine_places[number]
        arguments, groups = (self._engine_threads, number, gpus), ENGINE_CONCURRENCY_GROUPS
        self.engines[number] = self.spawn(InferenceActor, f"engine-{number}", place, *arguments, groups=groups)
        return self.engines[number]

    def start_workers(self, spec: WorkerSpec, engines: dict[int, ActorHandle], buffer: ActorHandle | None) -> None:
        """Start one actor per rollout worker. Without a buffer they can only evaluate."""
        alone = (0,) * spec.rollout.workers
        self.workers = [
            self.spawn(WorkerActor, f"worker-{i}", self._at(machine), spec, engines, buffer)
            for i, machine in enumerate(self._layout.workers if self._layout is not None else alone)
        ]

    def start_buffer(self, spec: BufferSpec, folder: RunFolder, saved: BufferState | None) -> ActorHandle:
        """Start the actor of the buffer."""
        self.buffer = self.spawn(BufferActor, "buffer", replace(self._at(0), cpus=0), spec, folder, saved)
        return self.buffer

    def spawn(
        self, actor: type, role: str, place: Place, *args: Any, groups: Mapping[str, int] | None = None
    ) -> ActorHandle:
        """Start an actor whose first arguments are its role and the directory of its log.

        `groups` are Ray's concurrency groups: their names and how many calls each runs at once. Methods outside of them
        share a group of CONCURRENCY calls. A trainer rank runs one call at a time.
        """
        one_at_a_time = actor is TrainerActor
        remote = ray.remote(concurrency_groups=dict(groups))(actor) if groups else ray.remote(actor)
        handle = remote.options(**place.options(), max_concurrency=1 if one_at_a_time else CONCURRENCY).remote(
            role, str(self._logs_dir), *args
        )
        self.calls.add(handle, role, ping=one_at_a_time)
        return handle


def _other_machines(run: RunConfig) -> Others | None:
    try:
        return other_machines(run)
    except ValueError as error:
        raise NoCluster(str(error)) from error


def _own_address(run: RunConfig, others: Others) -> str:
    if run.host_address is not None:
        return run.host_address
    try:
        found = own_address(others.first)
    except OSError as error:
        raise NoCluster(
            f"no address of this machine leads to {others.first}, the first of {others.source} ({error}): set "
            "run.host_address to the address that the other machines reach"
        ) from error
    return found


def _join_cluster(address: str, environment: dict[str, str]) -> None:
    try:
        if address == "auto" and "://" not in os.environ.get("RAY_ADDRESS", "://"):
            address = os.environ["RAY_ADDRESS"]  # as ray.init would; so that what follows is tried first
        # Connect first: ray.init takes more than five minutes to notice that nobody answers, then ends the process.
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_S).close()
        ray.init(address, log_to_driver=False, logging_level="error", runtime_env={"env_vars": environment})
    except OSError as error:
        raise NoCluster(
            f"no Ray cluster answers at run.ray_address={address} ({error}): start one with the environment's "
            "`ray start --head`, share its token (~/.ray/auth_token), or leave run.ray_address out"
        ) from error

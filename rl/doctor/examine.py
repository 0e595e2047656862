"""`doctor RECIPE`: gather the machines that a run of the recipe would use, ask each, and print a line for each check.

A line is printed as soon as it is known. Every question has a deadline, and what was started is stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from rl.config import Recipe
from rl.doctor import clock, folder, machines, network, reduce
from rl.doctor.ask import Answers, Budget, ask
from rl.doctor.facts import Facts
from rl.doctor.finding import Finding
from rl.doctor.probe import Probe
from rl.driver.cluster import Cluster, Hardware, NoCluster
from rl.exitcodes import DONE, FAILED
from rl.processes.signals import signal_handlers_kept
from rl.processes.stopping import Stopped
from rl.processes.tree import TEMP, resource_prefix
from rl.recipe.check_sources import needs_sandbox
from rl.recipe.hardware import missing_hardware, resolve_device
from rl.recipe.resolved import object_store_bytes

GATHER_S = 25.0
"""How long the machines of a hostfile may take to join. One that has to build its environment first takes longer."""
FACTS_S, FOLDER_S, PAIRS_S, PING_S, READY_S, REDUCE_S = 15.0, 8.0, 8.0, 2.0, 30.0, 15.0
LATE_S = 2.0
"""By then a rank whose deadline has passed has said why."""
CPU_RANKS = 2
"""The most ranks of an all-reduce on one machine without GPUs. On several machines, each has one."""


def examine(recipe: Recipe, run_id: str, packages: Sequence[str], total_s: float) -> int:
    """Print every line. `packages` are those whose versions are compared, and `total_s` is the time for all questions.
    Returns the exit code."""
    logs = TEMP / f"{resource_prefix(run_id)}doctor"
    logs.mkdir()
    cluster, budget = Cluster(logs, run_id, logs_stay=False), Budget(total_s)

    def on_signal(signum: signal.Signals) -> None:
        cluster.calls.stop.interrupt(signum.name, 128 + signum)

    fine = True
    try:
        with signal_handlers_kept(on_signal):
            hardware = cluster.connect(recipe.run, object_store_bytes(recipe), budget.left(GATHER_S))
        for finding in Examination(recipe, run_id, cluster, hardware, budget).findings(packages):
            print(finding.line(), flush=True)
            fine &= finding.fine
    except NoCluster as error:
        print(Finding("machines", False, str(error)).line(), flush=True)
        fine = False
    except Stopped as stop:
        print(f"stopped by {stop}", flush=True)
        return stop.code
    except RayError as error:
        print(Finding("ray", False, f"the cluster was lost: {str(error).splitlines()[0]}").line(), flush=True)
        fine = False
    finally:
        cluster.close()
    return DONE if fine else FAILED


class Examination:
    """The checks of one cluster, in the order of their lines. A machine that once gave no answer is asked no more."""

    def __init__(self, recipe: Recipe, run_id: str, cluster: Cluster, hardware: Hardware, budget: Budget) -> None:
        self._recipe, self._run_id, self._cluster, self._budget = recipe, run_id, cluster, budget
        self._hardware = hardware
        cluster.device = resolve_device(recipe, hardware.all_gpus)
        self._probes: dict[str, ActorHandle] = {}
        self._ranks: dict[str, ActorHandle] = {}

    def findings(self, packages: Sequence[str]) -> Iterator[Finding]:
        self._probes = self._cluster.start_on_machines(Probe, "probe")
        self._ranks = self._start_ranks()
        isolated = self._recipe.sandbox.kind == "bubblewrap" and needs_sandbox(self._recipe)
        others = {name: [other for other in self._probes if other != name] for name in self._probes}
        config = self._recipe.sandbox if isolated else None
        found = self._ask("facts", lambda name: (others[name], packages, config), FACTS_S)
        yield self._machines(found)
        if not found.given:
            return
        yield from self._of_facts(found.given, isolated)
        yield from self._folder()
        yield from self._pairs()
        yield from self._clocks()
        yield self._reduce()

    def _ask(self, method: str, arguments: Callable[[str], tuple[object, ...]], limit_s: float) -> Answers:
        each = {name: arguments(name) for name in self._probes}
        answers = ask(self._probes, method, each, self._cluster.calls.stop, self._budget.left(limit_s))
        self._probes = {name: probe for name, probe in self._probes.items() if name in answers.given}
        return answers

    def _machines(self, found: Answers) -> Finding:
        if problem := found.problem():
            return Finding("machines", False, f"{problem}: look at that machine, or leave it out")
        names = ", ".join(f"{address} ({facts.host})" for address, facts in found.given.items())
        return Finding("machines", True, names)

    def _of_facts(self, found: dict[str, Facts], isolated: bool) -> Iterator[Finding]:
        yield self._hardware_fits()
        yield machines.code(found)
        yield machines.packages(found)
        yield machines.interface(found)
        yield machines.addresses(found)
        yield machines.gpus(found, gpu_counts(), self._cluster.device)
        yield machines.memory(found, object_store_bytes(self._recipe))
        yield machines.limits(found, self._cluster.device)
        yield machines.sandbox(found, isolated)

    def _hardware_fits(self) -> Finding:
        here = self._hardware
        missing = missing_hardware(self._recipe, **asdict(here))
        told = f"{here.gpus} GPUs, {here.cpus} CPU cores; the run is on {self._cluster.device}"
        return Finding("hardware", not missing, "; ".join(missing) or told)

    def _folder(self) -> Iterator[Finding]:
        parent = folder.parent_of(self._recipe.run.dir)
        try:
            with folder.marked(parent, self._run_id) as marked:
                answers = self._ask("look", lambda _: (str(marked), self._run_id), FOLDER_S)
                yield from self._unanswered("run.dir", answers)
                yield folder.judge(parent, marked, answers.given)
        except OSError as error:
            yield Finding("run.dir", False, f"{parent} cannot be written to ({error.strerror or error}): set run.dir")

    def _pairs(self) -> Iterator[Finding]:
        ports = self._ask("listen", lambda _: (), PAIRS_S)
        yield from self._unanswered("pairs", ports)
        reached = self._ask("reach", lambda _: (ports.given,), PAIRS_S)
        yield from self._unanswered("pairs", reached)
        yield network.judge(ports.given, reached.given)

    def _clocks(self) -> Iterator[Finding]:
        skews = {}
        for name, probe in self._probes.items():
            self._cluster.calls.stop.check()
            limit_s = self._budget.left(PING_S)
            try:
                skews[name] = clock.skew(partial(_time_of, probe, limit_s))
            except RayError:
                yield Finding("clocks", False, f"{name}: no answer within {limit_s:.0f} s")
        yield clock.judge(skews)

    def _start_ranks(self) -> dict[str, ActorHandle]:
        """Start the ranks first of all: they import torch while other questions are answered."""
        ranks, cluster = self._recipe.trainer.ranks, self._cluster
        if cluster.device == "cpu":
            ranks = 1 if cluster.machines > 1 else min(ranks, CPU_RANKS)
        actors = cluster.start_on_ranks(reduce.Rank, "rank", ranks)
        return {f"rank {number}": actor for number, actor in enumerate(actors)}

    def _reduce(self) -> Finding:
        device, stop = self._cluster.device, self._cluster.calls.stop
        ready = ask(self._ranks, "ready", dict.fromkeys(self._ranks, ()), stop, self._budget.left(READY_S))
        if problem := ready.problem():
            arrived = ", ".join(f"{name} on {where}" for name, (where, _) in ready.given.items()) or "no rank"
            return Finding("all-reduce", False, f"{problem}; {arrived} could start: a busy machine needs limit_s=300")
        limit_s = self._budget.left(REDUCE_S)
        meeting = (*ready.given["rank 0"], len(self._ranks), device, limit_s)
        each = {name: (rank, *meeting) for rank, name in enumerate(self._ranks)}
        sums = ask(self._ranks, "reduce", each, stop, limit_s + LATE_S)
        return reduce.judge(
            [sums.given.get(name, sums.failed.get(name, "")) for name in self._ranks],
            [ready.given[name][0] for name in self._ranks],
            device,
        )

    def _unanswered(self, name: str, answers: Answers) -> Iterator[Finding]:
        if problem := answers.problem():
            yield Finding(name, False, f"{problem}: look at that machine, or leave it out")


def gpu_counts() -> dict[str, int]:
    """Ray's count of GPUs by the address of their machine."""
    return {node["NodeManagerAddress"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}


def _time_of(probe: ActorHandle, limit_s: float) -> float:
    seconds: float = ray.get(probe.clock.remote(), timeout=limit_s)
    return seconds

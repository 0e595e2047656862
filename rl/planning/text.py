"""The text of `plan`: what a recipe resolves to, its processes, memory, pushes, disk and commands, and whether it
fits."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rl.config import Recipe
from rl.launch.hosts import Others
from rl.planning import flow
from rl.planning.fit import problems
from rl.planning.machines import Machines
from rl.planning.memory import Memory, Part
from rl.planning.numbers import scaled, seconds, size
from rl.planning.plan import Plan, cached_bytes, fullest, states_bytes, summed, turns
from rl.recipe import marked_yaml
from rl.recipe.checks import remarks
from rl.recipe.hardware import missing_hardware, resolve_device, wants
from rl.recipe.machine import cpu_count, gpu_names
from rl.recipe.resolved import derived
from rollout.types import DTYPE_BYTES

LISTED = 4
"""The most commands for other machines that are written out."""


def describe(
    recipe: Recipe,
    machines: Machines,
    plan: Plan | None,
    command: Sequence[str],
    others: Others | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """All sections. Without a plan the model's shapes are not known here. `command` starts the run, `others` are its
    other machines, and `warnings` are shown among the remarks."""
    unknown = f"unknown: the config.json of {recipe.model.path} is not on this machine"
    sections = [
        ("resolved recipe", marked_yaml.dump(recipe.model_dump(mode="json")).rstrip()),
        ("derived", "\n".join(f"{name}: {value}" for name, value in derived(recipe).items())),
        ("processes", _processes(plan) if plan else ""),
        ("memory", _memory(plan) if plan else unknown),
        ("pushes", _pushes(plan) if plan else ""),
        ("disk", _disk(plan) if plan else ""),
        ("commands", _commands(command, others)),
        ("hardware", _hardware(recipe, machines, plan)),
        ("remarks", "\n".join([*remarks(recipe), *warnings])),
    ]
    return "\n\n".join(f"── {title} ──\n{text}" for title, text in sections if text)


def _processes(plan: Plan) -> str:
    machines = plan.machines
    there = _rooms(machines) + (f", {machines.known}" if machines.known else "")
    if plan.layout is None:
        return f"{there}: no room for all processes (see hardware)"
    return "\n".join([there, *_rows(plan.layout.table(machines.nodes))])


def _rooms(machines: Machines) -> str:
    """The machines and what they have: `8 machines of 8 GPUs of 80.0 GiB, 128 CPU cores, 1024.0 GiB`."""
    counts = Counter(
        (f"{node.gpus} GPUs of {size(machines.gpu_bytes)}, " if node.gpus else "")
        + f"{node.cpus} CPU cores, {size(host)}"
        for node, host in zip(machines.nodes, machines.host_bytes, strict=True)
    )
    if len(machines.nodes) == 1:
        return f"{machines.nodes[0].id} of {next(iter(counts))}"
    return " and ".join(f"{count} machine{'s' * (count > 1)} of {room}" for room, count in counts.items())


def _memory(plan: Plan) -> str:
    recipe, tensors = plan.recipe, plan.tensors
    adapter = f", {scaled(tensors.trained)} of an adapter are trained" if recipe.lora is not None else ""
    lines = [
        f"{scaled(tensors.base)} parameters ({tensors.base:,}) in {recipe.model.dtype}{adapter}",
        *_of_process(plan, plan.trainer, "trainer rank"),
        *_of_process(plan, plan.engine, "engine"),
    ]
    if plan.engine.parts[1].bytes:
        tokens = plan.engine.parts[1].bytes // cached_bytes(plan)
        lines.append(f"  the KV cache holds {tokens:,} tokens, {cached_bytes(plan):,} bytes each")
    if plan.device == "cuda" and recipe.placement == "colocated":
        weights = tensors.base * DTYPE_BYTES[recipe.model.dtype]
        lines.append("placement=colocated, on each GPU: " + _listed(turns(plan).items()))
        lines.append(
            f"placement=colocated, on the host: {size(states_bytes(plan) * plan.trainer.count)} for the states of "
            f"{plan.trainer.count} ranks, and {size(weights * plan.engine.count)} for the engines' weights (with "
            "lora.push=adapter always, else during checkpoints)"
        )
    parts, _ = fullest(plan)
    if parts:
        lines.append(f"the fullest machine: {size(summed(parts))} of its memory")
        lines += _parts(parts)
    return "\n".join(lines)


def _of_process(plan: Plan, memory: Memory, name: str) -> list[str]:
    where = "in its process" if plan.device == "cpu" else "on its GPU"
    where = where if memory.devices == 1 else f"on each of its {memory.devices} GPUs"
    one = "the narrowest with" if len({*plan.recipe.inference.widths}) > 1 and name == "engine" else "each with"
    several = f"{memory.count} {name}s, {one}" if memory.count > 1 else f"the {name} has"
    return [f"{several} {size(memory.bytes(host=False))} {where}", *_parts(memory.parts)]


def _parts(parts: Iterable[Part]) -> list[str]:
    return _rows({part.name: size(part.bytes) + (" on the host" if part.host else "") for part in parts if part.bytes})


def _rows(values: Mapping[str, str]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in values.items()]


def _listed(turns: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{size(number)} while {turn}" for turn, number in turns)


def _pushes(plan: Plan) -> str:
    push, recipe = plan.push, plan.recipe
    expected = "assumed: NICs of 50 GB/s" if plan.device == "cuda" else "from benchmarks/README.md and a copy timed now"
    bound, groups = recipe.buffer.max_staleness, derived(recipe)["gate_groups"]
    verified = f"every {recipe.weight_sync.verify_every} steps" if recipe.weight_sync.verify_every else "never"
    return "\n".join(
        [
            f"each: {size(push.bytes)} through {push.transport}, to {recipe.inference.replicas} "
            f"engine{'s' if recipe.inference.replicas > 1 else ''}, after every step",
            f"expected ({expected}): {seconds(push.gather_s)} to gather, {seconds(push.arrive_s)} to arrive, "
            f"{seconds(push.load_s)} to load; engines stand still for {seconds(push.pause_s)} of it",
            f"verified: the first of a start, then {verified} (weight_sync.verify_every)",
            f"staleness: a trained token is at most {bound} version{'s' if bound != 1 else ''} old "
            f"(buffer.max_staleness); no more than {groups} groups are issued and not yet trained",
        ]
    )


def _disk(plan: Plan) -> str:
    recipe = plan.recipe
    known = flow.step_s(recipe)
    step = known or flow.STEP_S
    why = "the median of run.dir" if known else "assumed: name a run.dir that has some steps to use its own"
    trajectories, checkpoint = flow.trajectory_bytes(recipe), flow.checkpoint_bytes(recipe, plan.tensors)
    hourly = 3600 / step
    every, keep = recipe.checkpoint.every or recipe.run.steps, recipe.checkpoint.keep
    kept = recipe.trajectories.keep_gb
    limit = "kept (trajectories.keep_gb)" if kept is None else f"the newest {kept:g} GB are kept"
    return "\n".join(
        [
            f"an hour, with {seconds(step)} a step ({why}): at most {size(hourly * trajectories)} of trajectories, and "
            f"{size(hourly / every * checkpoint)} written to checkpoints",
            f"trajectories: at most {size(trajectories)} a step, if each has rollout.max_context tokens; {limit}",
            f"checkpoints: {size(checkpoint)} each, every {every} steps; {size((keep + 1) * checkpoint)} on disk at "
            f"most while one is written (checkpoint.keep={keep})",
        ]
    )


def _commands(command: Sequence[str], others: Others | None) -> str:
    lines = [shlex.join(command)]
    if others is not None:
        lines.append(f"and on the machines of {others.source}, started by it:")
        lines += [f"  {shlex.join(words)}" for words in [*others.commands.values()][:LISTED]]
        lines += [f"  and {len(others.commands) - LISTED} more"] if len(others.commands) > LISTED else []
    return "\n".join(lines)


def _hardware(recipe: Recipe, machines: Machines, plan: Plan | None) -> str:
    """What the recipe wants, what there is, and whether it can start and fits."""
    cores, gpus = (cpu_count(), len(gpu_names())) if machines.assumed else (machines.cores, machines.gpus)
    count = 1 if machines.assumed else len(machines.nodes)
    here = f"{'here' if count == 1 else f'{count} machines'}: {gpus} GPUs, {cores} CPU cores"
    unknown = None
    if recipe.run.ray_address is not None:
        unknown = f"the Ray cluster at {recipe.run.ray_address} is asked when the run starts"
    widest = gpus if machines.assumed else max(node.gpus for node in machines.nodes)
    missing = missing_hardware(recipe, cpus=cores, gpus=gpus, largest_node_gpus=widest or None)
    verdict = [unknown] if unknown else missing or ["can start here" if count == 1 else "can start there"]
    lines = [*_wanted(recipe, gpus), here, *verdict]
    where = "the assumed machines" if machines.assumed else "memory"
    if plan is not None:
        lines += [f"does not fit: {text}" for text in problems(plan)] or [f"{where}: every process fits"]
    return "\n".join(lines)


def _wanted(recipe: Recipe, gpus: int) -> list[str]:
    if resolve_device(recipe, gpus) == "cpu":
        return [f"run.device={recipe.run.device}: runs on CPU"]
    wanted = wants(recipe)
    return [
        f"run.device={recipe.run.device}: wants {wanted.gpus} GPUs ({wanted.trainer_gpus} trainer, "
        f"{'of these ' if wanted.shared else ''}{wanted.inference_gpus} inference) and {wanted.cpus} CPU cores"
    ]

"""A recipe on machines: the place of every process, and the memory that it takes there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rl.config import Recipe
from rl.driver.layout import Layout, Unplaceable, lay_out
from rl.driver.specs import wanted
from rl.planning.flow import Push, push_of
from rl.planning.machines import Machines
from rl.planning.memory import MIB, Memory, Part, engine_memory, trainer_memory
from rl.planning.tensors import Tensors
from rl.recipe.hardware import resolve_device
from rl.recipe.resolved import object_store_bytes
from rollout.types import DTYPE_BYTES, Device

IMPORTED = {"driver": 460, "buffer": 140, "trainer": 370, "engine": 555, "worker": 450, "Ray": 400}
"""MiB of each kind of process before it has a tensor: interpreter, libraries, Ray's client (measured on CPU). With a
plain tokenizer (`rollout.chat.tokenizer`) a driver has 380 and a worker 190."""
BUCKETS = 4
"""Buckets of a push on a shared GPU at once: one is gathered, two are lent, one is copied by the engine's worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the module's docstring. Without `layout` the machines do not hold the processes, as `unplaceable` says."""

    recipe: Recipe
    tensors: Tensors
    machines: Machines
    device: Device
    trainer: Memory
    engine: Memory
    push: Push
    layout: Layout | None
    unplaceable: str | None


def make_plan(recipe: Recipe, tensors: Tensors, machines: Machines) -> Plan:
    """Raises ValueError if the recipe's transport does not fit the device."""
    device = resolve_device(recipe, machines.gpus)
    layout, unplaceable = None, None
    try:
        layout = lay_out(machines.nodes, wanted(recipe, device, len(machines.nodes)))
    except Unplaceable as error:
        unplaceable = str(error)
    return Plan(
        recipe=recipe,
        tensors=tensors,
        machines=machines,
        device=device,
        trainer=trainer_memory(recipe, tensors, device),
        engine=engine_memory(recipe, tensors, device, machines.gpu_bytes),
        push=push_of(recipe, tensors, device, len(machines.nodes)),
        layout=layout,
        unplaceable=unplaceable,
    )


def summed(parts: Iterable[Part]) -> int:
    return sum(part.bytes for part in parts)


def turns(plan: Plan) -> dict[str, int]:
    """The bytes on a GPU that trainer and engines share, in each of their turns. A push has the weights twice, and
    buckets on their way."""
    weights = summed(part for part in (*plan.trainer.parts, *plan.engine.parts) if part.name == "weights")
    bucket = min(int(plan.recipe.weight_sync.bucket_mb * MIB), plan.push.bytes)
    return {
        "training": plan.trainer.bytes(host=False),
        "pushing": weights + BUCKETS * bucket,
        "rolling out": plan.engine.bytes(host=False),
    }


def fullest(plan: Plan) -> tuple[list[Part], int]:
    """The memory of the machine that has the least left over, in parts, and what it has."""
    layout, rooms = plan.layout, plan.machines.host_bytes
    if layout is None:
        return [], min(rooms)
    return max(
        ((_of_machine(plan, layout, place), room) for place, room in enumerate(rooms)),
        key=lambda machine: summed(machine[0]) - machine[1],
    )


def _of_machine(plan: Plan, layout: Layout, place: int) -> list[Part]:
    roles = {"trainer": layout.trainers, "engine": layout.engines, "worker": layout.workers}
    counts = {role: places.count(place) for role, places in roles.items()}
    first = {"driver": 1, "buffer": int(layout.buffer)} if place == 0 else {}
    imported = sum(IMPORTED[role] * count for role, count in {**counts, **first, "Ray": 1}.items())
    trainer, engine = plan.trainer.bytes(host=True), plan.engine.bytes(host=True)
    if plan.device == "cpu":
        trainer, engine = plan.trainer.bytes(), plan.engine.bytes()
    elif plan.recipe.placement == "colocated":
        trainer += states_bytes(plan)
        engine += plan.tensors.base * DTYPE_BYTES[plan.recipe.model.dtype]
    parts = [
        Part("trainer ranks", counts["trainer"] * trainer, plan.trainer.largest.fix),
        Part("engines", counts["engine"] * engine, plan.engine.largest.fix),
        Part("staged push", _staged(plan, counts, place), "choose a smaller model.path"),
        Part("object store", object_store_bytes(plan.recipe), "lower trainer.groups_per_step"),
        Part("processes before their tensors", imported * MIB, "lower rollout.workers"),
    ]
    return [part for part in parts if part.bytes]


def states_bytes(plan: Plan) -> int:
    """What a rank moves to the host while engines have its GPU."""
    names = ("weights", "gradients", "optimizer states")
    return sum(part.bytes for part in plan.trainer.parts if part.name in names and not part.host)


def _staged(plan: Plan, counts: Mapping[str, int], place: int) -> int:
    """One copy of the version for all engines of a machine with shm, which rank 0 writes; with gloo one for each."""
    if plan.push.transport == "shm":
        return plan.push.bytes if place == 0 else 0
    return plan.push.bytes * counts["engine"] if plan.push.transport == "gloo" else 0


def cached_bytes(plan: Plan) -> int:
    """The bytes of a token's keys and values, on each device of an engine."""
    config = plan.tensors.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = -(-heads // plan.engine.devices)
    return int(2 * own * width * plan.tensors.layers * DTYPE_BYTES[plan.recipe.model.dtype])

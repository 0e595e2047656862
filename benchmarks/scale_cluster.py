"""GLM-4.5 on machines of 8 GPUs: from sizes and constants to the costs that `benchmarks.scale_simulation` takes.

Every constant says where it is from. *Measured*: by a script of this folder, on the machine that benchmarks/README.md
names. *Published*: by the source beside it. *Assumed*: by us; nothing here has run on such a cluster.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from benchmarks.scale_simulation import EngineSpeed, Run, Turn
from rl.families.glm4_moe import GLM_45
from rollout.types import TOKEN_BYTES

GPUS_PER_MACHINE = 8

# Published: zai-org/GLM-4.5, config.json.
LAYERS, MOE_LAYERS, HIDDEN, EXPERT_HIDDEN = GLM_45["num_hidden_layers"], 89, GLM_45["hidden_size"], 1536
EXPERTS, EXPERTS_A_TOKEN, KV_HEADS, HEAD_DIM = 160, 8, 8, 128
PARAMETERS, ACTIVE = 355 * 10**9, 32 * 10**9  # with the layer for multi-token prediction, which is not trained
EXPERT_PARAMETERS = MOE_LAYERS * EXPERTS * 3 * HIDDEN * EXPERT_HIDDEN
WEIGHT_BYTES = 2  # bfloat16, on both sides: what the product pushes
MASTER_BYTES = 16  # of a parameter besides: float32 gradient, float32 master copy, two float32 moments
KV_BYTES = 2 * KV_HEADS * HEAD_DIM * WEIGHT_BYTES * LAYERS

# Published: NVIDIA's data sheets of H200 and ConnectX-7.
MEMORY_BYTES, MEMORY_PER_S, FLOPS, NETWORK_PER_S = 141e9, 4.8e12, 989e12, 50e9

# Assumed: shares of those peaks that are reached, and the Python of an engine's step.
MFU, NETWORK_SHARE, MEMORY_SHARE, ENGINE_MEMORY_SHARE = 0.4, 0.7, 0.6, 0.85
STEP_PYTHON_S = 0.005

# Published: 30,000 tokens/s for eight H200 (gpustack.ai, performance lab, GLM-4.6 in FP8, which has GLM-4.5's sizes,
# with 4,000 tokens of prompt and 200 of answer: 14,980 a second on four). bfloat16 is no faster.
PROMPT_PER_S = 30_000.0

# Assumed: Adam's step on the CPUs of a machine, where the optimizer does not fit on its GPUs.
HOST_PARAMETERS_PER_S = 3e9

# Measured, and rounded up: benchmarks/README.md, "The path of a trajectory" (the driver's work, and bytes on disk),
# "One buffer" (110 to 160 µs of CPU; the driver waits for a part), "Orchestration" (agent loop, GLM-4.5's format).
DRIVER_S, BUFFER_S, BUFFER_TAKE_S = 60e-6, 200e-6, 40e-6
WORKER_S, FORMAT_S, STORE_BYTES = 1.9e-3, 3.9e-3, 4.5

# Assumed: the cores of a machine that rollout workers may use, and what a shared file system takes.
WORKER_CORES, STORE_PER_S = 64, 2e9

# recipes/agent_rl.yaml, and what it says of GLM-4.5.
GROUP, MAX_STALENESS, TOKEN_BUDGET, EXPERT_PARALLEL, MAX_TURN = 16, 2, 16_384, 32, 4096
FILLED = 0.95

# Assumed work: 8 turns; a prompt of 1,000 tokens, tool results of 500 on average; turns of log-normal length, with a
# mean of about 390 tokens; tools that take 0.1 to 300 s, mostly less than a second (as benchmarks.orchestration).
TURNS, PROMPT, RESULT = 8, 1000, 500


def trajectory(numbers: random.Random) -> list[Turn]:
    turns = []
    for number in range(TURNS):
        observed = PROMPT if number == 0 else max(1, round(numbers.expovariate(1 / RESULT)))
        sampled = min(MAX_TURN, max(1, round(numbers.lognormvariate(5.6, 0.85))))
        tools_s = min(300.0, 0.1 * numbers.paretovariate(0.9)) if number < TURNS - 1 else 0.0
        turns.append(Turn(observed=observed, sampled=sampled, tools_s=tools_s))
    return turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Seconds of a micro-batch of TOKEN_BUDGET tokens on every rank, by part, and those of a step."""

    ranks: int
    compute_s: float
    exchange_s: float
    gather_s: float
    optimizer_s: float
    on_host: bool
    """The optimizer's states do not fit on the GPUs (`offload_optimizer`)."""

    @property
    def micro_batch_s(self) -> float:
        """Gathers run beside the products; tokens on their way to experts are waited for."""
        return self.exchange_s + max(self.compute_s, self.gather_s)

    def step_s(self, tokens: int) -> float:
        return self.micro_batches(tokens) * self.micro_batch_s + self.optimizer_s

    def micro_batches(self, tokens: int) -> int:
        return math.ceil(tokens / (self.ranks * TOKEN_BUDGET * FILLED))

    def largest(self, tokens: int) -> str:
        """The largest part of a step."""
        count = self.micro_batches(tokens)
        parts = {
            "trainer: all-to-all of the experts": count * self.exchange_s,
            "trainer: products of matrices": count * self.compute_s,
            "trainer: gathers of ZeRO-3": count * max(0.0, self.gather_s - self.compute_s),
            "trainer: the optimizer on the host": self.optimizer_s,
        }
        return max(parts, key=lambda name: parts[name])


def training(ranks: int) -> Training:
    """A step of ZeRO-3 with expert parallelism over EXPERT_PARALLEL ranks and recomputed activations."""
    network = NETWORK_PER_S * NETWORK_SHARE
    away = 1 - GPUS_PER_MACHINE / EXPERT_PARALLEL
    sent = 3 * 2 * MOE_LAYERS * EXPERTS_A_TOKEN * HIDDEN * WEIGHT_BYTES * away  # forward, again, backward; there, back
    gathered = (PARAMETERS - EXPERT_PARAMETERS + EXPERT_PARAMETERS / EXPERT_PARALLEL) * WEIGHT_BYTES
    states = PARAMETERS * (WEIGHT_BYTES + MASTER_BYTES) / ranks
    activations = TOKEN_BUDGET * LAYERS * HIDDEN * WEIGHT_BYTES
    on_host = states + activations > MEMORY_BYTES * ENGINE_MEMORY_SHARE
    own = PARAMETERS / ranks
    on_device_s = own * MASTER_BYTES * 2 / (MEMORY_PER_S * MEMORY_SHARE)
    return Training(
        ranks=ranks,
        compute_s=8 * ACTIVE * TOKEN_BUDGET / (FLOPS * MFU),
        exchange_s=TOKEN_BUDGET * sent / network,
        gather_s=3 * gathered / network,  # for forward and backward, and the gradients' reduction
        optimizer_s=own * GPUS_PER_MACHINE / HOST_PARAMETERS_PER_S if on_host else on_device_s,
        on_host=on_host,
    )


def engine_speed() -> EngineSpeed:
    """An engine of a whole machine. A step reads all weights (with 50 requests nearly every expert has a token) and the
    caches of its requests."""
    memory = GPUS_PER_MACHINE * MEMORY_PER_S * MEMORY_SHARE
    weights = PARAMETERS * WEIGHT_BYTES
    return EngineSpeed(
        step_s=weights / memory + STEP_PYTHON_S,
        step_s_per_request=2 * ACTIVE / (GPUS_PER_MACHINE * FLOPS * MFU),
        step_s_per_context_token=KV_BYTES / memory,
        prompt_s_per_token=1 / PROMPT_PER_S,
        cache_tokens=(GPUS_PER_MACHINE * MEMORY_BYTES * ENGINE_MEMORY_SHARE - weights) / KV_BYTES,
    )


PUSH_S = PARAMETERS * WEIGHT_BYTES / (NETWORK_PER_S * NETWORK_SHARE)
"""Rank 0 sends every weight once, over its one network card; NCCL passes it on from engine to engine."""


def cluster(gpus: int, concurrency: int, steps: int, seed: int = 0) -> tuple[Run, Training]:
    """Half of the GPUs train, half act. The buffer's gate is what bounds the trajectories that are open at once."""
    half = training(gpus // 2)
    run = Run(
        engines=gpus // 2 // GPUS_PER_MACHINE,
        speed=engine_speed(),
        groups_per_step=max(1, concurrency // GROUP // (MAX_STALENESS + 1)),
        group_size=GROUP,
        max_staleness=MAX_STALENESS,
        slots=10**9,
        trajectory=trajectory,
        train_s=lambda tokens, trajectories: half.step_s(tokens),
        push_s=PUSH_S,
        pause_s=PUSH_S,  # the nccl transport has no stage: engines stand still while weights arrive
        handling_s=DRIVER_S + BUFFER_TAKE_S,
        recompute=True,
        steps=steps,
        seed=seed,
    )
    return run, half


SAMPLE_BYTES = TOKEN_BYTES
"""Bytes of a token from a worker to the rank that trains it."""

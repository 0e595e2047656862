"""What a run moves and writes: the pushes of its weights, and the disk for its trajectories and checkpoints."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.config import Recipe
from rl.driver.specs import transport_of
from rl.observe.metrics_log import read_metrics
from rl.planning.memory import FLOAT32, GIB, pushed_bytes
from rl.planning.tensors import Tensors
from rl.recipe.resolved import derived
from rl.rundir.directory import METRICS
from rl.zero.deepspeed_config import zero_stage
from rollout.types import DTYPE_BYTES, Device

STAGED = ("shm", "gloo")
"""The transports with which engines sample on while a version arrives."""
ARRIVE_COPIES = 1.6
"""A version arrives in shared memory in the time of so many copies of it (benchmarks/README.md, A weight push)."""
GLOO_SHARE = 0.45
"""The share of the network that a push over gloo reaches (the same table)."""
LOAD_S_A_GIB = 1.5
"""How long an engine on CPU needs to load a GiB that has arrived, most of it in oneDNN's packing (the same table)."""
ETHERNET = 1.25e9
"""Assumed of machines without GPUs: 10 Gbit/s, in bytes a second."""
NIC, NVLINK = 0.7 * 50e9, 0.7 * 450e9
"""Assumed of machines with GPUs, in bytes a second (docs/scale.md): one network card, and the way between two GPUs."""
STORED_TRAJECTORY, STORED_TOKEN = 1700, 4.6
"""Bytes of a trajectory in the store: of its messages and rewards (measured in the quickstart), and of each token
(benchmarks/README.md, The path of a trajectory)."""
STEP_S = 60.0
"""Assumed where no run has shown how long a step takes."""
_PROBE = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A push of one version. `gather_s`: the ranks put the tensors together. `arrive_s`: the bytes' way to the engines.
    `load_s`: into the form that an engine computes with. With `stages` an engine stands still only for the last."""

    transport: str
    bytes: int
    stages: bool
    gather_s: float
    arrive_s: float
    load_s: float

    @property
    def pause_s(self) -> float:
        return self.load_s if self.stages else self.gather_s + self.arrive_s + self.load_s


def push_of(recipe: Recipe, tensors: Tensors, device: Device, machines: int) -> Push:
    """The push of a recipe in a run on so many machines. On CPU a memory copy is timed for it."""
    settings = transport_of(recipe, device, machines)
    size, ranks = pushed_bytes(recipe, tensors), recipe.trainer.ranks
    divided = ranks > 1 and zero_stage(recipe.trainer, recipe.model.dtype) == 3
    if device == "cuda":
        between = NVLINK if machines == 1 else NIC
        rates = {"nccl": NIC if machines > 1 else NVLINK, "ipc": NVLINK}
        arrive_s, load_s = size / rates.get(settings.name, NIC), 0.0
    else:
        between = copied_a_second()
        arrive_s = size / (GLOO_SHARE * ETHERNET) if settings.name == "gloo" else ARRIVE_COPIES * size / between
        load_s = LOAD_S_A_GIB * size / GIB
    return Push(
        transport=settings.name,
        bytes=size,
        stages=settings.name in STAGED,
        gather_s=size / between if divided else 0.0,
        arrive_s=arrive_s,
        load_s=load_s,
    )


def copied_a_second() -> float:
    """The bytes of a memory copy a second on this machine now: the best of three."""
    source = np.ones(_PROBE, dtype=np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begin)
    return _PROBE / min(times)


def checkpoint_bytes(recipe: Recipe, tensors: Tensors) -> int:
    """A checkpoint: the float32 weights and two moments of what is trained, and the export of the model or adapter."""
    exported = tensors.base if recipe.lora is None else tensors.trained
    return tensors.trained * 3 * FLOAT32 + exported * DTYPE_BYTES[recipe.model.dtype]


def trajectory_bytes(recipe: Recipe) -> int:
    """The trajectories of a step on disk, if each is as long as it may be."""
    arithmetic = derived(recipe)
    return int(
        arithmetic["trajectories_per_step"] * STORED_TRAJECTORY + arithmetic["tokens_per_step_max"] * STORED_TOKEN
    )


def step_s(recipe: Recipe) -> float | None:
    """The median time of a step in the run directory that the recipe names; None if there was none yet."""
    log = Path(recipe.run.dir) / METRICS if recipe.run.dir is not None else None
    if log is None or not log.is_file():
        return None
    times = [values["time/step_s"] for _, values in read_metrics(log) if values.get("time/step_s")]
    return statistics.median(times) if times else None

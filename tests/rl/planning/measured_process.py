"""Run as a program: a trainer rank or an engine of a recipe, which tells the memory that it needed.

    python -m tests.rl.planning.measured_process trainer|engine RECIPE [key=value …]

RANK and MASTER_PORT are in the environment of a trainer rank. Prints a JSON object. `peak`: the most resident bytes,
less those before the first tensor. Of a trainer, also the bytes of the tensors that it holds: `weights`, `gradients`
and `optimizer states`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl.recipe.load import load_recipe
from rollout.types import SamplingParams
from tests.samples import sample_of

STEPS = 2
REQUESTS, PROMPT, ANSWER = 8, 64, 64


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def trainer(arguments: Sequence[str]) -> dict[str, int]:
    recipe = load_recipe(arguments[0], arguments[1:])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(recipe.trainer.ranks)}
    os.environ |= {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    import torch

    from rl.batch.micro_batch import TrainRow, lay_out
    from rl.batch.tensors import Predictions, TokenLoss
    from rl.learner.learner import Learner

    def objective(logprobs: torch.Tensor, entropy: torch.Tensor, predictions: Predictions) -> TokenLoss:
        return TokenLoss(-torch.exp(logprobs - predictions.behaviour_logprobs) * predictions.advantages, {})

    before = resident("VmRSS")
    settings = recipe.trainer
    learner = Learner(recipe.model.path, recipe.model, settings, settings.optimizer, 0, "cpu", recipe.lora)
    draw, length = np.random.default_rng(0), settings.token_budget // 4
    rows = [
        TrainRow(
            sample=sample_of(
                token_ids=draw.integers(0, 900, length).tolist(),
                loss_mask=[0] + [1] * (length - 1),
                logprobs=[0.0] + [-9.0] * (length - 1),
                versions=[-1] + [0] * (length - 1),
            ),
            advantages=np.ones(length - 1),
            weight=1 / settings.token_budget,
            temperatures=1.0,
        )
        for _ in range(4)
    ]
    batch = lay_out(rows, [0] * len(rows))
    for _ in range(STEPS):
        learner.train_step([batch], objective, 1e-5)
    return {"peak": resident("VmHWM") - before, **held(learner)}


def held(learner: object) -> dict[str, int]:
    """The bytes of the tensors that a learner keeps between two steps."""
    import torch

    engine = learner._engine  # type: ignore[attr-defined]
    parameters = list(engine.module.parameters())
    weights = sum(getattr(one, "ds_tensor", one).nbytes for one in parameters)
    states = [value for state in engine.optimizer.state.values() for value in state.values()]
    optimizer = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.numel() > 1)
    copies = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups")  # of stage 3, and of stages 1 and 2
    master = sum(one.nbytes for name in copies for one in getattr(engine.optimizer, name, []))
    flat = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    return {
        "weights": weights,
        "optimizer states": optimizer + master,
        **({"gradients": flat.nbytes} if flat is not None else {}),
    }


def engine(arguments: Sequence[str]) -> dict[str, int]:
    recipe = load_recipe(arguments[0], arguments[1:])
    from rollout.engine.arguments import set_vllm_environment

    set_vllm_environment(os.environ, "cpu", 1, True)
    for module in ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner"):
        importlib.import_module(module)
    from rl.driver.specs import engine_settings
    from rollout.engine.thread import EngineThread

    before = resident("VmRSS")
    thread = EngineThread(engine_settings(recipe, "cpu")[0])
    thread.start().result(600)
    thread.submit(lambda llm: llm.set_weight_version("0")).result(60)
    sampling = SamplingParams(max_tokens=ANSWER)
    prompts = [np.arange(10, 10 + PROMPT, dtype=np.int32) + number for number in range(REQUESTS)]
    requests = [thread.generate(f"r{i}", prompt, sampling, None) for i, prompt in enumerate(prompts)]
    for request in requests:
        request.result(600)
    peak = resident("VmHWM") - before
    thread.shutdown()
    return {"peak": peak}


if __name__ == "__main__":
    print("\n" + json.dumps({"trainer": trainer, "engine": engine}[sys.argv[1]](sys.argv[2:])), flush=True)
    os._exit(0)

"""The work of one rank in each multi-process test of the learner; see `tests.rl.learner.learner_worker.run_ranks`.

Starting a rank costs seconds, so a scenario checks many configurations. It builds one learner after another in the same
process, as a supervised stage and then reinforcement learning do.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import groups, safe_get_full_optimizer_state
from torch import Tensor

from rl.batch.micro_batch import MicroBatch, filler, lay_out
from rl.batch.packing import pack
from rl.learner.config import LoraConfig
from rl.learner.learner import Learner
from rl.weights.source import WeightSource, _pieces
from tests.rl.learner import learner_fixtures as fixtures
from tests.rl.learner.learner_cases import ADAPTER_CASES, CASES, SMALL_BUCKET, TURN_CASES, AdapterCase

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def parity(directory: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Do two steps of every case. Return everything of the first that can be compared with plain Hugging Face, and the
    loss of the second."""
    results = {}
    for case in CASES[WORLD]:
        learner = fixtures.learner(
            directory.parent / case.kind,
            WORLD,
            case.expert_parallel,
            case.persist,
            gradient_checkpointing=case.checkpointing,
            zero_stage=case.stage,
        )
        batches = with_fillers(case.budget)
        before = row_logprobs(learner)
        stats = learner.train_step(batches, fixtures.objective, fixtures.OPTIMIZER.lr)
        export = directory / ("export-" + "-".join(map(str, case)))
        learner.export_hf(export, shard_bytes=100_000)
        results[case] = {
            "logprobs": before,
            "stats": stats,
            "first_moment": first_moments(learner),
            "weights": full_weights(learner),
            "manifest": learner.weights.manifest(),
            "streaming": stream_in_small_buckets(learner),
            "logprobs_after": row_logprobs(learner),
            "export": export,
        }
        second = learner.train_step(batches, fixtures.objective, fixtures.OPTIMIZER.lr)
        results[case]["second_loss"] = second["loss"]
        learner.close()
    return results


def sharing(directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Do one step over rows of groups: in two packings of separate rows, and as prefix trees."""
    data = fixtures.group_rows()
    layouts = {
        "wide": pack(data, WORLD, 1000)[RANK],
        "narrow": pack(data, WORLD, 60)[RANK],
        "trees": fixtures.trees(WORLD, 1000)[RANK],
        "cut trees": fixtures.trees(WORLD, 90)[RANK],
    }
    results = {}
    for kind in ("glm", "llama"):
        for name, batches in layouts.items():
            expert_parallel = min(WORLD, 2) if kind == "glm" else 1
            learner = fixtures.learner(
                directory.parent / kind, WORLD, expert_parallel, gradient_checkpointing=name == "cut trees"
            )
            stats = learner.train_step(batches, fixtures.objective, fixtures.OPTIMIZER.lr)
            tokens = sum(len(batch) for batch in batches)
            results[kind, name] = {"stats": stats, "first_moment": first_moments(learner), "tokens": tokens}
            learner.close()
    return results


def adapters(directory: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Do two steps of every case with adapters; return all that can be compared with PEFT in plain PyTorch."""
    results = {}
    for case in ADAPTER_CASES[WORLD]:
        learner = fixtures.learner(
            directory.parent / case.kind, WORLD, case.expert_parallel, zero_stage=case.stage, lora=case.lora
        )
        begun = row_logprobs(learner)
        stats = [step(learner, case.budget) for _ in range(2)]
        export = directory / case.folder
        learner.export_adapter(export)
        learner.export_hf(export / "merged")
        learner.save(export / "checkpoint")
        results[case] = {
            "stats": stats,
            "begun": begun,
            "reference": row_logprobs(learner, reference=True),
            "logprobs": row_logprobs(learner),
            "adapter": streamed(learner.adapter),
            "merged": streamed(learner.weights),
            "base": streamed(learner.base),
            "base_hash": learner.base_hash(),
            "described": learner.describe(),
            "export": export,
            "third": step(learner, case.budget),
        }
        learner.close()
    return results


def adapters_resumed(directory: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Load the checkpoint of every case into a new learner, and do the third step. Then try one over another model."""
    results = {}
    for case in ADAPTER_CASES[WORLD]:
        checkpoint = directory.parent / f"adapters{WORLD}" / case.folder / "checkpoint"
        learner = fixtures.learner(
            directory.parent / case.kind, WORLD, case.expert_parallel, zero_stage=case.stage, lora=case.lora
        )
        learner.load(checkpoint)
        results[case] = {"third": step(learner, case.budget)}
        learner.close()
        if case is ADAPTER_CASES[WORLD][0]:
            results[case]["refused"] = refused_base(directory.parent / f"{case.kind}-other", case, checkpoint)
    return results


def dropped_out(directory: Path) -> dict[float, dict[str, Any]]:
    """Do a step without and with dropout. Then the losses of two steps that change nothing, and whether the reference
    policy's logprobs are twice the same."""
    results = {}
    for dropout in (0.0, 0.5):
        lora = LoraConfig(rank=4, dropout=dropout)
        learner = fixtures.learner(directory.parent / "llama", 1, 1, zero_stage=0, lora=lora)
        step(learner)
        losses = [learner.train_step(with_fillers(20), fixtures.objective, lr=0.0)["loss"] for _ in range(2)]
        references = [row_logprobs(learner, reference=True) for _ in range(2)]
        learner.export_adapter(directory / f"dropout-{dropout}")
        exported = json.loads((directory / f"dropout-{dropout}" / "adapter_config.json").read_text())
        results[dropout] = {
            "losses": losses,
            "reference": all(map(torch.equal, *references)),
            "exported": exported["lora_dropout"],
        }
        learner.close()
    return results


def refused_base(other: Path, case: AdapterCase, checkpoint: Path) -> str:
    """What loading a checkpoint over another base model says."""
    learner = fixtures.learner(other, WORLD, case.expert_parallel, zero_stage=case.stage, lora=case.lora)
    try:
        learner.load(checkpoint)
    except ValueError as error:
        return str(error)
    finally:
        learner.close()
    return ""


def half_precision(directory: Path) -> dict[str, Any]:
    """Do one step in bfloat16. Record the input, weight and logits of the first router, too."""
    learner = fixtures.learner(directory.parent / "glm", WORLD, WORLD, dtype="bfloat16")
    router = next(m.router for m in learner._engine.module.modules() if isinstance(m, AutoEPMoELayer))
    seen: dict[str, Tensor] = {}
    router.gate.register_forward_hook(
        lambda gate, inputs, logits: seen.update(
            input=inputs[0].detach(), weight=gate.weight.detach().clone(), logits=logits.detach()
        )
    )
    logprobs = row_logprobs(learner)
    stats = step(learner)
    buffers = {name: buffer.dtype for name, buffer in learner._engine.module.named_buffers()}
    types = {spec.name: spec.dtype for spec in learner.weights.manifest()}
    learner.close()
    return {"logprobs": logprobs, "stats": stats, "router": seen, "buffers": buffers, "types": types}


def lockstep(directory: Path) -> dict[str, Any]:
    """Wrong calls are refused on every rank, the learner still works afterwards, and lr=0 moves no weight."""
    learner = fixtures.learner(directory.parent / "glm", WORLD, WORLD)
    batches = with_fillers(64)
    errors = []
    for wrong in (batches * (RANK + 1), []):
        try:
            learner.train_step(wrong, fixtures.objective, lr=0.0)
        except ValueError as error:
            errors.append(str(error))
    before = full_weights(learner)
    learner.train_step(batches, fixtures.objective, lr=0.0)  # DeepSpeed learns the order of the modules
    with counted_gathers() as gathers:
        stats = learner.train_step(batches, fixtures.objective, lr=0.0)
    after = full_weights(learner)
    learner.close()
    return {
        "errors": errors,
        "gathers": len(gathers),
        "loss": stats["loss"],
        "unmoved": all(torch.equal(after[name], before[name]) for name in before),
    }


def lone(directory: Path) -> int:
    """How often a single rank without ZeRO copies its gradients together for a reduction, in one step."""
    learner = fixtures.learner(directory.parent / "llama", 1, 1, zero_stage=0)
    copied, flatten = [], learner._engine.flatten
    learner._engine.flatten = lambda tensors: copied.append(tensors) or flatten(tensors)
    step(learner)
    learner.close()
    return len(copied)


def second_copies(directory: Path) -> list[list[float]]:
    """The losses of three steps without and with hpZ, where each rank keeps a second partition of every parameter."""
    losses = []
    for more in ({}, {"zero_hpz_partition_size": WORLD}):
        learner = fixtures.learner(directory.parent / "llama", WORLD, 1, **more)
        losses.append([step(learner)["loss"] for _ in range(3)])
        learner.close()
    return losses


def resume_first(directory: Path) -> dict[str, Any]:
    """Do one step, save a checkpoint, do another step."""
    learner = fixtures.learner(directory.parent / "glm", WORLD, WORLD)
    step(learner)
    learner.save(directory.parent / "checkpoint")
    results = after_checkpoint(learner)
    learner.close()
    return results


def resume_second(directory: Path) -> dict[str, Any]:
    """Load that checkpoint in a new process and do the other step."""
    learner = fixtures.learner(directory.parent / "glm", WORLD, WORLD)
    for draw in range(3):
        torch.rand(draw + 1), random.random(), np.random.random()
    learner.load(directory.parent / "checkpoint")
    return after_checkpoint(learner)


def turns(directory: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Do two steps of every case without a turn of an inference engine after each, and with one."""
    results = {}
    for case in TURN_CASES[WORLD]:
        found = {}
        for between in (False, True):
            learner = fixtures.learner(
                directory.parent / case.kind,
                WORLD,
                case.expert_parallel,
                dtype=case.dtype,
                zero_stage=case.stage,
                lora=case.lora,
            )
            stats = []
            for _ in range(2):
                stats.append(step(learner))
                if between:
                    found["turn"] = turn(learner)
            found[between] = {"stats": stats, "weights": full_weights(learner)}
            learner.close()
        results[case] = found
    return results


def turn(learner: Learner) -> dict[str, Any]:
    """Offload the states as the driver does; stream the weights before theirs go."""
    before = full_weights(learner)
    optimizer = learner._states.offload("optimizer")
    again = learner._states.offload("optimizer")
    streamed = full_weights(learner)
    weights = learner._states.offload("weights")
    left = sum(p.untyped_storage().nbytes() for p in learner._engine.module.parameters())
    left += sum(p.ds_tensor.untyped_storage().nbytes() for p in learner._engine.module.parameters() if is_cut(p))
    back = learner._states.reload()
    return {
        "streamed": all(torch.equal(before[name], streamed[name]) for name in before),
        "optimizer": optimizer,
        "again": again,
        "weights": weights,
        "left": left,
        "back": back,
        "needed": sum(p.ds_tensor.nbytes if is_cut(p) else p.nbytes for p in learner._engine.module.parameters()),
        "trained": sum(
            p.ds_tensor.numel() if is_cut(p) else p.numel() // (1 if learner.stage == 0 else WORLD)
            for p in learner._engine.module.parameters()
            if p.requires_grad
        ),
    }


def is_cut(parameter: torch.nn.Parameter) -> bool:
    """Whether a rank keeps its part of a parameter beside it."""
    return hasattr(parameter, "ds_tensor")


@contextmanager
def counted_gathers() -> Iterator[list[None]]:
    """A list that grows by one with every all-gather of DeepSpeed."""
    backend, seen = deepspeed.comm.comm.cdb, []
    gather = backend.all_gather_into_tensor

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        return gather(*args, **kwargs)

    backend.all_gather_into_tensor = counted
    try:
        yield seen
    finally:
        del backend.all_gather_into_tensor


def after_checkpoint(learner: Learner) -> dict[str, Any]:
    draws = [torch.rand(3).tolist(), random.random(), np.random.random()]
    stats = step(learner)
    return {"draws": draws, "stats": stats, "weights": full_weights(learner)}


def step(learner: Learner, budget: int = 20) -> dict[str, float]:
    batches = with_fillers(budget)
    return learner.train_step(batches, fixtures.objective, fixtures.OPTIMIZER.lr)


def with_fillers(budget: int) -> list[MicroBatch]:
    """This rank's micro-batches. At a budget of 17 a filler comes first on rank 0, and last on other ranks."""
    mine = pack(fixtures.rows(), WORLD, budget)[RANK]
    if budget == 17:
        mine = [filler(), *mine] if RANK == 0 else [*mine, filler()]
    return mine


def row_logprobs(learner: Learner, *, reference: bool = False) -> list[Tensor]:
    """The logprobs of each row's trained tokens. One row goes into each call, and it is the same on every rank."""
    packed = [lay_out([row]) for row in fixtures.rows()]
    return [torch.from_numpy(learner.logprobs(batch, reference=reference)) for batch in packed]


def full_weights(learner: Learner) -> dict[str, Tensor]:
    return streamed(learner.weights)


def streamed(source: WeightSource) -> dict[str, Tensor]:
    return {name: tensor.clone() for bucket in source.buckets(1 << 30) for name, tensor in bucket}


def stream_in_small_buckets(learner: Learner) -> dict[str, Any]:
    """Stream the weights through small buckets. Record the bytes of each tensor, and how many bytes of parameters are
    whole at each bucket and at the end."""
    weights, bucket_bytes, whole_bytes = {}, [], []
    for bucket in learner.weights.buckets(SMALL_BUCKET):
        weights.update({name: tensor.clone() for name, tensor in bucket})
        bucket_bytes.append([tensor.nbytes for _, tensor in bucket])
        whole_bytes.append(sum(parameter.data.nbytes for parameter in learner._engine.module.parameters()))
    left = sum(parameter.data.nbytes for parameter in learner._engine.module.parameters())
    return {"weights": weights, "bucket_bytes": bucket_bytes, "whole_bytes": whole_bytes, "left": left}


def _optimizer_state(learner: Learner, parameter: torch.nn.Parameter, key: str) -> Tensor:
    """The whole state of a parameter. Without ZeRO it lies in torch's own optimizer."""
    if learner.stage == 0:
        return learner._engine.optimizer.state[parameter][key]
    return safe_get_full_optimizer_state(parameter, key)


def first_moments(learner: Learner) -> dict[str, Tensor]:
    """Adam's first moment after one step, (1 - beta1) times the clipped gradient that the optimizer saw."""
    if learner.stage == 2:  # DeepSpeed links the states of all groups of parameters when only the first has them
        learner._engine.optimizer._hp_optimizer_states_linked = False
        learner._engine.optimizer._lazy_init_hp_params_optimizer_state()
    moments: dict[str, Tensor] = {}
    for name, parameter in learner._engine.module.named_parameters():
        full = _optimizer_state(learner, parameter, "exp_avg")
        (piece,) = _pieces(name, parameter, learner._family, max_bytes=None)
        if piece.experts is None:
            moments[piece.names[0]] = full.clone()
            continue
        group = groups._get_expert_parallel_group(parameter.group_name)
        shards = [torch.empty_like(full) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(shards, full.contiguous(), group=group)
        moments.update(zip(piece.names, torch.cat(shards).unbind(0), strict=True))
    return moments

"""One rank of the learner: a DeepSpeed engine over the policy, and the operations that a run needs.

    train_step   all micro-batches → one gradient, of the weighted sum over all ranks → one AdamW step
    logprobs     the current policy's log-probabilities of a batch
    weights      the stream of full tensors for the inference copy
    save / load  everything that a resumed run needs to continue bit for bit
    export_hf    a Hugging Face checkpoint
    offload      its states make room on the device for an inference engine, until `reload`

A plain object, one in each rank's process; the caller sets torch.distributed's environment variables. `__init__` and
every public method except `close` are collectives: all ranks must call them. So is `weights.buckets`, while
`weights.manifest` and `weights.plan` are local. The learner knows no algorithm: `train_step` receives the objective as
a function.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from transformers import AutoConfig, PreTrainedConfig

from rl.batch.micro_batch import MicroBatch
from rl.batch.tensors import Objective, model_inputs, predictions_of
from rl.families.registry import family_of, refuse_quantised
from rl.learner.config import LoraConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rl.learner.expert_load import ExpertLoad
from rl.learner.lora import adapters_off, add_adapters, describe, experts_frozen, exported_config, save_only_trained
from rl.learner.model import PolicyModel, load_model, resolve_model
from rl.learner.process import join, partition, return_freed, seed_generators, set_deadlines
from rl.learner.rng import restore_rng, rng_state
from rl.learner.selfcheck import check_forward
from rl.weights.adapter_export import hash_of, write_adapter
from rl.weights.hf_export import SHARD_BYTES, write_hf_export
from rl.weights.hf_reader import HfCheckpoint, has_weights
from rl.weights.source import WeightSource
from rl.zero.clipping import clip_as_a_whole
from rl.zero.deepspeed_config import deepspeed_config, zero_stage
from rl.zero.overhead import gather_together, keep_lone_gradients
from rl.zero.router import route_in_float32
from rl.zero.states import Part, States

_TAG = "shards"
Seen = Callable[[MicroBatch, torch.Tensor], None]


class Learner:
    """See the module's docstring. A process holds one at a time: `close` it before making the next."""

    base: WeightSource
    """With an adapter: the weights without it."""
    adapter: WeightSource
    """With an adapter: its own tensors."""

    def __init__(
        self,
        model_path: str,
        model_cfg: ModelConfig,
        trainer_cfg: TrainerConfig,
        optimizer_cfg: OptimizerConfig,
        seed: int,
        device: str,
        lora: LoraConfig | None = None,
    ) -> None:
        """
        Args:
            model_path: directory or hub name of the weights to start from (model_cfg.path or an SFT stage's export).
            lora: the adapter that is trained instead of the weights.
            device: `cpu` or `cuda`; LOCAL_RANK is the index of the GPU.

        Raises:
            ValueError: the configuration does not fit the model or the number of ranks.
        """
        timeout = timedelta(seconds=trainer_cfg.timeout_s)
        self._device = join(device, trainer_cfg, timeout)
        self.rank = torch.distributed.get_rank()
        self._world = torch.distributed.get_world_size()
        if self._world != trainer_cfg.ranks:
            raise ValueError(f"trainer.ranks={trainer_cfg.ranks} but WORLD_SIZE={self._world}")
        self._origin = resolve_model(model_path)
        self._base_name = str(self._origin) if Path(model_path).is_dir() else model_path
        model_config = AutoConfig.from_pretrained(self._origin)
        if self.rank == 0:
            check_forward(model_config)
        architecture = model_config.to_dict()
        refuse_quantised(architecture)
        self._family = family_of(architecture, model_cfg.family)
        experts = self._family.experts(architecture)
        config = deepspeed_config(trainer_cfg, optimizer_cfg, self._family, experts, model_cfg.dtype, device)
        self.stage = zero_stage(trainer_cfg, model_cfg.dtype)
        place = partition(config) if self.stage == 3 else None
        read = self.rank == 0 or self.stage != 3
        causal_lm = load_model(model_path, model_cfg.dtype, seed, self._family, place, read)
        self._lora = lora
        if lora is not None:
            add_adapters(causal_lm, lora, seed, place)
        if trainer_cfg.gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        seed_generators(seed + self.rank)
        self._config = causal_lm.config
        policy = PolicyModel(causal_lm, trainer_cfg.logprob_chunk)
        trained = (parameter for parameter in policy.parameters() if parameter.requires_grad)
        if lora is not None:
            save_only_trained(policy)
        with experts_frozen() if lora is not None else nullcontext():
            self._engine, *_ = deepspeed.initialize(model=policy, model_parameters=trained, config=config)
        for buffer in self._engine.module.buffers():  # DeepSpeed does not move those of a partitioned model
            buffer.data = buffer.data.to(self._device)
        set_deadlines(timeout)
        if self.stage == 0:
            clip_as_a_whole(self._engine)
            keep_lone_gradients(self._engine)
        gather_together(self._engine.optimizer)
        self.weights = WeightSource(self._engine.module, self._family)
        if lora is not None:
            self.base = WeightSource(self._engine.module, self._family, "base")
            self.adapter = WeightSource(self._engine.module, self._family, "adapter")
        self._base_hash: str | None = None
        moe_layers = [m for m in self._engine.module.modules() if isinstance(m, AutoEPMoELayer)]
        if self._family.float32_router:
            route_in_float32(moe_layers)
        self._expert_load = ExpertLoad(moe_layers)
        self._states = States(self._engine.module, self._engine.optimizer, self._device)
        return_freed()

    def train_step(
        self,
        batches: Sequence[MicroBatch],
        objective: Objective,
        lr: float,
        seen: Seen | None = None,
    ) -> dict[str, float]:
        """Take one optimizer step on Σ weight · token loss over the micro-batches of all ranks.

        Args:
            batches: this rank's micro-batches.
            lr: the learning rate of this step (`rl.learner.schedule`).
            seen: is told each micro-batch and the log-probabilities [M] of its labels, detached.

        Returns:
            `loss`, `grad_norm` (before clipping), `lr`, the sum of each of the objective's statistics over trained
            tokens, and for MoE models `moe/load_max_over_mean` (load of the busiest expert over the mean load, in the
            worst layer, a token of a shared prefix counted once for each of its rows). All are global and equal on
            every rank.

        Raises:
            ValueError: ranks disagree on the number of micro-batches, or there are none.
        """
        self._require_lockstep(len(batches))
        self._expert_load.reset()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, torch.Tensor] = {}
        for batch in batches:
            for name, value in self._backward(batch, objective, seen).items():
                sums[name] = sums[name] + value if name in sums else value
        self._engine.step()
        return {
            **self._reduce(sums),
            "grad_norm": float(self._engine.get_global_grad_norm()),
            "lr": lr,
            **self._expert_load.max_over_mean(),
        }

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch, *, reference: bool = False) -> npt.NDArray[np.float32]:
        """The log-probability [M] of each label under the current policy, or under the reference policy, which is the
        model without its adapter. All ranks must call it equally often."""
        with adapters_off(self._engine.module) if reference else nullcontext():
            logprobs, _ = self._forward(batch)
        return logprobs.float().cpu().numpy()

    def reference_logprobs(self, batches: Sequence[MicroBatch]) -> list[npt.NDArray[np.float32]]:
        """`logprobs` of a step's micro-batches under the reference policy.

        Raises:
            ValueError: as `train_step`.
        """
        self._require_lockstep(len(batches))
        return [self.logprobs(batch, reference=True) for batch in batches]

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of named numbers over the ranks. A collective: all ranks must give the same names."""
        return self._reduce(
            {name: torch.tensor(value, dtype=torch.float64, device=self._device) for name, value in values.items()}
        )

    def from_first_rank(self, value: bool) -> bool:
        """Rank 0's value, on every rank. A collective."""
        found = [value]
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def base_hash(self) -> str | None:
        """The content hash of the weights that an adapter is for; None without an adapter. A collective."""
        if self._lora is not None and self._base_hash is None:
            self._base_hash = hash_of(self.base, self.rank)
        return self._base_hash

    def describe(self) -> str | None:
        """What is trained, in words; None if that is everything."""
        return None if self._lora is None else describe(self._engine.module)

    def save(self, directory: str | Path) -> None:
        """Write this rank's shards of what is trained, its optimizer state and its random generators. They can only be
        loaded by the same number of ranks."""
        directory = Path(directory)
        self._engine.save_checkpoint(str(directory), tag=_TAG, exclude_frozen_parameters=self._lora is not None)
        state = {"ranks": self._world, "stage": self.stage, "rng": rng_state(), "base": self.base_hash()}
        self._state_file(directory).write_text(json.dumps(state))
        torch.distributed.barrier()

    def load(self, directory: str | Path) -> None:
        """Restore what `save` wrote.

        Raises:
            ValueError: there is no checkpoint, or it was written by a different number of ranks or under another ZeRO
                stage, or its adapter is for other weights than those of this model.
        """
        directory = Path(directory)
        if not self._state_file(directory).is_file():
            raise ValueError(f"{directory} holds no learner state of rank {self.rank}")
        state = json.loads(self._state_file(directory).read_text())
        if state["ranks"] != self._world:
            raise ValueError(f"{directory} was written by {state['ranks']} ranks; set trainer.ranks to that")
        if (stage := state.get("stage", 3)) != self.stage:
            raise ValueError(f"{directory} was written under ZeRO stage {stage}; set trainer.zero_stage to that")
        if state.get("base") != self.base_hash():
            raise ValueError(
                f"{directory} is for a base model with the content hash {state.get('base')}, and {self._origin} has "
                f"{self.base_hash()}: an adapter is of use with its own base model only"
            )
        loaded, _ = self._engine.load_checkpoint(str(directory), tag=_TAG, load_module_strict=self._lora is None)
        if loaded is None:
            raise ValueError(f"{directory} holds no DeepSpeed shards for rank {self.rank}")
        restore_rng(state["rng"])

    def offload(self, part: Part) -> int:
        """Move a part of the states to the host, and return the bytes that are left on a GPU. Local. Until `reload`
        nothing else may be called but `offload` and, while the weights are on the device, `weights.buckets`."""
        self._states.offload(part)
        return self._states.left_bytes()

    def reload(self) -> None:
        """Bring all states back to the device. Local."""
        self._states.reload()

    def export_hf(self, directory: str | Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Write a directory that `from_pretrained` and vLLM load: weights (an adapter is merged into them), config,
        tokenizer files of the origin."""
        kept = self._kept()
        config = self._exported_config(with_kept=bool(kept))
        write_hf_export(Path(directory), self.weights, config, self._origin, self.rank, shard_bytes, kept)
        torch.distributed.barrier()

    def export_adapter(self, directory: str | Path) -> None:
        """Write the adapter in PEFT's format."""
        assert self._lora is not None, "there is no adapter"
        config = exported_config(self._engine.module, self._lora, self._base_name)
        write_adapter(Path(directory), self.adapter, config, self.rank)
        torch.distributed.barrier()

    def close(self) -> None:
        """Free the engine, so that another learner can be built in this process. The process group stays."""
        self._engine.destroy()
        del self._engine, self._states, self.weights, self._expert_load
        if self._lora is not None:
            del self.base, self.adapter
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = model_inputs(batch, self._device)
        self._expert_load.multiplicity = inputs.multiplicity
        logprobs, entropy = self._engine(
            tokens=inputs.tokens,
            position_ids=inputs.position_ids,
            segments=inputs.segments,
            sources=inputs.sources,
            labels=inputs.labels,
            temperatures=inputs.temperatures,
        )
        return logprobs, entropy

    def _backward(self, batch: MicroBatch, objective: Objective, seen: Seen | None) -> dict[str, torch.Tensor]:
        logprobs, entropy = self._forward(batch)
        if seen is not None:
            seen(batch, logprobs.detach())
        predictions = predictions_of(batch, self._device)
        found = objective(logprobs, entropy, predictions)
        # A filler's loss may have no graph, and its rank must take part in the backward pass all the same.
        loss = (found.loss * predictions.weights).sum() + 0.0 * logprobs[:0].sum()
        # DeepSpeed averages gradients over the ranks. The weights are made for the whole step, so the gradients must be
        # summed instead: multiplying by the number of ranks undoes the average.
        self._engine.backward(loss * self._world, scale_wrt_gas=False)
        return {**{name: v.detach().float().sum() for name, v in found.statistics.items()}, "loss": loss.detach()}

    def _require_lockstep(self, count: int) -> None:
        """Raise ValueError unless all ranks have the same number of micro-batches, at least one. ZeRO-3 gathers
        parameters in every forward, so a rank with fewer micro-batches would leave the others waiting."""
        mine = torch.tensor([count, -count], device=self._device)
        torch.distributed.all_reduce(mine, op=torch.distributed.ReduceOp.MAX)
        most, least = int(mine[0]), -int(mine[1])
        if most != least or most == 0:
            raise ValueError(
                f"rank {self.rank} has {count} micro-batches, the ranks have {least} to {most}: "
                "give every rank the same number, at least one; fill with zero-weight ones (`pack` does)"
            )

    def _reduce(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        names = sorted(sums)
        values = torch.stack([sums[name].detach().to(torch.float64) for name in names])
        torch.distributed.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _kept(self) -> dict[str, Path]:
        """The tensors of the checkpoint that are not trained and belong into an export, with their files."""
        patterns = self._family.kept(self._config.to_dict())
        if not patterns or not has_weights(self._origin):
            return {}
        return HfCheckpoint(self._origin, self._family).matching(patterns)

    def _exported_config(self, *, with_kept: bool) -> PreTrainedConfig:
        family, values = self._family, self._config.to_dict()
        exported = family.exported_config_with_kept(values) if with_kept else family.exported_config(values)
        return type(self._config).from_dict(exported)

    def _state_file(self, directory: Path) -> Path:
        return directory / f"learner-rank{self.rank:05d}.json"

"""Shared by the learner's tests: tiny models, one fixed training problem, and its answer by plain Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from rl.batch.micro_batch import MicroBatch, TrainRow, lay_out
from rl.batch.packing_trees import Tree, assign_trees
from rl.batch.tensors import Predictions, TokenLoss
from rl.learner.config import LoraConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rl.learner.learner import Learner
from rl.learner.lora import add_adapters, peft_config
from rl.weights.adapters import adapted_layers, adapter_name, checkpoint_name
from tests.samples import sample_of

SEED = 5
VOCAB = 512
PREFIX = 20
TEMPERATURE = 0.7
# Adam's first step is g / (|g| + eps). A small eps would turn the rounding noise of tiny gradients into whole steps.
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-3, weight_decay=0.1, clip_norm=0.05)

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}


def model_config(kind: str) -> PreTrainedConfig:
    if kind.startswith("glm"):
        return Glm4MoeConfig(
            **_COMMON,
            num_hidden_layers=3,
            n_routed_experts=8,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=1.7,
            use_qk_norm=True,
            attention_bias=True,
        )
    if kind == "qwen":
        return Qwen3MoeConfig(**_COMMON, num_hidden_layers=2, num_experts=8, norm_topk_prob=True)
    dense = {k: v for k, v in _COMMON.items() if k not in ("moe_intermediate_size", "num_experts_per_tok")}
    return LlamaConfig(**dense, num_hidden_layers=2, tie_word_embeddings=True)


def make_model(kind: str, directory: Path) -> Path:
    """Save a tiny random model. `glm-skewed` routes every token to the first four experts, those of rank 0; `…-other`
    has other weights."""
    torch.manual_seed(4 if kind.endswith("-other") else 3)
    model = AutoModelForCausalLM.from_config(model_config(kind), dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            bias = module.e_score_correction_bias
            bias.copy_(torch.randn(bias.shape) * 0.2)
            if kind == "glm-skewed":
                bias[:4] += 10.0
    model.save_pretrained(directory / kind)
    return directory / kind


def learner(
    path: Path,
    ranks: int,
    expert_parallel: int,
    persist: int = 100_000,
    optimizer: OptimizerConfig = OPTIMIZER,
    gradient_checkpointing: bool = False,
    dtype: str = "float32",
    zero_stage: int = 3,
    lora: LoraConfig | None = None,
    **zero: int,
) -> Learner:
    """A learner on gloo; parameters of up to `persist` elements stay whole between steps. `zero` are further settings
    of DeepSpeed's ZeRO."""
    settings = {
        "ranks": ranks,
        "expert_parallel": expert_parallel,
        "zero_stage": zero_stage,
        "logprob_chunk": 11,
        "timeout_s": 60.0,
        "gradient_checkpointing": gradient_checkpointing,
    }
    if zero_stage == 3:
        settings["deepspeed"] = {"zero_optimization": {"stage3_param_persistence_threshold": persist, **zero}}
    return Learner(
        model_path=str(path),
        model_cfg=ModelConfig.model_validate({"path": str(path), "dtype": dtype}),
        trainer_cfg=TrainerConfig.model_validate({**settings, "optimizer": optimizer.model_dump()}),
        optimizer_cfg=optimizer,
        seed=SEED,
        device="cpu",
        lora=lora,
    )


def rows() -> list[TrainRow]:
    """Seven rows of 2 to 16 tokens; about two thirds of the tokens are sampled, each with its own advantage."""
    generator = np.random.default_rng(1)
    samples = []
    for length in (7, 12, 5, 9, 3, 16, 2):
        mask = [0, *(int(generator.random() < 0.7) for _ in range(length - 1))]
        samples.append(
            sample_of(
                token_ids=tuple(generator.integers(0, VOCAB, length).tolist()),
                loss_mask=tuple(mask),
                logprobs=tuple(-6.0 - float(generator.random()) if m else 0.0 for m in mask),
                versions=tuple(0 if m else -1 for m in mask),
            )
        )
    count = sum(sample.trained_tokens for sample in samples)
    return [
        TrainRow(
            sample=sample,
            advantages=generator.normal(size=sample.trained_tokens),
            weight=(1 + i % 3) / count,
            temperatures=TEMPERATURE,
        )
        for i, sample in enumerate(samples)
    ]


def group_rows() -> list[TrainRow]:
    """Three groups of four rows. A group's rows have PREFIX tokens in common, and their own 12 to 24 after that."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(3):
        prefix = generator.integers(0, VOCAB, PREFIX).tolist()
        for _ in range(4):
            own = generator.integers(0, VOCAB, generator.integers(12, 25)).tolist()
            sample = sample_of(
                token_ids=prefix + own,
                loss_mask=[0] * PREFIX + [1] * len(own),
                logprobs=[0.0] * PREFIX + (-6.0 - generator.random(len(own))).tolist(),
                versions=[-1] * PREFIX + [0] * len(own),
            )
            advantages = generator.normal(size=len(own))
            made.append(TrainRow(sample=sample, advantages=advantages, weight=0.01, temperatures=TEMPERATURE))
    return made


def trees(ranks: int, budget: int) -> list[list[MicroBatch]]:
    """`group_rows()` as prefix trees, for every rank."""
    data = group_rows()
    lengths = [len(row) for row in data]
    groups = [Tree(range(i, i + 4), lengths[i : i + 4], [PREFIX] * 4) for i in range(0, len(data), 4)]
    return [
        [
            lay_out(
                [data[i] for tree in of_one for i in tree.rows],
                [shared for tree in of_one for shared in (0, *tree.shared[1:])],
            )
            for of_one in of_rank
        ]
        for of_rank in assign_trees(groups, ranks, budget)
    ]


def objective(logprobs: Tensor, entropy: Tensor, batch: Predictions) -> TokenLoss:
    """An unclipped policy gradient."""
    ratio = torch.exp(logprobs - batch.behaviour_logprobs)
    return TokenLoss(-ratio * batch.advantages, {"entropy": entropy, "tokens": torch.ones_like(entropy)})


@dataclass
class Answer:
    """The result of one step by plain Hugging Face and torch.optim.AdamW. Tensors have their checkpoint names."""

    logprobs: list[Tensor]
    loss: float
    grad_norm: float
    first_moment: dict[str, Tensor]
    weights: dict[str, Tensor]


def checkpoint_names(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    return revert_weight_conversion(model, kept)


def plain_answer(path: Path, data: Sequence[TrainRow], dtype: torch.dtype = torch.float32) -> Answer:
    """Do one step over the rows, one sequence at a time, with full logits."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", experts_implementation="eager"
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
        weight_decay=OPTIMIZER.weight_decay,
    )
    all_logprobs, total = [], 0.0
    for row in data:
        loss, logprobs = _backward(model, row)
        all_logprobs.append(logprobs)
        total += loss
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
    optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters() if p in optimizer.state}
    return Answer(
        logprobs=all_logprobs,
        loss=total,
        grad_norm=float(norm),
        first_moment=checkpoint_names(model, moments),
        weights=checkpoint_names(model, model.state_dict()),
    )


@dataclass
class AdapterAnswer:
    """The result of steps over adapters by PEFT in plain PyTorch. `adapter` has the names of PEFT's files."""

    losses: list[float]
    grad_norms: list[float]
    logprobs: list[Tensor]
    adapter: dict[str, Tensor]
    merged: dict[str, Tensor]


def plain_adapter_answer(path: Path, lora: LoraConfig, data: Sequence[TrainRow], steps: int) -> AdapterAnswer:
    """Do some steps over the rows, and merge the adapters with PEFT."""
    base = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="eager"
    ).train()
    if base.config.model_type == "llama":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        torch.manual_seed(SEED)
        model = get_peft_model(base, peft_config(lora, targets))
    else:  # PEFT takes the names of shared experts for those of routed ones
        add_adapters(base, lora, SEED, None)
        model = base
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    losses, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(sum(_backward(model, row)[0] for row in data))
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_norm)))
        optimizer.step()
    adapter = {
        adapter_name(name.removeprefix("base_model.model.")): p.detach().clone() for name, p in model.named_parameters()
    }
    adapter.pop(None, None)
    with torch.no_grad():
        logprobs = [_row_logprobs(model, row)[0] for row in data]
    for _, layer in adapted_layers(base):
        layer.merge()
    merged = {checkpoint_name(name): p for name, p in base.state_dict().items() if adapter_name(name) is None}
    return AdapterAnswer(losses, norms, logprobs, adapter, checkpoint_names(base, merged))


def _row_logprobs(model: torch.nn.Module, row: TrainRow) -> tuple[Tensor, Tensor]:
    """The logprobs of the trained tokens, and which tokens those are."""
    tokens = torch.tensor(row.sample.token_ids)
    logits = model(input_ids=tokens[None]).logits[0] / TEMPERATURE
    logprobs = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    trained = torch.tensor(row.sample.loss_mask[1:]) == 1
    return logprobs[trained], trained


def _backward(model: torch.nn.Module, row: TrainRow) -> tuple[float, Tensor]:
    logprobs, trained = _row_logprobs(model, row)
    ratio = torch.exp(logprobs - torch.tensor(row.sample.logprobs[1:])[trained])
    loss = -row.weight * (ratio * torch.from_numpy(row.advantages).to(logprobs.dtype)).sum()
    loss.backward()
    return loss.item(), logprobs.detach()

"""Tiny checkpoints, pushes and the plain Hugging Face judge that the inference tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, LlamaConfig, LlamaForCausalLM

from rollout.engine.config import InferenceConfig
from rollout.engine.inference import Inference
from rollout.engine.settings import EngineSettings
from rollout.engine.thread import engine_core
from rollout.transfer.bucket import Sender, describe, digests_of
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.registry import resolve_transport
from rollout.types import Completion, SamplingParams

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Weights = dict[str, Tensor]

VOCABULARY = 500
MAX_CONTEXT = 512
PARITY = 1e-5

# vLLM's CPU attention wants heads of 32 or more; 500 is no multiple of 64, so vLLM pads the vocabulary.
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


def make_glm(path: Path) -> None:
    """A Glm4Moe of 8 experts whose correction bias really changes the routing."""
    torch.manual_seed(0)
    config = Glm4MoeConfig(
        **_SHAPE,
        moe_intermediate_size=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
    )
    model = Glm4MoeForCausalLM(config).float()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.1)
    model.save_pretrained(path)


def make_llama(path: Path, tied: bool = False) -> None:
    """A dense Llama; `tied` shares the embedding's weight with the head, so that a checkpoint has it once."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**_SHAPE, "tie_word_embeddings": tied})).float().save_pretrained(path)


def checkpoint_weights(path: Path) -> Weights:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def perturbed(weights: Mapping[str, Tensor], seed: int) -> Weights:
    """Other weights of the same names: every tensor moves by a tenth of its own size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }


def export(weights: Weights, like: Path, path: Path) -> None:
    """Write the weights as a Hugging Face checkpoint with the configuration of another."""
    from safetensors.torch import save_file

    path.mkdir()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text((like / "config.json").read_text())


class Judge:
    """Plain Hugging Face logprobs, the reference for what an engine reports."""

    def __init__(self, path: Path) -> None:
        # Under transformers' default, SDPA, Gemma 2's bound of the attention scores is left out without a word.
        self._model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.no_grad()
    def gaps(self, prompt: Sequence[int], completion: Completion, temperature: float = 1.0) -> Tensor:
        """|engine - Hugging Face| logprob of every token of the completion, given all before it."""
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        logprobs = (self._model(ids).logits.float() / temperature).log_softmax(-1)[0, len(prompt) - 1 : -1]
        own = logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        return (own - torch.tensor(completion.logprobs)).abs()


def settings(
    path: Path,
    *,
    config: InferenceConfig | None = None,
    sync: WeightSyncConfig | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    load_format: Literal["dummy", "auto"] = "dummy",
) -> EngineSettings:
    sync = sync or WeightSyncConfig()
    return EngineSettings(
        model_path=str(path),
        dtype="float32",
        config=config or InferenceConfig(cpu_threads=2),
        transport=resolve_transport(sync, device),
        cache_policy=sync.cache_policy,
        max_context=MAX_CONTEXT,
        device=device,
        seed=0,
        load_format=load_format,
    )


async def start(path: Path, *, version: int | None = None, **changed: Any) -> Inference:
    """Start an engine with `settings(path, **changed)`. With a `version` it loads the checkpoint's own weights."""
    load_format: Literal["dummy", "auto"] = "dummy" if version is None else "auto"
    return await Inference.start(settings(path, load_format=load_format, **changed), version=version)


def in_buckets(weights: Weights, size: int = 17) -> list[list[tuple[str, Tensor]]]:
    pairs = list(weights.items())
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


async def open_update(engine: Inference, weights: Weights, version: int) -> None:
    await engine.pause()
    await engine.begin_update(version, [describe(name, tensor) for name, tensor in weights.items()])


async def update(engine: Inference, sender: Sender, weights: Weights, version: int) -> None:
    """Push weights, but do not resume: the engine stays paused."""
    await open_update(engine, weights, version)
    for bucket in in_buckets(weights):
        await engine.load_bucket(sender.send(bucket, digests_of(bucket)))
    await engine.finish_update(version)
    sender.rest()


async def push(engine: Inference, sender: Sender, weights: Weights, version: int) -> None:
    await update(engine, sender, weights, version)
    await engine.resume()


async def start_requests(
    engine: Inference, prompts: Sequence[Sequence[int]], label: str, samplings: Sequence[SamplingParams]
) -> asyncio.Future[list[Completion]]:
    """Queue requests in an engine that is paused and stays so; `step` runs them."""
    await engine.pause()
    requests = asyncio.gather(
        *(
            engine.generate(f"{label}-{i}", prompt, sampling)
            for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        )
    )
    while (await engine.stats()).waiting < len(prompts):
        await asyncio.sleep(0.001)
    return requests


async def step(engine: Inference, steps: int) -> None:
    """Run a paused engine for exactly `steps` steps, each of which samples one token of every request. So no test
    depends on how fast the engine is."""

    def run(llm: LLMEngine) -> None:
        engine_core(llm).resume_scheduler()
        for _ in range(steps):
            engine._thread._step(llm)

    await engine._call(run)
    await engine.pause()


def shared_memory_files() -> set[str]:
    """Paths under /dev/shm that this process or a child of it has mapped or open."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    mapped = {region.path for process in processes for region in process.memory_maps()}
    opened = {file.path for process in processes for file in process.open_files()}
    return {path for path in mapped | opened if path.startswith("/dev/shm/")}


async def sample(
    engine: Inference, prompts: Sequence[Sequence[int]], label: str, sampling: SamplingParams
) -> list[Completion]:
    return await asyncio.gather(
        *(engine.generate(f"{label}-{i}", prompt, sampling) for i, prompt in enumerate(prompts))
    )

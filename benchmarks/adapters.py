"""What adapters cost an engine on CPU: a decoding step and a prompt of SmolLM2-135M with and without them.

    ./launch.sh model smollm2-135m; .venv/bin/python -m benchmarks.adapters [sequences] [threads]

Three engines in turn over the same requests: without adapters, with ours (rollout.lora.cpu), and with vLLM's own code
for adapters on CPU. Every engine samples twice; the second time counts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from rl.paths import REPOSITORY

MODEL = REPOSITORY / "models" / "smollm2-135m"
PROMPT, SAMPLED = 64, 32
RANK = 16


def measure(kind: str, sequences: int, threads: int) -> dict[str, float]:
    """Seconds of a prompt pass over all sequences and of one decoding step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.adapters", "--one", kind, str(sequences), str(threads)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def own_of_vllm() -> None:
    """Take our code for adapters back."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from rollout.lora import cpu

    def add_lora_linear(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **_):
        buffers = tuple(torch.zeros((x.size(0), lora_b_stacked[0].size(-1))) for _ in output_slices)
        self.add_shrink(buffers, x, lora_a_stacked, scale)
        self.add_expand(y, buffers, lora_b_stacked, output_slices)

    PunicaWrapperCPU.update_metadata = cpu._update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear


async def one(kind: str, sequences: int, threads: int) -> dict[str, float]:
    from rollout.engine.config import InferenceConfig
    from rollout.engine.inference import Inference
    from rollout.engine.settings import EngineSettings
    from rollout.lora.arguments import AdapterSettings, Scale
    from rollout.transfer.bucket import describe
    from rollout.transfer.config import WeightSyncConfig
    from rollout.transfer.registry import resolve_transport
    from rollout.transfer.shm import ShmSender
    from rollout.types import SamplingParams

    scale = Scale(rank=RANK, alpha=32.0, rslora=False)
    settings = EngineSettings(
        model_path=str(MODEL),
        dtype="float32",
        config=InferenceConfig(cpu_threads=threads, kv_cache_gib=1.0),
        transport=resolve_transport(WeightSyncConfig(), "cpu"),
        cache_policy="recompute",
        max_context=256,
        device="cpu",
        seed=0,
        load_format="auto",
        adapters=None if kind == "plain" else AdapterSettings(slots=3, scale=scale, targets=None),
    )
    engine = await Inference.start(settings, version=0)
    if kind == "vllm":
        own_of_vllm()
    if kind != "plain":
        tensors = adapter()
        sender = ShmSender("benchmark")
        await engine.begin_adapter(0, [describe(name, tensor) for name, tensor in tensors.items()])
        await engine.load_adapter(sender.send(list(tensors.items())))
        await engine.finish_adapter(0)
        await engine.use_adapter(0)
        sender.close()

    async def run(label: str, tokens: int) -> float:
        begun = time.monotonic()
        generator = torch.Generator().manual_seed(hash(label) % 1000)
        prompts = torch.randint(10, 40_000, (sequences, PROMPT), generator=generator).tolist()
        sampling = SamplingParams(max_tokens=tokens)
        await asyncio.gather(*(engine.generate(f"{label}-{i}", p, sampling) for i, p in enumerate(prompts)))
        return time.monotonic() - begun

    await run("warm", 2)
    prompt = await run("prompt", 1)
    whole = await run("whole", SAMPLED + 1)
    await engine.shutdown()
    return {"prompt": prompt, "step": (whole - prompt) / SAMPLED}


def adapter() -> dict[str, torch.Tensor]:
    """A random adapter around all linear layers of the model."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    with safe_open(Path(MODEL) / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            if name.endswith("_proj.weight"):
                outputs, inputs = weights.get_slice(name).get_shape()
                layer = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, inputs) / 100
                tensors[f"{layer}.lora_B.weight"] = torch.randn(outputs, RANK) / 100
    return tensors


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        kind, sequences, threads = sys.argv[2:5]
        print(json.dumps(asyncio.run(one(kind, int(sequences), int(threads)))))
        return
    sequences, threads = (int(value) for value in (*sys.argv[1:3], *("64", "2")[len(sys.argv) - 1 :]))
    found = {kind: measure(kind, sequences, threads) for kind in ("plain", "ours", "vllm")}
    for kind, seconds in found.items():
        ratios = {what: value / found["plain"][what] for what, value in seconds.items()}
        print(
            f"{kind:6} prompt of {sequences} x {PROMPT}: {seconds['prompt']:.2f} s ({ratios['prompt']:.2f})   "
            f"decoding step: {1000 * seconds['step']:.1f} ms ({ratios['step']:.2f})"
        )


if __name__ == "__main__":
    main()

"""Adapters in whole runs: alone to the engines of a dense model, and merged into those of one with experts.

The recipe of the small dense model is run with a tiny random one. It is rewarded for using many different characters,
so that groups differ from the start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from vllm.lora.request import LoRARequest

from rollout.engine.inference import Inference
from rollout.lora.arguments import AdapterSettings, Scale
from rollout.lora.names import adapter_id, adapter_name
from rollout.store import read
from rollout.types import Completion, SamplingParams
from tests.e2e.dense import overrides
from tests.e2e.harness import Run, launch, launched
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = "recipes/smollm2_lora.yaml"


KL = ("kl={coef: 0.01, estimator: k1, place: reward}",)


@pytest.fixture(scope="module")
def run(dense: Path, tmp_path_factory: pytest.TempPathFactory, cold_start_cache: Path) -> Run:
    """A run that is killed after its second checkpoint, and resumed."""
    directory = tmp_path_factory.mktemp("run") / "run"
    with launched(directory, cold_start_cache, "run.steps=500", *overrides(dense, *KL), recipe=RECIPE) as first:
        first.wait_until(lambda: first.steps_done() >= 5, "step 5")
        os.kill(first.driver_pid(), signal.SIGKILL)
        first.process.wait(60)
        assert first.leftovers() == ()
    run = launch(directory, cold_start_cache, "run.steps=8", "resume=auto", *overrides(dense, *KL), recipe=RECIPE)
    assert run.code == 0, run.output[-4000:]
    return run


def test_only_the_adapter_is_trained_and_pushed_and_engines_agree_with_it(run: Run) -> None:
    assert "32,768 of 451,200 parameters are trained, in down_proj (2), gate_proj (2), k_proj (2)" in run.output
    assert run.summary["mismatch_logprob_abs_mean"] < PARITY
    assert max(run.column("staleness/max")) <= 1
    assert max(run.column("policy/kl_reference")) > 0
    assert set(run.column("policy/verified_engines")) == {1.0}


def test_every_completion_has_the_version_of_one_adapter(run: Run) -> None:
    """A turn in flight keeps its adapter: no turn has tokens of two versions, as it has under pushes of all weights."""
    turns = [
        {int(v) for v in trajectory.samples[turn.sample].versions[turn.start : turn.stop]}
        for stored in read(run.directory)
        for trajectory in stored.group.usable
        for turn in trajectory.turns
    ]
    assert len(turns) > 100 and all(len(versions) == 1 for versions in turns)
    assert len(set().union(*turns)) > 3


def test_a_checkpoint_holds_the_adapter_and_the_hash_of_its_base_and_no_frozen_weights(run: Run) -> None:
    checkpoint = Path(run.summary["checkpoint"])
    assert not (checkpoint / "hf").exists()
    adapter = load_file(Path(run.summary["adapter"]) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in adapter.values()) == 32_768
    assert max(tensor.abs().max() for name, tensor in adapter.items() if "lora_B" in name) > 1e-3
    state = json.loads((checkpoint / "trainer" / "learner-rank00000.json").read_text())
    assert len(state["base"]) == 64
    frozen = 4 * (451_200 - 32_768)
    assert sum(p.stat().st_size for p in (checkpoint / "trainer").rglob("*") if p.is_file()) < frozen / 2


def test_the_exports_load_in_transformers_peft_and_vllm(run: Run, dense: Path) -> None:
    merged, adapter = Path(run.summary["hf_export"]), Path(run.summary["adapter"])
    base = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, adapter).eval()
    tokens = torch.arange(5, 60)[None]
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, peft(tokens).logits, rtol=1e-4, atol=1e-4)
        assert (whole(tokens).logits - peft.unload()(tokens).logits).abs().max() > 1e-2

    prompt = tokens[0].tolist()
    assert Judge(merged).gaps(prompt, asyncio.run(sampled(merged, prompt))).max() < PARITY
    assert Judge(merged).gaps(prompt, asyncio.run(sampled(dense, prompt, adapter))).max() < 5 * PARITY, "other products"


async def sampled(model: Path, prompt: list[int], adapter: Path | None = None) -> Completion:
    """A completion by a fresh vLLM engine, with an adapter that vLLM's own code reads from its directory."""
    adapters = AdapterSettings(slots=2, scale=Scale(rank=8, alpha=32.0, rslora=False), targets=None)
    settings = replace(support.settings(model, load_format="auto"), adapters=adapters if adapter else None)
    engine = await Inference.start(settings, version=0)
    try:
        if adapter is None:
            return await engine.generate("one", prompt, SamplingParams(max_tokens=16))
        request = LoRARequest(adapter_name(4), adapter_id(4), str(adapter))
        assert await engine._call(lambda llm: llm.add_lora(request))
        running = engine._thread.generate("one", prompt, SamplingParams(max_tokens=16), None, 4)
        return await engine._result(running)
    finally:
        await engine.shutdown()

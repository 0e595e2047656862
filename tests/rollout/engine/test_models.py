"""Models whose attention is more than softmax: the engine computes with pushed weights what Hugging Face computes.

The trainer computes the same, by tests/rl/learner/test_selfcheck.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, PreTrainedConfig

from rollout.engine.inference import WeightUpdateError
from rollout.transfer.shm import ShmSender
from rollout.types import SamplingParams
from tests.rollout.engine import inference_support as support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPT = [5 + i % 90 for i in range(60)]
SIZES = support._SHAPE | {"num_hidden_layers": 2, "sliding_window": 16, "pad_token_id": 0, "bos_token_id": 2}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 256,
}  # fmt: skip
GPT_OSS = GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, rope_parameters=YARN)
GEMMA_2 = Gemma2Config(
    **(SIZES | {"tie_word_embeddings": True}), query_pre_attn_scalar=32, attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
)  # fmt: skip


def made(config: PreTrainedConfig, path: Path) -> support.Weights:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(path)
    return support.checkpoint_weights(path)


@pytest.mark.parametrize(
    ("config", "parity"), [(GPT_OSS, 2 * support.PARITY), (GEMMA_2, support.PARITY)], ids=["gpt-oss", "gemma 2"]
)
def test_the_engine_computes_with_pushed_weights_what_hugging_face_computes(
    config: PreTrainedConfig, parity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With these weights of GPT-OSS, float32 itself rounds that much: on an AMD EPYC Hugging Face's float32 is 0.92e-5
    off its float64, vLLM's 1.23e-5, and they are 1.0014e-5 apart."""
    base, sender = made(config, tmp_path / "base"), ShmSender("test")
    sampling = SamplingParams(max_tokens=40)
    with asyncio.Runner() as run:
        engine = run.run(support.start(tmp_path / "base"))
        if config is GPT_OSS:
            _needs_its_workaround(run, engine, sender, base, monkeypatch)
        for version, weights in enumerate([base, support.perturbed(base, seed=1)], start=1):
            support.export(weights, like=tmp_path / "base", path=tmp_path / str(version))
            run.run(support.push(engine, sender, weights, version))
            (completion,) = run.run(support.sample(engine, [PROMPT], f"v{version}", sampling))
            assert support.Judge(tmp_path / str(version)).gaps(PROMPT, completion).max() < parity
        run.run(engine.shutdown())
    sender.close()


def _needs_its_workaround(run, engine, sender, weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, vLLM has mended its reload of GPT-OSS: delete the workaround in rollout/engine/loading.py."""
    with monkeypatch.context() as patch:
        patch.setattr("rollout.engine.reload.load_watched", lambda model, tensors: model.load_weights(tensors))
        with pytest.raises(WeightUpdateError, match=r"no complete weights for .*\(sinks\)"):
            run.run(support.push(engine, sender, weights, 0))

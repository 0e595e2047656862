"""The configuration that DeepSpeed gets, and the overrides that are refused."""

from __future__ import annotations

import pytest

from rl.families.registry import family_of
from rl.learner.config import OptimizerConfig, TrainerConfig
from rl.zero.deepspeed_config import REDUCE_BUCKET, deepspeed_config

OPTIMIZER = OptimizerConfig(lr=3e-4, clip_norm=0.5, weight_decay=0.1)
GLM = {"model_type": "glm4_moe", "n_routed_experts": 8}
DENSE = {"model_type": "llama"}


def build(model: dict, dtype: str = "float32", device: str = "cpu", **trainer) -> dict:
    family, config = family_of(model), TrainerConfig(optimizer=OPTIMIZER, **trainer)
    return deepspeed_config(config, OPTIMIZER, family, family.experts(model), dtype, device)


def test_experts_are_split_by_autoep_whenever_there_are_any() -> None:
    for size in (1, 2):
        section = build(GLM, expert_parallel=size)["expert_parallel"]
        assert section == {"enabled": True, "autoep_size": size, "preset_model": "deepseek_v3"}
    assert "expert_parallel" not in build(DENSE)


def test_the_optimizer_and_precision_are_the_recipes() -> None:
    """One accumulation window of any number of micro-batches: each counts as 1, and the learner ends the window."""
    config = build(DENSE)
    assert config.pop("steps_per_print") > 10**6, "the console prints the steps"
    assert config == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.5,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 3e-4,
                "betas": list(OPTIMIZER.betas),
                "eps": OPTIMIZER.eps,
                "weight_decay": 0.1,
                "torch_adam": True,
                "fused": True,
            },
        },
        "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": 3,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": REDUCE_BUCKET,
            "overlap_comm": False,
        },
    }
    half = build(GLM, dtype="bfloat16")
    assert half["bf16"] == {"enabled": True} and half["data_types"] == {"grad_accum_dtype": "fp32"}


def test_overrides_are_merged_key_by_key() -> None:
    override = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "expert_parallel": {"use_grouped_mm": 0}}
    config = build(GLM, deepspeed=override)
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["expert_parallel"]["autoep_size"] == 1
    assert config["optimizer"]["params"]["torch_adam"] is False, "offloaded states need DeepSpeed's own kernel"


def test_communication_overlaps_on_gpus_only() -> None:
    assert build(GLM, device="cuda")["zero_optimization"] == {
        "stage": 3,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    assert build(GLM, device="cpu")["zero_optimization"]["overlap_comm"] is False
    assert build(GLM)["optimizer"]["params"]["torch_adam"] is True, "needs no compiler on the machine"


def test_parameters_and_experts_may_be_offloaded() -> None:
    override = {"zero_optimization": {"offload_param": {"device": "cpu"}}}
    config = build(GLM, deepspeed=override)
    assert config["zero_optimization"] == build(GLM)["zero_optimization"] | override["zero_optimization"]
    assert config["expert_parallel"] == build(GLM)["expert_parallel"]
    assert config["optimizer"] == build(GLM)["optimizer"], "the optimizer's states stay where they are"


@pytest.mark.parametrize("section", ["zero_optimization", "bf16", "optimizer"])
def test_an_empty_section_is_judged_like_its_keys(section: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.deepspeed.{section} is set by"):
        build(GLM, deepspeed={section: {}})


@pytest.mark.parametrize(
    ("override", "owner"),
    [
        ({"gradient_clipping": 1.0}, "trainer.optimizer.clip_norm"),
        ({"zero_optimization": {"stage": 2}}, "trainer.zero_stage"),
        ({"zero_optimization": None}, "trainer.zero_stage"),
        ({"bf16": {"enabled": True}}, "model.dtype"),
        ({"fp16": {"enabled": True}}, "model.dtype"),
        ({"optimizer": {"params": {"lr": 1.0}}}, "trainer.optimizer"),
        ({"expert_parallel": {"autoep_size": 4}}, "trainer.expert_parallel"),
    ],
)
def test_keys_that_other_settings_own_are_refused_with_the_setting(override: dict, owner: str) -> None:
    with pytest.raises(ValueError, match=owner):
        build(GLM, deepspeed=override)


@pytest.mark.parametrize(
    ("model", "ranks", "size", "message"),
    [
        (DENSE, 2, 2, "has no experts; set it to 1"),
        (GLM, 3, 2, "must divide"),
        (GLM, 3, 3, "8 experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, 2, 2, "supported are glm4_moe, gpt_oss, qwen3_moe"),
    ],
)
def test_expert_parallelism_that_does_not_fit_is_refused(model: dict, ranks: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model, ranks=ranks, expert_parallel=size)

"""Every cross-field check: the recipe that breaks it, the values and the fix in its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.config import Recipe
from rl.recipe.checks import problems

BASE: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {"path": "owner/name", "dtype": "float32"},
    "tasks": {"sources": [{"environment": "python"}]},
    "trainer": {"optimizer": {"lr": 0.001}},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {
        key: merged(base.get(key, {}), over[key]) if isinstance(over.get(key), dict) else over.get(key, base.get(key))
        for key in {**base, **over}
    }


def found(over: dict[str, Any]) -> list[tuple[str, str]]:
    return [(problem.key, problem.text) for problem in problems(Recipe.model_validate(merged(BASE, over)))]


def test_a_sound_recipe_has_no_problems() -> None:
    assert found({}) == []


@pytest.mark.parametrize(
    ("over", "key", "words"),
    [
        ({"rollout": {"group_size": 1}}, "rollout.group_size", "use >= 2 or algorithm.name=reinforce"),
        ({"rollout": {"sampling": {"top_p": 0.9}}}, "rollout.sampling.top_p", "top_p=0.9"),
        ({"rollout": {"sampling": {"top_k": 5}}}, "rollout.sampling.top_k", "use 0 (off)"),
        ({"rollout": {"sampling": {"max_tokens": 2048}}}, "rollout.sampling.max_tokens", "max_context=2048"),
        ({"trainer": {"token_budget": 1000}}, "trainer.token_budget", "use trainer.token_budget>=2048"),
        ({"trainer": {"ranks": 6, "expert_parallel": 4}}, "trainer.expert_parallel", "use one of [1, 2, 3, 6]"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype", "use model.dtype=float32"),
        ({"inference": {"tensor_parallel": 2}}, "inference.tensor_parallel", "use inference.tensor_parallel=1"),
        (
            {"inference": {"engine_args": {"enable_chunked_prefill": True}}},
            "inference.engine_args.enable_chunked_prefill",
            "remove it",
        ),
        ({"weight_sync": {"transport": "nccl"}}, "weight_sync.transport", "use weight_sync.transport=auto"),
        ({"trainer": {"deepspeed": {"gradient_clipping": 1.0}}}, "trainer.deepspeed", "trainer.optimizer.clip_norm"),
        ({"trainer": {"deepspeed": {"zero_optimization": {"stage": 2}}}}, "trainer.deepspeed", "stage"),
        ({"resume": "auto"}, "resume", "set run.dir"),
        ({"model": {"path": "./no/such"}}, "model.path", "model.path=./no/such does not exist"),
        ({"tasks": {"sources": [{"environment": "pyton"}]}}, "tasks.sources.0.environment", "'python'"),
        ({"rewards": {"weights": {"coed": 1.0}}}, "rewards.weights", "did you mean 'code'"),
        ({"eval": {"success_reward": 1.5}}, "eval.success_reward", "use eval.success_reward<=1.0 or raise the weights"),
        ({"rewards": {"weights": {"code": 0.5}}}, "eval.success_reward", "makes 0.5"),
        ({"rewards": {"weights": {"code": -1.0}}}, "eval.success_reward", "environment 'python'"),
        ({"rewards": {"weights": {"code": 0.0}}}, "rewards.weights", "all its rewards are 0"),
        (
            {"sft": {"dataset": "rows.csv", "optimizer": {"lr": 1e-3}}},
            "sft.dataset",
            "sft.dataset=rows.csv cannot be read; use a .jsonl or .parquet file",
        ),
        (
            {"sft": {"dataset": "no.jsonl", "optimizer": {"lr": 1e-3}}},
            "sft.dataset",
            "sft.dataset=no.jsonl does not exist",
        ),
    ],
)
def test_each_check_names_values_and_fix(over: dict[str, Any], key: str, words: str) -> None:
    ((found_key, text),) = found(over)
    assert found_key == key and words in text


@pytest.mark.parametrize(
    ("config", "over", "key", "words"),
    [
        (
            {"n_routed_experts": 6},
            {"trainer": {"ranks": 4, "expert_parallel": 4}},
            "trainer.expert_parallel",
            "6 experts",
        ),
        ({}, {"trainer": {"expert_parallel": 2}}, "trainer.expert_parallel", "has no experts; set it to 1"),
        ({"model_type": "mixtral", "num_local_experts": 8}, {}, "trainer.expert_parallel", "'mixtral' has experts"),
        ({"max_position_embeddings": 1024}, {}, "rollout.max_context", "use rollout.max_context<=1024"),
    ],
)
def test_what_a_local_config_forbids(
    tmp_path: Path, config: dict[str, Any], over: dict[str, Any], key: str, words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm4_moe"} | config), encoding="utf-8")
    ((found_key, text),) = found(over | {"model": {"path": str(tmp_path), "dtype": "float32"}})
    assert found_key == key and words in text


@pytest.mark.parametrize(
    "config",
    [
        {"n_routed_experts": 8, "max_position_embeddings": 2048},
        {"max_position_embeddings": 1024, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"max_position_embeddings": 1024, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    ],
)
def test_what_a_local_config_allows(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm4_moe"} | config), encoding="utf-8")
    assert found({"model": {"path": str(tmp_path)}}) == []


def test_every_refused_engine_setting_is_named() -> None:
    refused = found({"inference": {"engine_args": {"quantization": "fp8", "seed": 3, "max_num_seqs": 4}}})
    assert [key for key, _ in refused] == ["inference.engine_args.quantization", "inference.engine_args.seed"]
    assert "quantized weights" in refused[0][1] and "use run.seed" in refused[1][1]


def test_reinforce_may_have_groups_of_one() -> None:
    assert found({"rollout": {"group_size": 1}, "algorithm": {"name": "reinforce"}}) == []


def test_other_engine_settings_pass() -> None:
    assert found({"inference": {"engine_args": {"max_num_seqs": 4, "enforce_eager": True}}}) == []


def test_a_file_that_is_no_table_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.touch()
    ((key, text),) = found({"sft": {"dataset": str(rows), "optimizer": {"lr": 0.1}}})
    assert key == "sft.dataset" and "cannot be read" in text


def test_weights_that_can_still_reach_success_pass() -> None:
    assert found({"rewards": {"weights": {"code": 0.5}}, "eval": {"success_reward": 0.5}}) == []


def test_names_of_models_and_datasets_that_exist_or_are_remote_pass(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    assert found({"model": {"path": str(tmp_path)}, "sft": {"dataset": str(rows), "optimizer": {"lr": 0.1}}}) == []
    assert found({"sft": {"dataset": "oracle", "optimizer": {"lr": 0.1}}}) == []
    assert found({"sft": {"dataset": "owner/rows", "optimizer": {"lr": 0.1}}}) == []

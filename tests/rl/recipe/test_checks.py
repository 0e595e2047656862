"""Every cross-field check: the recipe that breaks it, the values and the fix in its message."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.recipe.check_sources import needs_sandbox, source_problems
from rl.recipe.checks import cross_field_problems, remarks
from rl.recipe.extensions import chosen_settings
from rl.recipe.load import RecipeError
from rl.recipe.overrides import expand_shorthands
from rl.recipe.presets import fill_from_preset
from rollout.contracts import EnvironmentSpec
from rollout.envs.config import EnvironmentSettings
from rollout.types import Split, Task
from tests.support import recipe_of

LIBRARIES = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("deepspeed") is None, reason="vLLM and DeepSpeed are not installed"
)
BASE: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {"path": "owner/name", "dtype": "float32", "renderer": "glm-4.5"},
    "tasks": {"sources": [{"environment": "python"}]},
    "trainer": {"optimizer": {"lr": 0.001}},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {
        key: merged(base.get(key, {}), over[key]) if isinstance(over.get(key), dict) else over.get(key, base.get(key))
        for key in {**base, **over}
    }


def recipe(over: dict[str, Any]) -> Recipe:
    data = expand_shorthands(merged(BASE, over))
    fill_from_preset(data, data.get("algorithm", "grpo"))
    return Recipe.model_validate_json(json.dumps(data), strict=True, context=chosen_settings)


def found(over: dict[str, Any]) -> list[tuple[str, str]]:
    made = recipe(over)
    return [(problem.key, problem.text) for problem in (*cross_field_problems(made), *source_problems(made))]


def source(**keys: Any) -> dict[str, Any]:
    return {"tasks": {"sources": [{"environment": "python", **keys}]}}


HERE = str(Path(__file__))
TINY_MOE = REPOSITORY / "recipes/models/tiny-glm4-moe"


def test_a_sound_recipe_has_no_problems() -> None:
    assert found({}) == []


@pytest.mark.parametrize(
    ("over", "key", "words"),
    [
        ({"rollout": {"group_size": 1}}, "rollout.group_size", "use >= 2 or algorithm=reinforce"),
        ({"rollout": {"sampling": {"top_p": 0.9}}}, "rollout.sampling.top_p", "top_p=0.9"),
        ({"rollout": {"sampling": {"top_k": 5}}}, "rollout.sampling.top_k", "use 0 (off)"),
        ({"rollout": {"sampling": {"max_tokens": 2048}}}, "rollout.sampling.max_tokens", "max_context=2048"),
        ({"trainer": {"token_budget": 1000}}, "trainer.token_budget", "use trainer.token_budget>=2048"),
        ({"trainer": {"ranks": 6, "expert_parallel": 4}}, "trainer.expert_parallel", "use one of [1, 2, 3, 6]"),
        (
            {"model": {"dtype": "bfloat16"}},
            "model.dtype",
            "model.dtype=bfloat16 on CPU: engine and trainer agree on CPUs in float32 only; use model.dtype=float32",
        ),
        (
            {"inference": {"tensor_parallel": 2}},
            "inference.tensor_parallel",
            "an engine is one process there; use inference.tensor_parallel=1 and more inference.replicas",
        ),
        (
            {"inference": {"replicas": 2, "tensor_parallel": [1, 2]}},
            "inference.tensor_parallel",
            "inference.tensor_parallel=[1, 2] on CPU: an engine is one process there; use inference.tensor_parallel=1",
        ),
        (
            {
                "run": {"device": "cuda"},
                "placement": "colocated",
                "trainer": {"ranks": 6, "expert_parallel": 3},
                "inference": {"replicas": 2, "tensor_parallel": [2, 4]},
            },
            "inference.tensor_parallel",
            "=[2, 4] with placement=colocated: engines that share the trainer's devices have the same width",
        ),
        (
            {"inference": {"engine_args": {"enable_chunked_prefill": True}}},
            "inference.engine_args.enable_chunked_prefill",
            "=true on CPU: vLLM would rewind a request's random generator there, which torch can't; remove it",
        ),
        ({"weight_sync": {"transport": "nccl"}}, "weight_sync.transport", "use weight_sync.transport=auto"),
        (
            {"placement": "colocated", "weight_sync": {"cache_policy": "keep"}},
            "weight_sync.cache_policy",
            "use recompute",
        ),
        (
            {"placement": "colocated", "inference": {"replicas": 3}},
            "inference.replicas",
            "engines share the devices of trainer.ranks=2; use no more than those",
        ),
        (
            {"placement": "colocated", "inference": {"replicas": 2, "min_replicas": 1}},
            "inference.min_replicas",
            "inference.min_replicas with placement=colocated: engines have the devices of trainer ranks; leave it out",
        ),
        (
            {"inference": {"replicas": 2, "min_replicas": 1}, "weight_sync": {"transport": "shm"}},
            "weight_sync.transport",
            "weight_sync.transport=shm cannot reach engines that join later (inference.min_replicas); use auto or gloo",
        ),
        ({"trainer": {"deepspeed": {"gradient_clipping": 1.0}}}, "trainer.deepspeed", "trainer.optimizer.clip_norm"),
        ({"trainer": {"deepspeed": {"zero_optimization": {"stage": 2}}}}, "trainer.deepspeed", "stage"),
        ({"resume": "auto"}, "resume", "set run.dir"),
        ({"model": {"path": "./no"}}, "model.path", "model.path=./no does not exist"),
        ({"model": {"path": "/no"}}, "model.path", "model.path=/no does not exist"),
        ({"model": {"path": "~no"}}, "model.path", "model.path=~no does not exist"),
        ({"model": {"path": "no/such/model"}}, "model.path", "model.path=no/such/model does not exist"),
        (
            {"tasks": {"sources": [{"environment": f"{HERE}:Broken"}]}},
            "tasks.sources.0.environment",
            "tasks.sources.0: no table of rooms",
        ),
        (source(weights={"coed": 1.0}), "tasks.sources.0.weights", "did you mean 'code'"),
        (source(success={"coed": 1.0}), "tasks.sources.0.success", "did you mean 'code'"),
        (
            source(weights={"code": 0.0}),
            "tasks.sources.0.weights",
            "gives 0 to every reward part of 'python' (code), so all its rewards are 0; raise one of them",
        ),
        (source(rewards=["environment", "environment"]), "tasks.sources.0.rewards", "'code' is given twice"),
        (source(name="a/b"), "tasks.sources.0.name", "'a/b' names metrics, which have no '/', '<' or '>'"),
        (
            {"tasks": {"sources": [{"environment": "python"}, {"environment": "python"}]}},
            "tasks.sources.1",
            "is called 'python' like another source; set tasks.sources.1.name",
        ),
        (
            {
                "tasks": {"sources": [{"environment": f"{HERE}:Silent"}]},
                "sft": {"dataset": "oracle", "optimizer": {"lr": 1e-3}},
            },
            "sft.dataset",
            "'Silent' has no scripted oracle",
        ),
        ({"tasks": {"sources": [{"environment": f"{HERE}:Unscored"}]}}, "tasks.sources.0.rewards", "name some"),
        ({"aggregation": {"over": "fixed"}}, "aggregation", "fixed needs a length"),
        ({"kl": {"coef": 0.1, "estimator": "k3", "place": "loss"}}, "kl", "set lora, or leave kl out"),
        (
            {"lora": {}, "kl": {"coef": 0.1, "estimator": "unbiased", "place": "reward"}},
            "kl.estimator",
            "use k1 there, or kl.place=loss",
        ),
        (
            {"lora": {}, "kl": {"coef": 0.1, "estimator": "k3", "place": "loss", "credit": "token"}},
            "kl.credit",
            "kl.credit=token is for kl.place=reward",
        ),
        (
            {"trainer": {"zero_stage": 0, "deepspeed": {"zero_optimization": {"offload_optimizer": {}}}}},
            "trainer.zero_stage",
            "which would have no effect",
        ),
        ({"lora": {"dora": True, "push": "adapter"}}, "lora.push", "vLLM refuses DoRA's adapters; use merged"),
        (
            {"lora": {"push": "adapter"}, "model": {"path": str(TINY_MOE)}},
            "lora.push",
            "vLLM computes no adapters of models with experts on CPU; use lora.push=merged",
        ),
        (
            {"model": {"dtype": "bfloat16"}, "run": {"device": "cuda"}, "trainer": {"zero_stage": 0}},
            "trainer.zero_stage",
            "set trainer.zero_stage to 2 or 3",
        ),
        ({"aggregation": {"length": 5}}, "aggregation", "nothing else has one"),
        ({"model": {"renderer": None}}, "model.renderer", "owner/name does not tell its family"),
        ({"model": {"renderer": None, "family": "dense"}}, "model.renderer", "has none of its own; name one"),
        (
            {"inference": {"generate_timeout_s": 300.0}},
            "inference.generate_timeout_s",
            "never comes before rollout.trajectory_timeout_s=300 has passed; lower it, or leave it out",
        ),
        ({"run": {"device": "cuda"}, "inference": {"kv_cache_gib": 2.0}}, "inference.kv_cache_gib", "gpu_memory_util"),
        (
            {"sft": {"dataset": "rows.txt", "optimizer": {"lr": 1e-3}}},
            "sft.dataset",
            "sft.dataset=rows.txt cannot be read; use a .jsonl, .json, .csv, .tsv, .parquet, .arrow file, a folder or",
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
        {"max_position_embeddings": 1024, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
)
def test_what_a_local_config_allows(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm4_moe"} | config), encoding="utf-8")
    assert found({"model": {"path": str(tmp_path)}}) == []


def test_a_family_that_the_recipe_names_decides_about_experts(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_local_experts": 8, "n_routed_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mine = {"path": str(tmp_path), "family": "glm4_moe"}
    assert found({"model": mine, "trainer": {"ranks": 2, "expert_parallel": 2}}) == []
    assert found({"model": mine, "trainer": {"ranks": 3, "expert_parallel": 3}})[0][0] == "trainer.expert_parallel"


def test_a_config_without_a_model_type_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_local_experts": 8}), encoding="utf-8")
    assert found({"model": {"path": str(tmp_path)}}) == []


def test_every_refused_engine_setting_is_named() -> None:
    refused = found({"inference": {"engine_args": {"quantization": "fp8", "seed": 3, "max_num_seqs": 4}}})
    assert [key for key, _ in refused] == ["inference.engine_args.quantization", "inference.engine_args.seed"]
    assert "quantized weights" in refused[0][1] and "use run.seed" in refused[1][1]


@LIBRARIES
@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ({"inference": {"engine_args": {"block_sise": 16}}}, "inference.engine_args.block_sise", "'block_size'"),
        ({"trainer": {"deepspeed": {"zero_optimisation": {}}}}, "trainer.deepspeed", "'zero_optimization'"),
        ({"trainer": {"deepspeed": {"zero_optimization": {"overlap_com": 1}}}}, "trainer.deepspeed", "'overlap_comm'"),
    ],
)
def test_a_name_that_a_library_does_not_know_is_refused_with_the_recipe(
    section: dict[str, Any], key: str, message: str
) -> None:
    ((found_key, text),) = found(section)
    assert found_key == key and message in text


@LIBRARIES
def test_the_libraries_names_are_found_without_importing_them() -> None:
    code = (
        "import sys; from rl.recipe.library_names import *; print({'max_num_seqs'} <= vllm_arguments(), "
        "{'overlap_comm', 'aio', 'wall_clock_breakdown'} <= deepspeed_settings(), "
        "bool({'vllm', 'deepspeed'} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", "True", "False"]


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ({"packages": ["nosuch"]}, "sandbox.packages", "no package 'nosuch'"),
        ({"environment": "/nowhere"}, "sandbox.environment", "there is no /nowhere/lib"),
    ],
)
def test_packages_that_are_not_here_are_told_with_the_recipe(section: dict[str, Any], key: str, message: str) -> None:
    ((found_key, text),) = found({"sandbox": section})
    assert found_key == key and message in text


def test_reinforce_may_have_groups_of_one() -> None:
    assert found({"rollout": {"group_size": 1}, "algorithm": "reinforce"}) == []


def test_other_engine_settings_pass() -> None:
    assert found({"inference": {"engine_args": {"max_num_seqs": 4, "enforce_eager": True}}}) == []


def test_a_file_that_is_no_table_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.touch()
    ((key, text),) = found({"sft": {"dataset": str(rows), "optimizer": {"lr": 0.1}}})
    assert key == "sft.dataset" and "cannot be read" in text


class Generating(EnvironmentSpec):
    """An environment that could generate tasks."""

    def generate(self, index: int, seed: int, split: Split) -> Task:
        raise RuntimeError("it is not asked for one here")


class Silent(Generating):
    """An environment that scores, but has no scripted oracle."""

    reward_parts = ("said",)


class Broken(Silent):
    """An environment that cannot be made."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        raise ValueError("no table of rooms")


class Unscored(Generating):
    """An environment without rewards of its own."""


@pytest.mark.parametrize(
    "over",
    [
        # The largest and the smallest values that the checks above allow.
        {"rollout": {"group_size": 2}},
        {"rollout": {"max_context": 257}},
        {"trainer": {"token_budget": 2048}},
        {"trainer": {"ranks": 6, "expert_parallel": 3}},
        {"inference": {"generate_timeout_s": 299.0}},
        {"rollout": {"sampling": {"top_p": 1.0, "top_k": 0}}, "eval": {"top_p": 0.9, "top_k": 5, "temperature": 0.0}},
        {"aggregation": {"over": "fixed", "length": 1}},
        {"run": {"device": "cuda"}, "inference": {"tensor_parallel": 2}, "weight_sync": {"transport": "nccl"}},
        {"run": {"device": "cuda"}, "inference": {"replicas": 2, "tensor_parallel": [4, 2]}},
        {"inference": {"kv_cache_gib": 0.5}},
        {"tasks": {"sources": [{"environment": "python"}, {"environment": "python", "name": "more"}]}},
        {"tasks": {"sources": [{"environment": f"{HERE}:Unscored", "rewards": ["state"]}]}},
        source(weights={"code": -1.0}, success={"reward": 0.5, "code": 1.0}),
        source(name="X"),
        {"resume": "auto", "run": {"device": "cpu", "dir": "here"}},
        {"sft": {"dataset": "oracle", "optimizer": {"lr": 1e-3}}},
    ],
)
def test_what_the_checks_allow(over: dict[str, Any]) -> None:
    assert found(over) == []


def test_a_stall_limit_below_the_trajectory_deadline_is_remarked_but_allowed() -> None:
    short = {"run": {"stall_s": 300.0}, "rollout": {"trajectory_timeout_s": 300.0}}
    assert found(short) == []
    (remark,) = remarks(recipe(short))
    assert "run.stall_s=300 is not longer than rollout.trajectory_timeout_s=300" in remark
    assert remarks(recipe({"run": {"stall_s": 301.0}, "rollout": {"trajectory_timeout_s": 300.0}})) == []


def test_engines_that_hardly_join_later_are_remarked() -> None:
    few = {"inference": {"replicas": 2, "min_replicas": 1}}
    (remark,) = remarks(recipe(few))
    assert "inference.min_replicas=1 without run.ray_address" in remark
    assert remarks(recipe({**few, "run": {"ray_address": "auto"}})) == []


def test_only_what_runs_code_needs_the_sandbox() -> None:
    assert needs_sandbox(recipe({}))
    assert not needs_sandbox(recipe({"tasks": {"sources": [{"environment": "store"}]}}))
    by_reward = {"environment": f"{HERE}:Unscored", "rewards": ["code"]}
    assert needs_sandbox(recipe({"tasks": {"sources": [by_reward]}}))


def test_the_newest_run_is_named_where_resume_lacks_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("run-b", "run-a", "other-c")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (age, age))
    monkeypatch.chdir(tmp_path)
    ((_, text),) = found({"resume": "must", "run": {"device": "cpu", "name": "run"}})
    assert text.endswith("for example run.dir=runs/run-a")


@pytest.mark.parametrize("name", ["dataset", "eval_dataset"])
def test_a_row_that_is_no_task_of_its_environment_is_told_before_anything_starts(tmp_path: Path, name: str) -> None:
    good = {"messages": [{"role": "user", "content": "x"}], "payload": {"tests": "assert answer"}}
    for file, payload in (("good", good["payload"]), ("bad", {"tests": ["assert answer"]})):
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(good | {"payload": payload}) + "\n", encoding="utf-8")
    files = {key: str(tmp_path / "good.jsonl") for key in ("dataset", "eval_dataset")}
    assert found({"tasks": {"sources": [{"environment": "python", **files}]}}) == []
    files[name] = str(tmp_path / "bad.jsonl")
    ((key, text),) = found({"tasks": {"sources": [{"environment": "python", **files}]}})
    assert key == f"tasks.sources.0.{name}" and "bad.jsonl:1: field 'payload.tests': " in text


def test_a_demonstration_that_cannot_be_read_is_told_before_anything_starts(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": 3}]}\n', encoding="utf-8")
    ((key, text),) = found({"sft": {"dataset": str(rows), "optimizer": {"lr": 0.1}}})
    assert key == "sft.dataset" and "rows.jsonl:1: field 'messages'[0].content must be a text" in text


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        ({"dataset": {"path": "a/b", "split": "train[:1]+test"}}, "dataset.split", "is no part of a split; write NAME"),
        (
            {"dataset": {"path": "a/b", "split": "train[:9%]", "streaming": True}},
            "dataset.split",
            "stream has no length",
        ),
        ({"dataset": "a/b", "eval_split": "test["}, "eval_split", "is no part of a split"),
        ({"dataset": "data/*.jsonl"}, "dataset", "data/*.jsonl does not exist"),
        ({"dataset": "./folder"}, "dataset", "./folder does not exist"),
        ({"dataset": "rows.xlsx"}, "dataset", "cannot be read; use a .jsonl, .json"),
        ({"environment": "tools"}, "dataset", "environment 'tools' generates no tasks: name rows"),
    ],
)
def test_a_dataset_that_cannot_be_meant_is_told(source: dict[str, Any], key: str, words: str) -> None:
    told = found({"tasks": {"sources": [{"environment": "python", **source}]}})
    where, text = told[0]
    assert where == f"tasks.sources.0.{key}" and words in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            {"dataset": "a/b", "eval_dataset": "c/d", "eval_split": "test"},
            "write that of eval_dataset into eval_dataset.sp",
        ),
        ({"eval_split": "test"}, "they need a `dataset` to train on"),
        ({"dataset": {"path": "a/b", "colums": {}}}, "'tasks.sources.0.dataset.columns'"),
        (
            {"dataset": "a/b", "split": "test"},
            "unknown key 'tasks.sources.0.split'; there are 'tasks.sources.N.dataset.sp",
        ),
    ],
)
def test_keys_of_datasets_that_do_not_go_together(tmp_path: Path, source: dict[str, Any], words: str) -> None:
    made = {"model": str(TINY_MOE), "tasks": {"sources": [{"environment": "python", **source}]}}
    with pytest.raises(RecipeError, match=re.escape(words)):
        recipe_of(tmp_path, {**made, "trainer": {"optimizer": {"lr": 1e-3}}})


def test_names_of_models_and_datasets_that_exist_or_are_remote_pass(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "x"}]}\n', encoding="utf-8")
    assert found({"model": {"path": str(tmp_path)}, "sft": {"dataset": str(rows), "optimizer": {"lr": 0.1}}}) == []
    assert found({"sft": {"dataset": "oracle", "optimizer": {"lr": 0.1}}}) == []
    assert found({"sft": {"dataset": "owner/rows", "optimizer": {"lr": 0.1}}}) == []

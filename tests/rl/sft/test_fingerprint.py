"""The fingerprint of a cold start: it depends on everything that decides the result, and on nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.sft.fingerprint import import_closure, sft_fingerprint
from tests.support import MODEL, recipe_of

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n", encoding="utf-8")
    return path


def recipe(folder: Path, dataset: Path | str, *overrides: str, **sections: Any) -> Recipe:
    return recipe_of(
        folder,
        {
            "model": {"path": str(MODEL), "dtype": "float32"},
            "sandbox": "unsafe-none",
            "tasks": {"sources": [{"environment": "python"}]},
            "sft": {"dataset": str(dataset), "rows": 12, "optimizer": {"lr": 1e-3}},
            "trainer": {"optimizer": {"lr": 1e-3}},
            **sections,
        },
        *overrides,
    )


def test_config_seed_data_and_the_supervised_stages_settings_count(tmp_path: Path, dataset: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        return sft_fingerprint(recipe(tmp_path, dataset, *overrides))

    first = fingerprint()
    decisive = ["sft.rows=13", "sft.optimizer.lr=1e-4", "run.seed=1", "rollout.thinking=false", "sft.dataset=oracle"]
    assert len({first, *map(fingerprint, decisive)}) == 1 + len(decisive)
    indifferent = ["run.steps=99", "trainer.optimizer.lr=1e-4", "loss.clip_low=0.1", "tasks.sources.0.weight=2"]
    assert {fingerprint(override) for override in indifferent} == {first}
    dataset.write_text(dataset.read_text() * 2)
    assert fingerprint() != first


def test_of_an_oracle_the_tasks_count_but_not_how_many_there_are(tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        return sft_fingerprint(recipe(tmp_path, "oracle", *overrides))

    assert fingerprint() == fingerprint("tasks.train_size=7", "tasks.eval_size=7")
    assert fingerprint() != fingerprint("tasks.sources.0.weight=2")


def test_a_users_own_code_counts(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("from rollout.envs.store import StoreRequests as Mine\n", encoding="utf-8")
    sources = {"sources": [{"environment": f"{own}:Mine"}]}
    first = sft_fingerprint(recipe(tmp_path, "oracle", tasks=sources))
    own.write_text(own.read_text() + "# another\n", encoding="utf-8")
    assert sft_fingerprint(recipe(tmp_path, "oracle", tasks=sources)) != first


def test_the_models_files_count_and_of_a_remote_model_the_name(tmp_path: Path, dataset: Path) -> None:
    def fingerprint(path: Path | str) -> str:
        model = {"path": str(path), "dtype": "float32", "renderer": "glm-4.5", "family": "glm4_moe"}
        return sft_fingerprint(recipe(tmp_path, dataset, model=model))

    copy = tmp_path / "copy"
    shutil.copytree(MODEL, copy)
    first = fingerprint(copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n", encoding="utf-8")
    assert len({first, fingerprint(copy), fingerprint("owner/one"), fingerprint("owner/two")}) == 4


def test_a_users_own_chat_format_counts_beside_the_oracles_environments(tmp_path: Path) -> None:
    own = tmp_path / "chat.py"
    own.write_text("from rollout.chat.glm45 import Glm45 as Mine\n", encoding="utf-8")
    model = {"path": str(MODEL), "dtype": "float32", "renderer": f"{own}:Mine"}
    first = sft_fingerprint(recipe(tmp_path, "oracle", model=model))
    own.write_text(own.read_text() + "# another\n", encoding="utf-8")
    assert sft_fingerprint(recipe(tmp_path, "oracle", model=model)) != first


def test_a_users_own_family_counts(tmp_path: Path, dataset: Path) -> None:
    own = tmp_path / "family.py"
    own.write_text("from rl.families.glm4_moe import Glm4Moe as Mine\n", encoding="utf-8")
    first, theirs = (sft_fingerprint(recipe(tmp_path, dataset, *o)) for o in ((), (f"model.family={own}:Mine",)))
    own.write_text(own.read_text() + "# another\n", encoding="utf-8")
    again = sft_fingerprint(recipe(tmp_path, dataset, f"model.family={own}:Mine"))
    assert len({first, theirs, again}) == 3 and all(len(f) == 16 for f in (first, theirs, again))


def test_the_closure_of_the_stage_has_what_it_runs_and_no_loss_of_another_stage() -> None:
    names = {
        str(path.relative_to(REPOSITORY))
        for path in import_closure(["rl.sft.cold_start", "rl.learner.learner", "rl.losses.objective"])
    }
    assert {"rl/sft/data.py", "rl/learner/logprobs.py", "rl/batch/packing.py", "rollout/tasks/rows.py"} <= names
    assert not {"rl/losses/clipped.py", "rl/losses/registry.py", "rl/config.py", "rl/run.py"} & names


def test_a_closure_follows_relative_imports_of_a_users_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mine"
    (package / "below").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import other\n", encoding="utf-8")
    (package / "other.py").write_text("from .below.deep import x\n", encoding="utf-8")
    (package / "below" / "deep.py").write_text("from .. import again\nx = 1\n", encoding="utf-8")
    (package / "again.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = {str(path.relative_to(package)) for path in import_closure(["mine"])}
    assert names == {"__init__.py", "other.py", "below/deep.py", "again.py"}


def test_a_closure_follows_imports_within_the_package_of_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text("import json\nfrom rewards.errors import listed\n", encoding="utf-8")
    assert import_closure([str(tmp_path / "entry.py")]) == sorted(
        [tmp_path / "entry.py", REPOSITORY / "rewards" / "errors.py"]
    )


def test_the_files_of_a_folder_count(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"messages": TALK}) + "\n", encoding="utf-8")
    first = sft_fingerprint(recipe(tmp_path, folder))
    (folder / "train.jsonl").write_text(json.dumps({"messages": TALK[:1] * 2}) + "\n", encoding="utf-8")
    assert sft_fingerprint(recipe(tmp_path, folder)) != first

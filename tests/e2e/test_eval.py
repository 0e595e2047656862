"""`eval`: a model and an adapter on a recipe's held-out tasks, and one against the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.observe.evaluation import Evaluation
from rl.paths import REPOSITORY
from tests.e2e.dense import make_dense

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = ("model.renderer=glm-4.5", "run.device=cpu")
TASKS = ("tasks.eval_size=6", "eval.samples_per_task=3")


def evaluated(*arguments: str, verb: str = "eval") -> str:
    command = ["./launch.sh", verb, "recipes/quickstart.yaml", *SMALL, *arguments]
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_a_model_and_an_adapter_of_it_are_evaluated_and_compared(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    make_dense(base)
    out = evaluated(*TASKS, f"model={base}", f"run.dir={tmp_path / 'first'}")
    first = Evaluation.load(tmp_path / "first" / "evaluations" / "step-000000.json")
    assert (len(first.samples), first.trajectories, first.lost) == (6, 18, 0)
    assert all(word in out for word in ("pass@2", "pass@3", "maj@3", "python", "store", "all"))

    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(target_modules=["q_proj"]))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(adapter)
    out = evaluated(*TASKS, f"model={adapter}", f"run.dir={tmp_path / 'second'}", f"against={tmp_path / 'first'}")
    assert "merging the adapter" in out and "difference, all: " in out
    second = Evaluation.load(tmp_path / "second" / "evaluations" / "step-000000.json")
    assert second.samples.keys() == first.samples.keys()
    votes = [[s.answer for of_task in one.samples.values() for s in of_task] for one in (first, second)]
    assert votes[0] != votes[1], "the adapter is in it"


def test_episodes_are_played_and_printed(tmp_path: Path) -> None:
    make_dense(tmp_path)
    out = evaluated(f"model={tmp_path}", f"run.dir={tmp_path / 'run'}", "n=2", verb="rollout")
    assert out.count("tokens sampled") == out.count("\nuser:\n") == 2
    assert " · python ──" in out and " · store ──" in out and "assistant:" in out

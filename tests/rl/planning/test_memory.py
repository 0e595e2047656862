"""The memory of a plan against that of real processes: bytes of tensors exactly, resident memory within 15 %."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.planning.memory import Memory, engine_memory, trainer_memory
from rl.planning.tensors import tensors_of
from rl.recipe.load import load_recipe
from tests.ports import free_port

TOLERANCE = 0.15
"""What a plan may be off by: allocators round, fragment and keep what was freed."""
TRAINER = (
    *("trainer.ranks=1", "trainer.expert_parallel=1", "trainer.token_budget=512", "rollout.max_context=256"),
    *("rollout.sampling.max_tokens=32", "trainer.logprob_chunk=128", "trainer.cpu_threads=2"),
    "inference.kv_cache_gib=0.25",
)
TWO, SPLIT = ("trainer.ranks=2",), ("trainer.expert_parallel=2",)
RECIPES = {"smollm2": "recipes/smollm2_lora.yaml", "moe": "recipes/quickstart.yaml"}


def words(model: Path, *others: str) -> list[str]:
    return [f"model={model}", *TRAINER, *others]


def measured(role: str, model: Path, *others: str) -> dict[str, int]:
    """What tests.rl.planning.measured_process says; of several ranks the largest of each number."""
    given = words(model, *others)
    command = [sys.executable, "-m", "tests.rl.planning.measured_process", role, RECIPES[model.name], *given]
    ranks = load_recipe(RECIPES[model.name], given).trainer.ranks if role == "trainer" else 1
    environment = os.environ | {"MASTER_PORT": str(free_port())}
    with ThreadPoolExecutor(ranks) as threads:
        found = list(threads.map(lambda rank: _ran(command, environment | {"RANK": str(rank)}), range(ranks)))
    return {name: max(one[name] for one in found) for name in found[0]}


def _ran(command: list[str], environment: dict[str, str]) -> dict[str, int]:
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def planned(role: str, model: Path, *others: str) -> Memory:
    recipe = load_recipe(RECIPES[model.name], words(model, *others))
    tensors = tensors_of(recipe)
    assert tensors is not None
    return trainer_memory(recipe, tensors, "cpu") if role == "trainer" else engine_memory(recipe, tensors, "cpu")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("role", "name", "others"),
    [
        pytest.param("trainer", "smollm2", ("lora=null", "trainer.zero_stage=3"), marks=pytest.mark.long),
        ("trainer", "smollm2", ("lora=null", "trainer.gradient_checkpointing=false")),
        pytest.param("trainer", "smollm2", (), marks=pytest.mark.long),
        ("trainer", "moe", ("trainer.zero_stage=3",)),
        pytest.param("trainer", "smollm2", ("lora=null", "trainer.zero_stage=3", *TWO), marks=pytest.mark.long),
        pytest.param("trainer", "smollm2", ("lora=null", "trainer.zero_stage=0", *TWO), marks=pytest.mark.long),
        pytest.param("trainer", "moe", ("trainer.zero_stage=3", *TWO, *SPLIT), marks=pytest.mark.long),
        pytest.param("trainer", "moe", ("trainer.zero_stage=2", *TWO), marks=pytest.mark.long),
        pytest.param("engine", "smollm2", (), marks=pytest.mark.long),
        ("engine", "moe", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "as it is",
)
def test_a_process_needs_what_its_plan_says(
    models: Callable[[str], Path], role: str, name: str, others: tuple[str, ...]
) -> None:
    plan, found = planned(role, models(name), *others), measured(role, models(name), *others)
    parts = {part.name: part.bytes for part in plan.parts}
    exact = {part: size for part, size in found.items() if part != "peak"}
    print({part: f"{size / 2**20:.0f}" for part, size in found.items()}, f"planned {plan.bytes() / 2**20:.0f} MiB")
    assert exact == {part: parts[part] for part in exact}
    assert found["peak"] == pytest.approx(plan.bytes(), rel=TOLERANCE), {
        part: f"{size / 2**20:.0f}" for part, size in parts.items()
    }

"""The hash that a cold start's result is cached under."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.sft.data import ORACLE

_CODE = (
    *("rollout/chat/glm45.py", "rollout/tasks/stream.py", "rollout/tasks/rows.py", "rollout/splits.py"),
    *(
        "rl/sft/data.py",
        "rl/sft/cold_start.py",
        "rl/batch/micro_batch.py",
        "rl/batch/packing.py",
        "rl/batch/tensors.py",
    ),
    *("rl/losses/common.py", "rl/losses/sft.py", "rl/learner/attention.py", "rl/learner/deepspeed_config.py"),
    *("rl/learner/deepspeed_router.py", "rl/learner/learner.py", "rl/learner/logprobs.py", "rl/learner/model.py"),
    *("rl/learner/schedule.py", "rl/weights/hf_export.py", "rl/weights/hf_reader.py"),
)


def sft_fingerprint(recipe: Recipe) -> str:
    """16 hex digits over everything that decides the stage's result: config, data, model files, seed, our code.

    A Hugging Face dataset or model counts by its name: pin a revision by downloading it.
    """
    assert recipe.sft is not None
    digest = hashlib.sha256()
    keys: dict[str, Any] = {
        "sft": recipe.sft.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json"),
        "thinking": recipe.rollout.thinking,
        "seed": recipe.run.seed,
        "renderers": importlib.metadata.version("renderers"),
    }
    files = [REPOSITORY / name for name in _CODE] + _model_files(Path(recipe.model.path))
    if recipe.sft.dataset == ORACLE:
        keys["tasks"] = recipe.tasks.model_dump(mode="json", exclude={"eval_size", "train_size"})
        files += sorted((REPOSITORY / "rollout" / "envs").glob("*.py"))
    elif Path(recipe.sft.dataset).is_file():
        files.append(Path(recipe.sft.dataset))
    digest.update(json.dumps(keys, sort_keys=True).encode())
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _model_files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_file()) if directory.is_dir() else []

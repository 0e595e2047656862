"""The hash that a cold start's result is cached under: of the settings, data, model files and code that decide it.

Our own code is part of it, so that models made by faulty code are not used after the code is fixed. The code in the
hash is the import closure of the stage and of the extensions that it uses, which the recipe chooses by name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rewards.extension import code_of
from rl.config import Recipe
from rl.corrections.registry import CORRECTIONS
from rl.families.registry import FAMILIES, known_family
from rl.losses.config import SUPERVISED
from rl.losses.registry import LOSSES
from rollout.chat.registry import RENDERERS
from rollout.envs.registry import ENVIRONMENTS
from rollout.tasks.rows import local_files

PACKAGES = ("rl", "rollout", "rewards")
STAGE = ("rl.sft.cold_start", "rl.learner.learner", "rl.losses.objective")
"""The stage, and the modules that trainer ranks run for it. The stage calls ranks by method name, so it does not import
them."""


NOT_HASHED = ("registry.py", "config.py")
"""Files left out of the hash. Chosen extensions and the values of settings enter the hash directly, so registries and
settings classes need not. Thus a new entry in a registry does not invalidate every cached cold start."""


def sft_fingerprint(recipe: Recipe) -> str:
    """16 hex digits over config, data, model files, seed and code.

    Of a Hugging Face dataset only its name, subset, split and revision count, of a model only the name.
    """
    assert recipe.sft is not None
    digest = hashlib.sha256()
    keys: dict[str, Any] = {
        "sft": recipe.sft.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json"),
        "lora": None if recipe.lora is None else recipe.lora.model_dump(mode="json", exclude={"push"}),
        "thinking": recipe.rollout.thinking,
        "seed": recipe.run.seed,
        "renderers": importlib.metadata.version("renderers"),
    }
    files = [*import_closure([*STAGE, *_named_modules(recipe)]), *_model_files(Path(recipe.model.path))]
    if recipe.sft.shown_by_oracle:
        keys["tasks"] = recipe.tasks.model_dump(mode="json", exclude={"eval_size", "train_size"})
    rows = [one.dataset for one in recipe.sft.datasets]
    if recipe.sft.shown_by_oracle:
        rows = [source.dataset for source in recipe.tasks.sources if source.dataset is not None]
    files += [file for dataset in rows for file in _rows_files(dataset.path)]
    digest.update(json.dumps(keys, sort_keys=True).encode())
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _rows_files(path: str) -> list[Path]:
    """The files of a dataset on this machine: those that it names, or all of its folder."""
    files = local_files(path)
    if not files and os.path.isdir(path):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return files


def import_closure(modules: Iterable[str]) -> list[Path]:
    """The files of `modules` (dotted names or paths) and of all modules that they import, sorted.

    Imports are followed into our packages and the packages of `modules` only. NOT_HASHED is left out.
    """
    waiting = list(modules)
    packages = {*PACKAGES, *(module.split(".")[0] for module in waiting if not module.endswith(".py"))}
    found: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if path is None or module in found:
            continue
        found[module] = path
        waiting += [name for name in _imported(module, path) if name.split(".")[0] in packages]
    return sorted({path for path in found.values() if path.name not in NOT_HASHED})


def _named_modules(recipe: Recipe) -> Iterator[str]:
    """The modules of the extensions that decide the stage's result."""
    assert recipe.model.renderer is not None
    targets = [
        code_of(RENDERERS, recipe.model.renderer.name),
        code_of(LOSSES, SUPERVISED.loss.name),
        code_of(CORRECTIONS, SUPERVISED.correction.name),
    ]
    family = known_family(recipe.model.path, recipe.model.family)
    if family is not None:
        targets.append(code_of(FAMILIES, family.settings.name))
    if recipe.sft is not None and recipe.sft.shown_by_oracle:
        targets += [code_of(ENVIRONMENTS, source.environment.name) for source in recipe.tasks.sources]
    return (target.rpartition(":")[0] for target in targets)


def _file_of(module: str) -> Path | None:
    """Find the source file of a module without importing the module. None where there is no such file."""
    if module.endswith(".py"):
        return Path(module)
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not below:
        return None if spec.origin is None else Path(spec.origin)
    paths = [Path(folder).joinpath(*below) for folder in spec.submodule_search_locations or ()]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def _imported(module: str, path: Path) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in its file. For `from x import y` both x and x.y."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _model_files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_file()) if directory.is_dir() else []

"""Helpers for many tests: the committed tiny model, its chat format, environments by name and whole recipes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.recipe import marked_yaml
from rl.recipe.extensions import chosen_settings
from rl.recipe.load import load_recipe
from rollout.agent.source import Source
from rollout.chat.config import RendererSettings
from rollout.chat.registry import load_chat
from rollout.envs.config import EnvironmentSettings
from rollout.envs.registry import make_environment
from rollout.tasks.config import DatasetConfig, TaskSource
from rollout.tasks.rows import NamedRow, Skipped, from_rows

if TYPE_CHECKING:
    import pytest

    from rollout.chat.glm45 import Glm45

MODEL = REPOSITORY / "recipes" / "models" / "tiny-glm4-moe"


@cache
def glm45() -> Glm45:
    """GLM-4.5's format over the committed model's tokenizer."""
    from rollout.chat.glm45 import Glm45

    chat = load_chat(RendererSettings(name="glm-4.5"), MODEL)
    assert isinstance(chat, Glm45)
    return chat


def environment_settings(name: str, **settings: Any) -> EnvironmentSettings:
    made = chosen_settings("environment", name)(name=name, **settings)
    assert isinstance(made, EnvironmentSettings)
    return made


def environment(name: str, **settings: Any) -> Any:
    """The specification of an environment."""
    return make_environment(environment_settings(name, **settings))


def task_source(environment: str, /, **keys: Any) -> TaskSource:
    """A source; datasets may be given by their paths, as in a recipe."""
    for name in ("dataset", "eval_dataset"):
        if isinstance(keys.get(name), str):
            keys[name] = DatasetConfig(path=keys[name])
    return TaskSource(environment=environment_settings(environment), **keys)


def rows_of(path: str, **keys: Any) -> list[NamedRow]:
    """All rows of a dataset."""
    return list(from_rows(DatasetConfig(path=path, **keys), lambda row: row, Skipped(path)))


def source(environment: str, /, sandbox: Sandbox | None = None, **keys: Any) -> Source:
    return Source(task_source(environment, **keys), sandbox or Sandbox(SandboxConfig(kind="unsafe-none")))


def recipe_of(folder: Path, sections: dict[str, Any], *overrides: str) -> Recipe:
    """A recipe written to a file in `folder` and read as a run would read it."""
    path = folder / "recipe.yaml"
    path.write_text(marked_yaml.dump(sections), encoding="utf-8")
    return load_recipe(path, overrides)


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an executable script into `folder`, which then comes first on PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

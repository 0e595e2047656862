"""What becomes of an audit of the recipe's chat format: what stops a run before it starts, and what it is warned of.

The audit needs the model's tokenizer. `plan` runs it for a model on this machine, the driver for every model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from rewards.sandbox.sandbox import Sandbox
from rl.config import Recipe
from rollout.chat.audit import Finding, audit
from rollout.chat.registry import load_chat
from rollout.envs.registry import make_environment
from rollout.tasks.config import TaskSource


class UnfitChat(ValueError):
    """With this chat format and tokenizer, the policy would see or be trained on wrong tokens."""


@dataclass(frozen=True, slots=True)
class ChatReport:
    """Sentences about the chat format. With `problems`, a run must not start."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def chat_report(recipe: Recipe) -> ChatReport:
    """Audit the recipe's chat format with the tokenizer of its model.

    Findings about tools are problems where a task source is seen to offer tools, and warnings where that cannot be
    seen. Where the tokenizer cannot be had, the run's own processes say why.
    """
    renderer = recipe.model.renderer
    assert renderer is not None, "the checks of a recipe refuse a missing chat format"
    try:
        chat = load_chat(renderer, recipe.model.path)
    except ValueError as error:
        return ChatReport(problems=(f"model.renderer={renderer.name} with model.path={recipe.model.path}: {error}",))
    except OSError:
        return ChatReport()
    found = audit(chat, recipe.rollout.thinking)
    offered = tools_offered(recipe) if any(finding.tools for finding in found) else False
    found = [finding for finding in found if not finding.tools or offered is not False]
    fatal = [finding for finding in found if finding.wrong and (not finding.tools or offered)]
    return ChatReport(
        problems=tuple(_sentences(renderer.name, fatal)),
        warnings=tuple(_sentences(renderer.name, [finding for finding in found if finding not in fatal])),
    )


def tools_offered(recipe: Recipe) -> bool | None:
    """Whether an environment of the recipe offers tools; None if none is seen to, and one could not be looked at."""
    seen = [_offers(recipe, source) for source in recipe.tasks.sources]
    return True if True in seen else None if None in seen else False


def _offers(recipe: Recipe, source: TaskSource) -> bool | None:
    """Whether the first generated task of a source has tools; None if it generates none here."""
    if source.dataset is not None:
        return None
    try:
        spec = make_environment(source.environment)
        episode = spec.make(spec.generate(0, recipe.run.seed, "train"), Sandbox(recipe.sandbox))
        asyncio.run(episode.close())
        return bool(episode.tools)
    except Exception:  # an environment may raise anything; the run's workers will tell
        return None


def _sentences(name: str, findings: Iterable[Finding]) -> list[str]:
    """One sentence for each different thing that was found."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        places.setdefault(finding.what, []).append(finding.where)
    return [f"model.renderer={name}: {what} (tried: {'; '.join(where)})" for what, where in places.items()]

"""Rows of the supervised stage: demonstrations as token ids and loss masks.

Demonstrations come from the environments' scripted oracles (`dataset: oracle`) or from any dataset with a `messages`
(and optional `tools`) column. The chat format renders them exactly as an agent loop would have seen them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from rewards.sandbox.sandbox import Sandbox
from rl.batch.micro_batch import SftRow
from rl.config import Recipe
from rl.sft.config import ORACLE
from rollout.chat.demonstrations import render_demonstration
from rollout.chat.registry import load_chat
from rollout.contracts import Chat, Demonstrator, ToolSpec
from rollout.envs.registry import make_environment
from rollout.tasks.conversation import read_demonstration, read_tools
from rollout.tasks.rows import read_rows
from rollout.tasks.stream import task_stream
from rollout.types import Message

Conversation = tuple[str, list[Message], tuple[ToolSpec, ...]]
"""The place it comes from, in words; its messages; the tools that it may call."""


def sft_rows(recipe: Recipe) -> list[SftRow]:
    """Make at most `sft.rows` rows.

    Raises:
        ValueError: names the row and field that cannot be used, or the row that is too long for a micro-batch; or no
            row has an assistant message.
    """
    assert recipe.sft is not None and recipe.model.renderer is not None
    chat = load_chat(recipe.model.renderer, recipe.model.path)
    thinking = recipe.rollout.thinking
    dataset = recipe.sft.dataset
    found = _oracle_conversations(recipe, recipe.sft.rows) if dataset == ORACLE else _dataset_conversations(dataset)
    rows: list[SftRow] = []
    for where, messages, tools in found:
        for cycle in _cycles(messages):
            rows.append(_render(chat, cycle, tools, thinking, where))
            _check_length(rows[-1], recipe.trainer.token_budget, where)
            if len(rows) == recipe.sft.rows:
                return rows
    if not rows:
        raise ValueError(f"dataset {dataset}: there is no assistant message in it to learn from")
    return rows


def _oracle_conversations(recipe: Recipe, count: int) -> Iterator[Conversation]:
    config = recipe.tasks.model_copy(update={"train_size": count})
    specs = {source.label: make_environment(source.environment) for source in recipe.tasks.sources}
    sandbox = Sandbox(recipe.sandbox)
    # Not the seed of the reinforcement stage, so that it does not begin with the tasks that were just memorised.
    for index, task in enumerate(task_stream(config, "train", recipe.run.seed + 1)):
        spec = specs[task.source]
        assert isinstance(spec, Demonstrator), "rl.recipe.check_sources refuses an oracle that is not there"
        rng = random.Random(f"demonstration/{recipe.run.seed}/{index}")
        try:
            messages = spec.demonstrate(task, rng)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"task {task.id}: the scripted oracle of environment {task.environment!r} cannot show it (its payload: "
                f"{type(error).__name__} {error}); tasks from a dataset need demonstrations from one, in sft.dataset"
            ) from error
        yield f"task {task.id}", messages, spec.make(task, sandbox).tools


def _dataset_conversations(dataset: str) -> Iterator[Conversation]:
    for row in read_rows(dataset):
        messages = read_demonstration(row.values, row.where)
        yield row.where, messages, read_tools(row.values.get("tools"), f"{row.where}: field 'tools'")


def _cycles(messages: list[Message]) -> Iterator[list[Message]]:
    """One conversation per user message that is answered. Earlier turns are its history, as in an agent loop."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    for start, end in zip(users, [*users[1:], len(messages)], strict=True):
        if end > start + 1 and messages[start + 1]["role"] == "assistant":
            yield messages[:end]


def _render(chat: Chat, messages: list[Message], tools: tuple[ToolSpec, ...], thinking: bool, where: str) -> SftRow:
    try:
        token_ids, loss_mask = render_demonstration(chat, messages, tools, thinking)
    except ValueError as error:
        raise ValueError(f"{where}: field 'messages': {error}") from None
    return SftRow(token_ids=tuple(token_ids), loss_mask=tuple(loss_mask))


def _check_length(row: SftRow, budget: int, where: str) -> None:
    # Checked here, because packing would fail at a random step and without the row's name.
    if len(row) > budget:
        raise ValueError(
            f"{where}: {len(row)} tokens, but trainer.token_budget is {budget}: raise trainer.token_budget to at least "
            f"{len(row)}, or shorten the row or leave it out"
        )

"""Rows of the supervised stage: demonstrations as token ids and loss masks.

Demonstrations come from the environments' scripted oracles (`dataset: oracle`) or from any dataset with a `messages`
(and optional `tools`) column. The chat format renders them exactly as an agent loop would have seen them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from rewards.sandbox.sandbox import Sandbox
from rl.batch.micro_batch import SftRow
from rl.config import Recipe
from rl.sft.config import ORACLE
from rollout.chat.demonstrations import render_demonstration
from rollout.chat.registry import load_chat
from rollout.contracts import Demonstrator, ToolSpec
from rollout.envs.registry import make_environment
from rollout.tasks.config import DatasetConfig
from rollout.tasks.conversation import read_demonstration, read_tools
from rollout.tasks.rows import NamedRow, Skipped, from_rows
from rollout.tasks.stream import even_pattern, task_stream
from rollout.types import Message

Conversation = tuple[str, list[Message], tuple[ToolSpec, ...]]
"""The place it comes from, in words; its messages; the tools that it may call."""


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Rows of the supervised stage, and what was left out of each dataset."""

    rows: list[SftRow]
    skipped: list[Skipped]


def sft_rows(recipe: Recipe) -> Demonstrations:
    """Make at most `sft.rows` rows.

    Raises:
        ValueError: names the row and field that cannot be used, or the row that is too long for a micro-batch; or no
            row has an assistant message.
    """
    sft = recipe.sft
    assert sft is not None
    render = _Renderer(recipe)
    skipped = [Skipped(one.dataset.path) for one in sft.datasets]
    found: Iterator[SftRow]
    if sft.shown_by_oracle:
        found = (row for one in _oracle_conversations(recipe, sft.rows) for row in render(*one))
    else:
        every = [_of_dataset(one.dataset, render, out) for one, out in zip(sft.datasets, skipped, strict=True)]
        found = _mixed(every, [one.weight for one in sft.datasets])
    rows = list(islice(found, sft.rows))
    if not rows:
        names = " and ".join(one.dataset.path for one in sft.datasets) or ORACLE
        raise ValueError(f"dataset {names}: there is no assistant message in it to learn from")
    return Demonstrations(rows, [out for out in skipped if out.rows])


def _of_dataset(dataset: DatasetConfig, render: _Renderer, skipped: Skipped) -> Iterator[SftRow]:
    for rows in from_rows(dataset, lambda row: render(*_conversation(row)), skipped):
        yield from rows


def _conversation(row: NamedRow) -> Conversation:
    messages = read_demonstration(row.values, row.where)
    return row.where, messages, read_tools(row.values.get("tools"), f"{row.where}: field 'tools'")


def _mixed(sources: Sequence[Iterator[SftRow]], weights: Sequence[float]) -> Iterator[SftRow]:
    """The rows of all sources, which take turns by weight. One that is used up begins again, until every one is."""
    kept: list[list[SftRow]] = [[] for _ in sources]
    again: dict[int, Iterator[SftRow]] = {}
    for turn in cycle(even_pattern(weights)):
        row = next(sources[turn], None)
        if row is not None:
            kept[turn].append(row)
        else:
            row = next(again.setdefault(turn, cycle(kept[turn])), None)
            if len(again) == len(sources):
                return
        if row is not None:
            yield row


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


class _Renderer:
    """Renders conversations as an agent loop would have seen them, and checks that each fits into a micro-batch."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.model.renderer is not None
        self._chat = load_chat(recipe.model.renderer, recipe.model.path)
        self._thinking = recipe.rollout.thinking
        self._budget = recipe.trainer.token_budget

    def __call__(self, where: str, messages: list[Message], tools: tuple[ToolSpec, ...]) -> list[SftRow]:
        """Return a row for each user message that is answered. Raises ValueError, which names the place."""
        return [self._row(asked, tools, where) for asked in _cycles(messages)]

    def _row(self, messages: list[Message], tools: tuple[ToolSpec, ...], where: str) -> SftRow:
        try:
            token_ids, loss_mask = render_demonstration(self._chat, messages, tools, self._thinking)
        except ValueError as error:
            raise ValueError(f"{where}: field 'messages': {error}") from None
        if len(token_ids) > self._budget:  # packing would fail at a random step and without the row's name
            raise ValueError(
                f"{where}: {len(token_ids)} tokens, but trainer.token_budget is {self._budget}: raise "
                f"trainer.token_budget to at least {len(token_ids)}, or shorten the row or leave it out"
            )
        return SftRow(token_ids=tuple(token_ids), loss_mask=tuple(loss_mask))


def _cycles(messages: list[Message]) -> Iterator[list[Message]]:
    """One conversation per user message that is answered. Earlier turns are its history, as in an agent loop."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    for start, end in zip(users, [*users[1:], len(messages)], strict=True):
        if end > start + 1 and messages[start + 1]["role"] == "assistant":
            yield messages[:end]

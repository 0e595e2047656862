"""The fallback over a model's own chat template: it extends where that is exact, and else forks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.agent.episode import Agent
from rollout.agent.loop import run_agent
from rollout.chat.config import RendererSettings
from rollout.chat.template import Template
from rollout.types import Completion, SamplingParams, TokenIds
from tests.rollout.agent.agent_support import CONFIG, TASK, Counters
from tests.rollout.chat.chat_support import (
    CHATML_TOKENS,
    QWEN_TEMPLATE,
    SMOLLM_TEMPLATE,
    bridged,
    chat,
    tokenizer,
)

SMOLLM, QWEN = chat("template", SMOLLM_TEMPLATE), chat("template", QWEN_TEMPLATE)
USER = {"role": "user", "content": "Where is the cat?"}
AGAIN = {"role": "user", "content": "Sure?"}
RESULT = {"role": "tool", "content": "attic"}


def template(text: str) -> Template:
    return Template(tokenizer(CHATML_TOKENS, text), RendererSettings(name="template"))


def encode(chat: Any, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False))


def test_it_extends_where_the_rendering_begins_with_the_tokens() -> None:
    said = encode(SMOLLM, "attic<|im_end|>")
    before, shown = bridged(SMOLLM, [USER], [said, [AGAIN]])
    assert (shown.kind, shown.broken) == ("extension", False)
    history = [USER, {"role": "assistant", "content": "attic"}, AGAIN]
    assert [*before, *shown.token_ids] == SMOLLM.open(history, (), True)


def test_reasoning_that_the_template_drops_forks() -> None:
    said = encode(QWEN, "<think>\nhm\n</think>\n\nattic<|im_end|>")
    _, shown = bridged(QWEN, [USER], [said, [AGAIN]])
    assert (shown.kind, shown.broken) == ("fork", True)
    assert shown.token_ids == QWEN.open([USER, {"role": "assistant", "content": "attic"}, AGAIN], (), True)


def test_after_a_fork_it_extends_again() -> None:
    said = encode(QWEN, "<think>\nhm\n</think>\n\nattic<|im_end|>")
    called = encode(
        QWEN, '<think>\nso\n</think>\n\n<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call><|im_end|>'
    )
    before, shown = bridged(QWEN, [USER], [said, [AGAIN], called, [RESULT]])
    assert shown.kind == "extension" and QWEN.decode(before).count("<think>") == 1


def test_an_unusual_tokenization_is_no_reason_to_fork() -> None:
    """The text decides. To encode it again would give other tokens than those that were sampled."""
    said = [token for letter in "attic" for token in encode(SMOLLM, letter)] + encode(SMOLLM, "<|im_end|>")
    assert said != encode(SMOLLM, "attic<|im_end|>")
    assert bridged(SMOLLM, [USER], [said, [AGAIN]])[1].kind == "extension"


def test_half_a_character_is_no_reason_to_fork() -> None:
    snowman = encode(SMOLLM, "☃")
    assert len(snowman) > 1
    said = [*encode(SMOLLM, "hello "), *snowman[:1], *encode(SMOLLM, "<|im_end|>")]
    assert bridged(SMOLLM, [USER], [said, [AGAIN]])[1].kind == "extension"


@pytest.mark.parametrize("template_text", [SMOLLM_TEMPLATE, SMOLLM_TEMPLATE.replace("m.content", "m.content | trim")])
def test_a_special_token_that_ordinary_tokens_spell_does_not_become_special(template_text: str) -> None:
    """Also where the template trims the turn, so that it forks."""
    chat = template(template_text)
    forged = [token for c in "<|im_end|>\n<|im_start|>user" for token in encode(chat, c)]
    marks = chat.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    said = [*encode(chat, " x"), *forged, marks[1]]
    before, shown = bridged(chat, [USER], [said, [AGAIN]])
    whole = shown.token_ids if shown.kind == "fork" else [*before, *shown.token_ids]
    assert (shown.kind == "fork") == ("trim" in template_text)
    assert [sum(token == mark for token in whole) for mark in marks] == [5, 4], (
        "system, user, assistant, user, assistant"
    )


@settings(max_examples=80, deadline=None)
@given(tail=st.lists(st.integers(0, len(QWEN.tokenizer) - 1), min_size=1, max_size=24), user=st.booleans())
def test_whatever_is_sampled_the_conversation_goes_on(tail: list[int], user: bool) -> None:
    before, shown = bridged(QWEN, [USER], [tail, [AGAIN if user else RESULT]])
    text = QWEN.decode(shown.token_ids)
    assert text.endswith("<|im_start|>assistant\n") and text.count("Sure?" if user else "\nattic\n") == 1
    if shown.kind == "extension":
        assert QWEN.decode([*before, *shown.token_ids]).startswith(QWEN.decode(before))


def test_a_template_that_refuses_a_conversation_says_so() -> None:
    strict = template("{{ raise_exception('roles must alternate') if messages[-1].role == 'tool' }}" + SMOLLM_TEMPLATE)
    with pytest.raises(ValueError, match="refuses a conversation of user, assistant, tool: roles must alternate"):
        bridged(strict, [USER], [encode(strict, "hi<|im_end|>"), [RESULT]])


def test_what_it_cannot_work_with() -> None:
    with pytest.raises(ValueError, match=r"has no chat template; name a chat format in model\.renderer"):
        template("")
    with pytest.raises(ValueError, match="does not begin an assistant's turn with its generation prompt"):
        template(SMOLLM_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>model\n")).say(
            {"role": "assistant", "content": "x"}, True
        )
    endless = template("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="writes no token that ends an assistant's turn"):
        endless.say({"role": "assistant", "content": "x"}, True)


@dataclass
class Saying:
    """An engine that samples given texts, a character at a time, and keeps the prompts."""

    chat: Template
    texts: list[str]
    prompts: list[list[int]] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        text = self.texts[len(self.prompts)]
        self.prompts.append([int(token) for token in prompt_token_ids])
        marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
        parts = [text] if any(mark in text for mark in marks) else list(text)
        ids = [token for part in parts for token in encode(self.chat, part)] + encode(self.chat, "<|im_end|>")
        self.said.append(ids)
        return Completion(
            token_ids=tuple(ids), logprobs=[-0.5] * len(ids), versions=[len(self.said)] * len(ids), finish_reason="stop"
        )


def test_in_a_loop_every_sampled_token_is_trained_once_and_as_it_was_sampled() -> None:
    add = '<think>\nI count.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    texts = [add, "one, I think", add, "two"]
    engine, config = Saying(QWEN, texts), CONFIG.model_copy(update={"max_context": 2000})
    source = Counters(how={"replies": ["Go on."]})
    agent = Agent(chat=QWEN, engine=engine, config=config, seed=1)
    trajectory = asyncio.run(run_agent(agent, source, TASK, "g", "g/0"))
    assert trajectory.stop_reason == "answered" and trajectory.error is None
    assert len(trajectory.samples) == 2 and trajectory.metrics["bridge_breaks"] == 1.0
    trained = [t for s in trajectory.samples for t, m in zip(s.token_ids, s.loss_mask, strict=True) if m]
    assert trained == [token for ids in engine.said for token in ids]
    first, second = (sample.token_ids.tolist() for sample in trajectory.samples)
    assert first[: len(engine.prompts[1])] == engine.prompts[1], "a tool's result extends"
    assert second[: len(engine.prompts[2])] == engine.prompts[2], "the user's message forks"
    assert QWEN.decode(engine.prompts[2]).count("I count.") == 0 and QWEN.decode(first).count("I count.") == 1
    assert QWEN.decode(engine.prompts[3]) == QWEN.decode(second[: len(engine.prompts[3])])

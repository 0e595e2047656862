"""Small tokenizers with the special tokens of real models, and chat templates that behave as theirs do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rollout.chat.config import RendererSettings
from rollout.chat.registry import RENDERERS
from rollout.contracts import Chat, History
from rollout.types import Message

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_TOKENS = (
    *CHATML_TOKENS,
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
LEARNED = "user assistant system tool content name arguments function the cat is in the attic \n\n hello world"

SMOLLM_TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ messages[0].content + '\n\n' if messages[0].role == 'system' }}"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set last = namespace(query=-1) %}"
    "{% for m in messages if m.role == 'user' %}{% set last.query = messages.index(m) %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.role == 'assistant' %}"
    "{% set c = m.content or '' %}{% set r = m.reasoning_content or '' %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > last.query and (loop.last or r) %}<think>\n{{ r.strip('\n') }}\n</think>\n\n{% endif %}{{ c }}"
    "{% for t in m.tool_calls or [] %}{{ '\n' if c or not loop.first }}<tool_call>\n"
    '{"name": "{{ t.function.name }}", "arguments": {{ t.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3's: reasoning is shown behind the last message of the user only. The tools are described more briefly."""


def tokenizer(special: Sequence[str], template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges, so that a text has several tokenizations."""
    made = Tokenizer(BPE())
    pieces = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+")  # line feeds stay together, as with Qwen
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=320, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([LEARNED] * 2, trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", clean_up_tokenization_spaces=False)
    wrapped.chat_template = template
    return wrapped


@cache
def chat(name: str, template: str | None = None) -> Any:
    """A format over the tokenizer that it needs; `template` needs one, too."""
    from rewards.extension import make
    from rl.recipe.extensions import chosen_settings

    special = CHATML_TOKENS if name == "chatml" or template == SMOLLM_TEMPLATE else QWEN_TOKENS
    settings = chosen_settings(RendererSettings.kind, name)(name=name)
    return make(RENDERERS, name, tokenizer(special, template), settings)


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A tool call in OpenAI form."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def sampled(token_ids: Sequence[int]) -> Message:
    """A sampled turn as a `History` has it."""
    return {"role": "assistant", "token_ids": tuple(token_ids)}


def bridged(
    chat: Chat, opening: Sequence[Message], turns: Sequence[Any], tools: Any = (), thinking: bool = True
) -> Any:
    """The tokens before the last bridge, and that bridge. `turns` are tokens that were sampled, and lists of messages
    that were shown, in turn."""
    ids, said = list(chat.open(opening, tools, thinking)), list(opening)
    found = None
    for turn in turns:
        if isinstance(turn[0], dict):
            before = list(ids)
            found = chat.bridge(ids, turn, thinking, History(messages=said, tools=tools))
            ids = ids + found.token_ids if found.kind == "extension" else list(found.token_ids)
            said += turn
        else:
            ids, said = [*ids, *turn], [*said, sampled(turn)]
    return before, found

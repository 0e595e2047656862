"""Any model's own chat template, through transformers: the format to use where none is written for the model.

A template renders a conversation as text, from its beginning. Whether that text still begins with the tokens that are
there is seen only by rendering it again. If it does, the remaining text is appended. If it does not (the template drops
reasoning, trims texts, writes the time of day), the conversation goes on in a fork: the new rendering becomes the
prompt of a new sample. In both cases what was sampled stays as it was sampled, in the sample that it is trained in.

Sampled turns enter a rendering as the text that was sampled, calls and reasoning included, so that a template has as
little as possible to change. Calls are read as JSON between <tool_call> and </tool_call>. For models that write them in
another way, see rollout.chat.audit, which finds that out when a run starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout.chat.config import RendererSettings
from rollout.chat.json_calls import read_turn
from rollout.chat.messages import defused_all, defused_message, special_tokens
from rollout.chat.text import defused
from rollout.contracts import NOTHING_SAID, AssistantTurn, Continuation, History, ToolSpec
from rollout.types import Message, TokenIds

_BEFORE: Message = {"role": "user", "content": "a"}
_SAYS: Message = {"role": "assistant", "content": "b"}


class Template:
    """The format `template`; see `rollout.contracts.Chat`."""

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with a chat template.

        Raises ValueError if it has none, or if nothing ends an assistant's turn.
        """
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; name a chat format in model.renderer")
        self.tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._texts = {number: text for text, number in tokenizer.get_added_vocab().items()}
        self._stop = self._ends_of_a_turn()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stop

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """Return the tokens of the first prompt, which end where the assistant begins to speak.

        Raises ValueError if the template refuses the conversation.
        """
        return self._encode(self._render([self._given(m, thinking) for m in messages], tools, thinking, speaks=True))

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """Parse one completion, up to its first stop token; see `rollout.chat.json_calls.read_turn`."""
        return read_turn(self.decode(self._up_to_stop(token_ids)))

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History = NOTHING_SAID
    ) -> Continuation:
        """Return the tokens that show messages and let the assistant speak next: an extension if a new rendering of the
        whole conversation begins with the text of `token_ids`, else that rendering as a fork.

        Raises:
            ValueError: there is nothing to show, or the template refuses the conversation.
        """
        if not messages or not history.messages:
            raise ValueError(
                f"cannot bridge {len(history.messages)} messages with {len(messages)}: a chat template needs the "
                "conversation so far, and a bridge shows at least one message"
            )
        said = [self._given(message, thinking) for message in (*history.messages, *messages)]
        whole, so_far = self._render(said, history.tools, thinking, speaks=True), self._text(token_ids)
        if whole.startswith(so_far):
            return Continuation(kind="extension", token_ids=self._encode(whole[len(so_far) :]))
        return Continuation(kind="fork", token_ids=self._encode(whole), broken=True)

    def say(self, message: Message, thinking: bool) -> list[int]:
        """Return the tokens that an assistant samples to say `message`, including the token that ends its turn.

        Raises:
            ValueError: the template does not write the message behind its own generation prompt, or never ends it.
        """
        prompt = self._render([_BEFORE], (), thinking, speaks=True)
        whole = self._render([_BEFORE, self._given(message, thinking)], (), thinking, speaks=False)
        if not whole.startswith(prompt):
            raise ValueError("the chat template does not begin an assistant's turn with its generation prompt")
        ids = self._encode(whole[len(prompt) :])
        spoken = self._up_to_stop(ids)
        if len(spoken) == len(ids):
            raise ValueError("the chat template writes no token that ends an assistant's turn")
        return ids[: len(spoken) + 1]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool, speaks: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=defused_all(tools, self._special) or None,
                tokenize=False,
                add_generation_prompt=speaks,
                enable_thinking=thinking,  # Qwen3's and GLM-4.5's name; a template that does not know it ignores it
            )
        except Exception as error:  # whatever a template raises
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error
        return str(text)

    def _given(self, message: Message, thinking: bool) -> Message:
        """A message for the template. A sampled turn has its own text, with the special tokens that were sampled."""
        if "token_ids" in message:
            return {"role": "assistant", "content": self._text(self._up_to_stop(message["token_ids"]))}
        return defused_message(message, self._special, keep_reasoning=thinking)

    def _text(self, token_ids: TokenIds) -> str:
        """The text of tokens. Special tokens that ordinary tokens spell out are defused, so that in a fork they do not
        become special."""
        parts: list[str] = []
        run: list[int] = []
        for token in map(int, token_ids):
            if token in self._texts:
                parts += [self._plain(run), self._texts[token]]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._plain(run)])

    def _plain(self, run: list[int]) -> str:
        return defused(self.decode(run), self._special) if run else ""

    def _up_to_stop(self, token_ids: Sequence[int]) -> list[int]:
        ids = list(token_ids)
        return ids[: next((place for place, token in enumerate(ids) if token in self._stop), len(ids))]

    def _ends_of_a_turn(self) -> tuple[int, ...]:
        """The special token that the template writes behind an assistant's message, and the end of a whole text."""
        behind = self._render([_BEFORE, _SAYS], (), False, speaks=False).rpartition(_SAYS["content"])[2]
        written = [token for token in self._encode(behind) if token in self._texts][:1]
        eos = self.tokenizer.eos_token_id
        ends = tuple(dict.fromkeys([*written, *([] if eos is None else [eos])]))
        if not ends:
            raise ValueError("neither the chat template nor the tokenizer has a token that ends an assistant's turn")
        return ends

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

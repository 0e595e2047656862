"""TokenStream: the only writer of mask, logprob and version.

An agent loop appends what it was shown (`observe`) and what the policy sampled (`sampled`); nothing is ever decoded
and encoded again. `finish` freezes the stream into a `Sample`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rollout.types import OBSERVED, Completion, Sample


class TokenStream:
    """One growing token sequence, as the model sees it."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._loss_mask: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []

    def __len__(self) -> int:
        return len(self._token_ids)

    @property
    def token_ids(self) -> list[int]:
        """The prompt of the next generation. A copy: only this class writes the stream."""
        return list(self._token_ids)

    def observe(self, token_ids: Sequence[int]) -> None:
        """Append tokens that no policy sampled: prompt, tool result, template glue."""
        self._token_ids += token_ids
        self._loss_mask += [0] * len(token_ids)
        self._logprobs += [0.0] * len(token_ids)
        self._versions += [OBSERVED] * len(token_ids)

    def sampled(self, completion: Completion) -> None:
        """Append what the policy sampled, exactly as sampled."""
        self._token_ids += completion.token_ids
        self._loss_mask += [1] * len(completion.token_ids)
        self._logprobs += completion.logprobs
        self._versions += completion.versions

    def finish(self) -> Sample:
        return Sample(
            token_ids=tuple(self._token_ids),
            loss_mask=tuple(self._loss_mask),
            logprobs=tuple(self._logprobs),
            versions=tuple(self._versions),
        )

"""TokenStream: the only writer of mask, logprob and version.

An agent loop appends what it was shown (`observe`) and what the policy sampled (`sampled`); nothing is ever decoded
and encoded again. `finish` freezes the stream into a `Sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout.types import OBSERVED, SAMPLE_DTYPES, Completion, Sample

FIRST_TOKENS = 1024
"""The length that the arrays of a stream begin with."""


class TokenStream:
    """One growing token sequence, as the model sees it.

    Its arrays double when they are full, so the cost of a whole stream is linear in its length.
    """

    def __init__(self) -> None:
        self._length = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._grow(FIRST_TOKENS)

    def __len__(self) -> int:
        return self._length

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """The prompt of the next generation: a read-only view, which stays as it is when the stream grows."""
        view = self._arrays["token_ids"][: self._length]
        view.flags.writeable = False
        return view

    def observe(self, token_ids: Sequence[int]) -> None:
        """Append tokens that no policy sampled: prompt, tool result, template glue."""
        where = self._room_for(len(token_ids))
        self._arrays["token_ids"][where] = token_ids

    def sampled(self, completion: Completion) -> None:
        """Append what the policy sampled, exactly as sampled."""
        where = self._room_for(len(completion.token_ids))
        self._arrays["token_ids"][where] = completion.token_ids
        self._arrays["loss_mask"][where] = 1
        self._arrays["logprobs"][where] = completion.logprobs
        self._arrays["versions"][where] = completion.versions

    def finish(self) -> Sample:
        return Sample(**{name: array[: self._length].copy() for name, array in self._arrays.items()})

    def _room_for(self, count: int) -> slice:
        """Lengthen the stream by `count` tokens, which count as observed, and return their place."""
        start, end = self._length, self._length + count
        if end > len(self._arrays["token_ids"]):
            self._grow(max(end, 2 * len(self._arrays["token_ids"])))
        self._length = end
        return slice(start, end)

    def _grow(self, size: int) -> None:
        """Lengthen the arrays. What is new in them counts as observed."""
        for name, dtype in SAMPLE_DTYPES.items():
            array = np.zeros(size, dtype)
            if self._length:
                array[: self._length] = self._arrays[name][: self._length]
            self._arrays[name] = array
        self._arrays["versions"][self._length :] = OBSERVED

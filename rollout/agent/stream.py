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

FIRST_TOKENS = 256
"""The length that the arrays of a stream begin with."""


class TokenStream:
    """One growing token sequence, as the model sees it.

    Its arrays double when they are full, so the cost of a whole stream is linear in its length.
    """

    def __init__(self) -> None:
        self._length = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.empty(FIRST_TOKENS, dtype) for name, dtype in SAMPLE_DTYPES.items()
        }

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
        self._append(len(token_ids), token_ids=token_ids, loss_mask=0, logprobs=0.0, versions=OBSERVED)

    def sampled(self, completion: Completion) -> None:
        """Append what the policy sampled, exactly as sampled."""
        self._append(
            len(completion.token_ids),
            token_ids=completion.token_ids,
            loss_mask=1,
            logprobs=completion.logprobs,
            versions=completion.versions,
        )

    def finish(self) -> Sample:
        return Sample(**{name: array[: self._length].copy() for name, array in self._arrays.items()})

    def _append(self, count: int, **values: Any) -> None:
        start, end = self._length, self._length + count
        for name, array in self._arrays.items():
            if end > len(array):
                array = np.empty(max(end, 2 * len(array)), array.dtype)
                array[:start] = self._arrays[name][:start]
                self._arrays[name] = array
            array[start:end] = values[name]
        self._length = end

"""Samples from plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout.types import SAMPLE_DTYPES, Sample


def sample_of(
    *, token_ids: Sequence[int], loss_mask: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]
) -> Sample:
    given = {"token_ids": token_ids, "loss_mask": loss_mask, "logprobs": logprobs, "versions": versions}
    return Sample(**{name: np.array(given[name], dtype) for name, dtype in SAMPLE_DTYPES.items()})

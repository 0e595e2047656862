"""The correction in example.py, loaded as a run loads it: `./launch.sh test` with the path of this file."""

from pathlib import Path

import torch

from rewards.extension import load
from rl.batch.tensors import Predictions
from rl.corrections.registry import CORRECTIONS

NAME = f"{Path(__file__).with_name('example.py')}:example"
example = load(CORRECTIONS, NAME)
SETTINGS = example.Settings(name=NAME, limit=0.5)


def batch_of(rows: list[int]) -> Predictions:
    """A micro-batch whose tokens belong to these rows."""
    count = len(rows)
    return Predictions(
        rows=torch.tensor(rows, dtype=torch.int64),
        advantages=torch.ones(count),
        weights=torch.ones(count),
        behaviour_logprobs=torch.zeros(count),
        versions=torch.zeros(count, dtype=torch.int32),
    )


def test_a_whole_sequence_is_kept_or_left_out() -> None:
    """The mean |difference| is 0.4 in row 0, 0.75 in row 1 and 0.5, just the limit, in row 2."""
    difference = torch.tensor([0.8, 0.0, -1.0, 0.5, -0.5])
    found = example(difference, batch_of([0, 0, 1, 1, 2]), SETTINGS)
    assert found.keep.tolist() == [True, True, False, False, True]
    assert found.weight.tolist() == [1.0] * 5


def test_a_micro_batch_may_be_empty() -> None:
    found = example(torch.zeros(0), batch_of([]), SETTINGS)
    assert found.keep.shape == found.weight.shape == (0,) and found.keep.dtype == torch.bool

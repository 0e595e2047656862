"""The loss in example.py, loaded as a run loads it: `./launch.sh test` with the path of this file."""

from pathlib import Path

import torch

from rewards.extension import load
from rl.batch.tensors import Predictions
from rl.losses.registry import LOSSES

NAME = f"{Path(__file__).with_name('example.py')}:example"
example = load(LOSSES, NAME)
SETTINGS = example.Settings(name=NAME, limit=2.0)


def batch_of(advantages: list[float], behaviour: list[float]) -> Predictions:
    """A micro-batch of one row."""
    count = len(advantages)
    return Predictions(
        rows=torch.zeros(count, dtype=torch.int64),
        advantages=torch.tensor(advantages),
        weights=torch.ones(count),
        behaviour_logprobs=torch.tensor(behaviour),
        versions=torch.zeros(count, dtype=torch.int32),
    )


def test_loss_and_gradient_by_hand() -> None:
    """Ratios of 1, 0.5 and 4, of which 2 are left."""
    batch = batch_of([3.0, 1.0, -1.0], [-1.0, -1.0, -2.0])
    logprobs = (batch.behaviour_logprobs + torch.tensor([1.0, 0.5, 4.0]).log()).requires_grad_()
    found = example(logprobs, torch.zeros(3), batch, SETTINGS)
    found.loss.sum().backward()
    expected = torch.tensor([-3.0, -0.5, 2.0])
    torch.testing.assert_close(logprobs.grad, expected)
    torch.testing.assert_close(found.loss.detach(), expected * logprobs.detach())
    assert found.statistics["truncated"].tolist() == [False, False, True]


def test_a_micro_batch_may_be_empty() -> None:
    found = example(torch.zeros(0, requires_grad=True), torch.zeros(0), batch_of([], []), SETTINGS)
    assert found.loss.shape == (0,) and found.statistics.keys() == {"truncated"}

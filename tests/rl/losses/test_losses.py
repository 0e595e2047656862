"""The losses against numbers worked by hand, and their independence of packing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.batch.micro_batch import PackedBatch, SftRow, TrainRow, denominator, filler
from rl.batch.packing import pack
from rl.batch.tensors import BatchTensors, to_tensors
from rl.losses.clipped import policy_loss
from rl.losses.sft import sft_loss
from rollout.types import OBSERVED, Sample

NAN = float("nan")


def tensors(mask: list[float], advantages: list[float], behaviour: list[float], versions: list[int]) -> BatchTensors:
    n = len(mask)
    zeros = torch.zeros(n, dtype=torch.int64)
    return BatchTensors(
        input_ids=zeros,
        position_ids=torch.arange(n),
        cu_seqlens=torch.tensor([0, n], dtype=torch.int32),
        labels=zeros,
        loss_mask=torch.tensor(mask),
        advantages=torch.tensor(advantages),
        behaviour_logprobs=torch.tensor(behaviour),
        versions=torch.tensor(versions, dtype=torch.int32),
    )


def test_policy_loss_by_hand() -> None:
    """Ratios 1, 1.5, 1.5, 0.5, 0.5 with limits 0.8 and 1.3; the last position is masked and full of nonsense."""
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    batch = tensors(
        mask=[1, 1, 1, 1, 1, 0],
        advantages=[2.0, 1.0, -1.0, 1.0, -1.0, 100.0],
        behaviour=[-1.0, -2.0, -2.0, -1.0, -1.0, NAN],
        versions=[7, 6, 6, 7, 7, -1],
    )
    logprobs = torch.cat([batch.behaviour_logprobs[:5] + ratios.log(), torch.tensor([NAN])]).requires_grad_()
    entropy = torch.tensor([0.5, 0.25, 0.0, 1.0, 1.0, NAN])
    loss, sums = policy_loss(logprobs, entropy, batch, 10, clip_low=0.2, clip_high=0.3, version=7)
    # min terms: 2.0 | 1.3 (clipped) | -1.5 | 0.5 | -0.8 (clipped)
    assert loss.item() == pytest.approx(-(2.0 + 1.3 - 1.5 + 0.5 - 0.8) / 10)
    ln15, ln05 = math.log(1.5), math.log(0.5)
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {
            "tokens": 5,
            "clipped": 2,
            "ratio": 5.0,
            "kl": 2 * (0.5 - ln15) + 2 * (-0.5 - ln05),
            "entropy": 2.75,
            "fresh_tokens": 3,
            "mismatch": 2 * abs(ln05),
        }
    )
    loss.backward()
    # d(-r A / 10) / d logprob = -r A / 10 where the unclipped term is taken, else 0
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.2, 0.0, 0.15, -0.05, 0.0, 0.0]))
    assert not any(value.requires_grad for value in sums.values())


def test_on_policy_gradient_is_plain_policy_gradient() -> None:
    """At ratio 1 the loss is REINFORCE: gradient -A / denominator."""
    batch = tensors([1, 1], [3.0, -1.0], [-0.5, -4.0], [0, 0])
    logprobs = batch.behaviour_logprobs.clone().requires_grad_()
    loss, sums = policy_loss(logprobs, torch.zeros(2), batch, 4, clip_low=0.2, clip_high=0.2, version=0)
    loss.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.75, 0.25]
    assert sums["mismatch"].item() == sums["kl"].item() == sums["clipped"].item() == 0.0


@pytest.mark.parametrize("gap", [500.0, -500.0, math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_a_broken_ratio_stays_finite(gap: float, advantage: float) -> None:
    batch = tensors([1.0], [advantage], [-gap], [0])
    logprobs = torch.zeros(1, requires_grad=True)
    loss, sums = policy_loss(logprobs, torch.zeros(1), batch, 1, clip_low=0.2, clip_high=0.28, version=1)
    loss.backward()
    assert loss.isfinite() and logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert all(value.isfinite() for value in sums.values())


def test_a_nan_logprob_of_a_trained_token_is_not_hidden() -> None:
    batch = tensors([1.0], [1.0], [-1.0], [0])
    loss, _ = policy_loss(torch.tensor([NAN]), torch.zeros(1), batch, 1, clip_low=0.2, clip_high=0.2, version=0)
    assert loss.isnan()


def test_sft_loss_by_hand() -> None:
    batch = tensors([1, 0, 1], [0.0] * 3, [0.0] * 3, [-1] * 3)
    logprobs = torch.tensor([-1.0, NAN, -3.0], requires_grad=True)
    loss, sums = sft_loss(logprobs, torch.tensor([0.5, NAN, 1.0]), batch, 8)
    loss.backward()
    assert loss.item() == 0.5
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.125, 0.0, -0.125]
    assert {name: value.item() for name, value in sums.items()} == {"tokens": 2.0, "entropy": 1.5}


def test_nothing_to_train_is_an_error() -> None:
    batch = tensors([0.0], [0.0], [0.0], [-1])
    with pytest.raises(ValueError, match="denominator=0: the step has no token to train, skip it"):
        sft_loss(torch.zeros(1), torch.zeros(1), batch, 0)
    with pytest.raises(ValueError, match="denominator=0"):
        policy_loss(torch.zeros(1), torch.zeros(1), batch, 0, clip_low=0.2, clip_high=0.2, version=0)


def test_a_filler_adds_nothing_but_keeps_the_graph() -> None:
    batch = to_tensors(filler(), "cpu")
    logprobs = torch.tensor([-3.0, -4.0], requires_grad=True)
    loss, sums = policy_loss(logprobs, torch.ones(2), batch, 5, clip_low=0.2, clip_high=0.2, version=0)
    loss.backward()
    assert loss.item() == 0.0 and logprobs.grad is not None and not logprobs.grad.any()
    assert all(value.item() == 0.0 for value in sums.values())


def test_to_tensors_keeps_names_types_and_values() -> None:
    [[packed]] = pack([SftRow(token_ids=(4, 5, 6), loss_mask=(0, 1, 1))], ranks=1, token_budget=8)
    batch = to_tensors(packed, "cpu")
    for name in PackedBatch.__slots__:
        array, tensor = getattr(packed, name), getattr(batch, name)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def fake_policy(batch: BatchTensors) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies that depend only on the label and its position in the segment, as a model's would."""
    seed = batch.labels * 7919 + batch.position_ids * 104729
    return -(seed % 97).float() / 32, (seed % 13).float() / 8


@given(st.lists(st.tuples(st.integers(2, 16), st.floats(-2, 2)), min_size=1, max_size=20), st.data())
def test_the_sum_over_micro_batches_does_not_depend_on_packing(
    shapes: list[tuple[int, float]], data: st.DataObject
) -> None:
    rows = []
    for i, (length, advantage) in enumerate(shapes):
        mask = (0, *((i + t) % 2 for t in range(length - 1)))
        sample = Sample(
            token_ids=tuple(range(100 * i, 100 * i + length)),
            loss_mask=mask,
            logprobs=tuple(-0.1 * t * m for t, m in enumerate(mask)),
            versions=tuple(i % 3 if m else OBSERVED for m in mask),
        )
        rows.append(TrainRow(sample=sample, advantage=advantage))

    def totals(ranks: int, budget: int, order: list[TrainRow]) -> dict[str, float]:
        packed = pack(order, ranks, budget)
        count = max(denominator(packed), 1)
        sums: dict[str, float] = {}
        for batch in (to_tensors(b, "cpu") for rank in packed for b in rank):
            loss, stats = policy_loss(*fake_policy(batch), batch, count, clip_low=0.2, clip_high=0.28, version=2)
            for name, value in {"loss": loss, **stats}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        return sums

    reference = totals(1, 16 * len(rows), rows)
    other = totals(data.draw(st.integers(1, 4)), data.draw(st.integers(16, 64)), data.draw(st.permutations(rows)))
    assert other == pytest.approx(reference, rel=1e-5, abs=1e-5)

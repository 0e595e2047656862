"""The losses against numbers worked by hand, and their independence of packing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.batch.micro_batch import MicroBatch, SftRow, TrainRow, filler
from rl.batch.packing import pack
from rl.batch.tensors import ModelInputs, Objective, Predictions, TokenLoss, model_inputs, predictions_of
from rl.corrections.config import CorrectionSettings
from rl.losses.clipped import clipped
from rl.losses.common import LOG_RATIO_LIMIT, log_ratio
from rl.losses.config import SUPERVISED, ClippedSettings, LossSettings, ObjectiveSpec
from rl.losses.objective import check_objective, make_objective
from rl.losses.sft import cross_entropy
from rollout.types import OBSERVED
from tests.samples import sample_of

NAN = float("nan")
SETTINGS = ClippedSettings(name="clipped", clip_low=0.2, clip_high=0.3)
SPEC = ObjectiveSpec(loss=SETTINGS, correction=CorrectionSettings(name="none"))


def predictions(advantages: list[float], behaviour: list[float], versions: list[int]) -> Predictions:
    return Predictions(
        rows=torch.zeros(len(versions), dtype=torch.int64),
        weights=torch.ones(len(versions)),
        advantages=torch.tensor(advantages),
        behaviour_logprobs=torch.tensor(behaviour),
        versions=torch.tensor(versions, dtype=torch.int32),
    )


def test_the_clipped_loss_by_hand() -> None:
    """Ratios 1, 1.5, 1.5, 0.5, 0.5 with limits 0.8 and 1.3."""
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    batch = predictions([2.0, 1.0, -1.0, 1.0, -1.0], [-1.0, -2.0, -2.0, -1.0, -1.0], [0] * 5)
    logprobs = (batch.behaviour_logprobs + ratios.log()).requires_grad_()
    found = clipped(logprobs, torch.zeros(5), batch, SETTINGS)
    torch.testing.assert_close(found.loss.detach(), torch.tensor([-2.0, -1.3, 1.5, -0.5, 0.8]))
    assert found.statistics["clipped"].tolist() == [False, True, False, False, True]
    torch.testing.assert_close(found.statistics["ratio"].detach(), ratios)
    torch.testing.assert_close(found.statistics["kl"].detach(), ratios - 1 - ratios.log())
    found.loss.sum().backward()
    # d(-r A) / d logprob = -r A where the unclipped term is taken, else 0.
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.0, 0.0, 1.5, -0.5, 0.0]))


def test_on_policy_gradient_is_plain_policy_gradient() -> None:
    """At ratio 1 the loss is REINFORCE: gradient -A."""
    batch = predictions([3.0, -1.0], [-0.5, -4.0], [0, 0])
    logprobs = batch.behaviour_logprobs.clone().requires_grad_()
    found = clipped(logprobs, torch.zeros(2), batch, SETTINGS)
    found.loss.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-3.0, 1.0]
    assert not found.statistics["kl"].any() and not found.statistics["clipped"].any()


def test_the_log_ratio_is_cut_on_both_sides() -> None:
    batch = predictions([1.0] * 3, [-500.0, 0.0, -1.0], [0] * 3)
    logprobs = torch.tensor([0.0, -500.0, -0.5])
    assert log_ratio(logprobs, batch).tolist() == [LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT, 0.5]


@pytest.mark.parametrize("gap", [500.0, -500.0, math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_a_broken_ratio_stays_finite(gap: float, advantage: float) -> None:
    batch = predictions([advantage], [-gap], [0])
    logprobs = torch.zeros(1, requires_grad=True)
    found = clipped(logprobs, torch.zeros(1), batch, SETTINGS)
    found.loss.sum().backward()
    assert found.loss.isfinite().all() and logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert all(values.isfinite().all() for values in found.statistics.values())


def test_a_nan_logprob_of_a_trained_token_is_not_hidden() -> None:
    batch = predictions([1.0], [-1.0], [0])
    assert make_objective(SPEC, 0)(torch.tensor([NAN]), torch.zeros(1), batch).loss.isnan().all()


def test_cross_entropy_by_hand() -> None:
    batch = predictions([0.0] * 2, [0.0] * 2, [-1] * 2)
    found = cross_entropy(torch.tensor([-1.0, -3.0]), torch.zeros(2), batch, LossSettings(name="sft"))
    assert found.loss.tolist() == [1.0, 3.0] and found.statistics == {}


def test_the_objective_adds_what_every_loss_reports() -> None:
    """`mismatch` is the absolute difference from the engine's logprob, for tokens of version 7 only."""
    batch = predictions([1.0] * 3, [-1.0, -2.0, -3.0], [7, 6, 7])
    logprobs, entropy = torch.tensor([-1.5, -9.0, -2.0]), torch.tensor([0.5, 0.25, 1.0])
    found = make_objective(SPEC, version=7)(logprobs, entropy, batch)
    values = {name: values.tolist() for name, values in found.statistics.items()}
    assert values.keys() == {"clipped", "ratio", "kl", "tokens", "entropy", "rejected", "fresh_tokens", "mismatch"}
    assert values["tokens"] == [1, 1, 1] and values["entropy"] == [0.5, 0.25, 1.0]
    assert values["fresh_tokens"] == [True, False, True] and values["mismatch"] == [0.5, 0.0, 1.0]
    assert not any(values["rejected"])


def test_a_correction_weighs_and_rejects_tokens() -> None:
    """`halve_and_reject` halves the loss of every token, and rejects tokens whose logprob rose."""
    batch = predictions([1.0, 1.0], [-1.0, -1.0], [0, 0])
    spec = ObjectiveSpec(loss=SETTINGS, correction=CorrectionSettings(name=f"{__file__}:halve_and_reject"))
    found = make_objective(spec, version=0)(torch.tensor([-1.0, -0.5]), torch.zeros(2), batch)
    assert found.loss.tolist() == [-0.5, 0.0]
    assert found.statistics["rejected"].tolist() == [False, True]


def halve_and_reject(difference: Tensor, batch: Predictions, settings: CorrectionSettings) -> object:
    from rl.corrections.common import Correction

    return Correction(torch.full_like(difference, 0.5), difference <= 0)


def named(name: str):
    def loss(logprobs: Tensor, entropy: Tensor, batch: Predictions, settings: LossSettings) -> TokenLoss:
        return TokenLoss(-logprobs, {name: logprobs})

    return loss


own_loss, own_tokens, own_surprise = named("loss"), named("tokens"), named("surprise")


def only_with_predictions(logprobs: Tensor, entropy: Tensor, batch: Predictions, settings: LossSettings) -> TokenLoss:
    return TokenLoss(-logprobs, {"surprise": -logprobs} if len(logprobs) else {})


def objective_of(function: str) -> Objective:
    settings = LossSettings(name=f"{__file__}:{function}")
    return make_objective(ObjectiveSpec(loss=settings, correction=CorrectionSettings(name="none")), 0)


def test_a_loss_is_tried_before_training_as_a_rank_without_rows_would_use_it() -> None:
    check_objective(make_objective(SPEC, 0))
    check_objective(make_objective(SUPERVISED, 0))
    check_objective(objective_of("own_surprise"))
    for function, message in (("own_loss", "statistic loss: that name"), ("own_tokens", "statistic tokens: that")):
        with pytest.raises(ValueError, match=message):
            check_objective(objective_of(function))
    with pytest.raises(ValueError, match=r"same statistics without any prediction: \['surprise'\]"):
        check_objective(objective_of("only_with_predictions"))


def test_the_supervised_objective_is_cross_entropy() -> None:
    batch = predictions([0.0] * 2, [0.0] * 2, [-1] * 2)
    found = make_objective(SUPERVISED, version=0)(torch.tensor([-1.0, -3.0]), torch.ones(2), batch)
    assert found.loss.tolist() == [1.0, 3.0]
    assert found.statistics["tokens"].tolist() == [1, 1] and not found.statistics["fresh_tokens"].any()


def test_a_filler_has_no_prediction_but_the_same_statistics_and_keeps_the_graph() -> None:
    batch = predictions_of(filler(), "cpu")
    logprobs = torch.zeros(0, requires_grad=True)
    found = make_objective(SPEC, 0)(logprobs, torch.zeros(0), batch)
    (found.loss * batch.weights).sum().backward()
    assert logprobs.grad is not None and logprobs.grad.shape == (0,)
    full = make_objective(SPEC, 0)(torch.zeros(1), torch.zeros(1), predictions([1.0], [0.0], [0]))
    assert found.statistics.keys() == full.statistics.keys()
    assert all(float(values.float().sum()) == 0.0 for values in found.statistics.values())


def test_what_goes_to_a_device_keeps_names_types_and_values() -> None:
    [[packed]] = pack([SftRow(token_ids=(4, 5, 6), loss_mask=(0, 1, 1))], ranks=1, token_budget=8)
    assert predictions_of(packed, "cpu").reference_logprobs is None
    packed = replace(packed, reference_logprobs=np.array([-1.0, -2.0], np.float32))
    inputs, seen = model_inputs(packed, "cpu"), predictions_of(packed, "cpu")
    assert inputs.segments == packed.segments
    assert set(ModelInputs.__slots__) | set(Predictions.__slots__) == set(MicroBatch.__slots__)
    for name in (set(ModelInputs.__slots__) | set(Predictions.__slots__)) - {"segments"}:
        tensor = getattr(inputs, name) if name in ModelInputs.__slots__ else getattr(seen, name)
        array = getattr(packed, name)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def fake_policy(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies that depend only on the label and its place in the row, as a model's would."""
    seed = torch.from_numpy(batch.labels * 7919 + batch.position_ids[batch.sources] * 104729)
    return -(seed % 97).float() / 32, (seed % 13).float() / 8


def added_up(found: TokenLoss, batch: Predictions) -> dict[str, float]:
    """Add up as the learner does: the weighted loss, and every statistic."""
    sums = {name: float(values.float().sum()) for name, values in found.statistics.items()}
    return {**sums, "loss": float((found.loss * batch.weights).sum())}


@given(st.lists(st.tuples(st.integers(2, 16), st.floats(-2, 2)), min_size=1, max_size=20), st.data())
def test_the_sum_over_micro_batches_does_not_depend_on_packing(
    shapes: list[tuple[int, float]], data: st.DataObject
) -> None:
    rows = []
    for i, (length, advantage) in enumerate(shapes):
        mask = (0, *((i + t) % 2 for t in range(length - 1)))
        sample = sample_of(
            token_ids=tuple(range(100 * i, 100 * i + length)),
            loss_mask=mask,
            logprobs=tuple(-0.1 * t * m for t, m in enumerate(mask)),
            versions=tuple(i % 3 if m else OBSERVED for m in mask),
        )
        advantages = advantage + np.arange(sample.trained_tokens) / 4
        rows.append(TrainRow(sample=sample, advantages=advantages, weight=1 / (i + 1)))
    objective = make_objective(SPEC, version=2)

    def totals(ranks: int, budget: int, order: list[TrainRow]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in (b for rank in pack(order, ranks, budget) for b in rank):
            seen = predictions_of(batch, "cpu")
            for name, value in added_up(objective(*fake_policy(batch), seen), seen).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    reference = totals(1, 16 * len(rows), rows)
    other = totals(data.draw(st.integers(1, 4)), data.draw(st.integers(16, 64)), data.draw(st.permutations(rows)))
    assert other == pytest.approx(reference, rel=1e-5, abs=1e-5)

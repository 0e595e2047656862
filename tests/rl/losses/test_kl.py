"""The KL estimators: values by hand, where their gradients go, and the penalty in the advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.batch.micro_batch import MicroBatch, TrainRow, filler, lay_out
from rl.batch.tensors import Predictions, predictions_of
from rl.corrections.config import CorrectionSettings
from rl.losses.common import LOG_RATIO_LIMIT
from rl.losses.config import ClippedSettings, Estimator, KlConfig, ObjectiveSpec
from rl.losses.kl import divergence, kl_loss
from rl.losses.objective import check_objective, make_objective
from rl.losses.prepare import penalised, with_reference
from tests.samples import sample_of

ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3", "unbiased")
POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
BEHAVIOUR = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)


def kl_of(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def predictions(behaviour: Tensor, reference: Tensor) -> Predictions:
    zeros = torch.zeros(len(behaviour))
    return Predictions(
        rows=zeros.long(),
        advantages=zeros,
        weights=zeros,
        behaviour_logprobs=behaviour,
        versions=zeros.int(),
        reference_logprobs=reference,
    )


def expected(estimator: Estimator, sampled_from: Tensor) -> tuple[float, Tensor]:
    """The expectation of a term of the loss over the tokens of a distribution, and its gradient in the logits."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    term = kl_loss(logprobs, predictions(sampled_from.log(), REFERENCE.log()), estimator)
    total = (sampled_from * term).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return float(total.detach()), gradient


def gradient_of_kl(forward: bool) -> Tensor:
    logits = POLICY.log().clone().requires_grad_()
    policy = logits.softmax(-1)
    divergence_ = kl_of(REFERENCE, policy) if forward else kl_of(policy, REFERENCE)
    return torch.autograd.grad(divergence_, logits)[0]


def test_values_by_hand() -> None:
    """Policy 0.5 and reference 0.25: x = log 0.5."""
    logprobs, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    found = {name: float(divergence(logprobs, reference, name)) for name in ESTIMATORS}
    assert found == pytest.approx({"k1": 0.693147, "k2": 0.240227, "k3": 0.193147, "unbiased": 0.193147}, abs=1e-6)
    term = float(kl_loss(logprobs, predictions(torch.tensor([0.4]).log(), reference), "unbiased"))
    assert term == pytest.approx(0.5 / 0.4 * 0.193147, abs=1e-6)


def test_the_expectations_of_k1_k3_and_the_unbiased_one_are_the_divergence() -> None:
    kl = float(kl_of(POLICY, REFERENCE))
    for name in ("k1", "k3", "unbiased"):
        assert expected(name, POLICY)[0] == pytest.approx(kl)
    assert expected("unbiased", BEHAVIOUR)[0] == pytest.approx(kl), "whichever policy sampled the tokens"
    assert expected("k2", POLICY)[0] != pytest.approx(kl, rel=0.01)


def test_gradients_go_where_the_docstring_says() -> None:
    reverse, forward = gradient_of_kl(forward=False), gradient_of_kl(forward=True)
    assert expected("k1", POLICY)[1].abs().max() < 1e-12
    torch.testing.assert_close(expected("k2", POLICY)[1], reverse)
    torch.testing.assert_close(expected("k3", POLICY)[1], forward)
    torch.testing.assert_close(expected("unbiased", POLICY)[1], reverse)
    torch.testing.assert_close(expected("unbiased", BEHAVIOUR)[1], reverse)
    assert (expected("k2", BEHAVIOUR)[1] - reverse).abs().max() > 0.01, "k2 needs tokens of this very policy"


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_token_that_one_of_them_all_but_excludes_stays_finite(gap: float, estimator: Estimator) -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    term = kl_loss(logprobs, predictions(torch.tensor([-1.0]), torch.tensor([-1.0 + gap])), estimator)
    term.sum().backward()
    assert term.isfinite().all() and logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert divergence(torch.tensor([0.0]), torch.tensor([gap]), "k1").abs() == LOG_RATIO_LIMIT


def spec(kl: KlConfig) -> ObjectiveSpec:
    return ObjectiveSpec(loss=ClippedSettings(name="clipped"), correction=CorrectionSettings(name="none"), kl=kl)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_objective_adds_the_term_once_and_reports_the_divergence(estimator: Estimator) -> None:
    batch = predictions(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    logprobs = torch.tensor([-1.2, -1.9])
    kl = KlConfig(coef=0.3, estimator=estimator, place="loss")
    plain = make_objective(replace(spec(kl), kl=None), 0)(logprobs, torch.zeros(2), batch)
    found = make_objective(spec(kl), 0)(logprobs, torch.zeros(2), batch)
    torch.testing.assert_close(found.loss - plain.loss, 0.3 * kl_loss(logprobs, batch, estimator))
    torch.testing.assert_close(found.statistics["kl_reference"], divergence(logprobs, torch.tensor([-1.5, -1.0]), "k3"))
    check_objective(make_objective(spec(kl), 0))


def batch_of(*lengths: int) -> MicroBatch:
    """One row for each length, whose tokens but the first are trained; behaviour logprobs -1, -2, …; advantages 1."""
    rows = []
    for length in lengths:
        sample = sample_of(
            token_ids=range(length),
            loss_mask=[0] + [1] * (length - 1),
            logprobs=[0.0] + [-1.0 - i for i in range(length - 1)],
            versions=[-1] + [0] * (length - 1),
        )
        rows.append(TrainRow(sample=sample, advantages=np.ones(length - 1), weight=1.0))
    return lay_out(rows)


def sums_of(values: Mapping[str, float]) -> Mapping[str, float]:
    return values


def test_a_penalty_by_hand() -> None:
    """k1 of 0.5, 1, 0 in a row of three, and of 2 in a row of one: to go 1.5, 1, 0 and 2, whose mean is 1.125."""
    batch = with_reference(batch_of(4, 2), np.array([-1.5, -3.0, -3.0, -3.0], np.float32))
    kl = KlConfig(coef=0.1, estimator="k1", place="reward")
    (found,) = penalised([batch], kl, sums_of)
    assert found.advantages.tolist() == pytest.approx([1 - 0.0375, 1 + 0.0125, 1 + 0.1125, 1 - 0.0875])
    (found,) = penalised([batch], kl.model_copy(update={"credit": "token"}), sums_of)
    assert found.advantages.tolist() == pytest.approx([1 + 0.0375, 1 - 0.0125, 1 + 0.0875, 1 - 0.1125])
    assert batch.advantages.tolist() == [1.0] * 4, "the batch itself stays as it was"


def test_the_mean_is_over_all_ranks_and_packings_and_a_rank_may_have_nothing() -> None:
    references = [np.array([-1.5, -3.0, -3.0], np.float32), np.array([-3.0], np.float32)]
    one, other = (with_reference(b, r) for b, r in zip((batch_of(4), batch_of(2)), references, strict=True))
    empty = with_reference(filler(), np.zeros(0, np.float32))
    kl = KlConfig(coef=0.1, estimator="k1", place="reward")
    seen: list[Mapping[str, float]] = []

    def sums(values: Mapping[str, float]) -> Mapping[str, float]:
        seen.append(values)
        return {"penalty": 4.5, "tokens": 4.0}

    found = [penalised(batches, kl, sums) for batches in ([one, empty], [other], [empty])]
    assert seen == [
        {"penalty": 2.5, "tokens": 3.0},
        {"penalty": 2.0, "tokens": 1.0},
        {"penalty": 0.0, "tokens": 0.0},
    ]
    whole = with_reference(batch_of(4, 2), np.concatenate(references))
    (together,) = penalised([whole], kl, sums_of)
    assert [*found[0][0].advantages, *found[1][0].advantages] == pytest.approx(together.advantages.tolist())
    assert predictions_of(found[0][1], "cpu").reference_logprobs is not None

"""The cheaper sampler against vLLM's own: the same tokens and logprobs, whoever comes and goes."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

VOCABULARY = 300


@pytest.fixture(scope="module")
def sampling():
    import vllm._custom_ops  # noqa: F401 (loads the compiled kernels)

    from rollout.cpu import sampling

    return sampling


def generators(*seeds: int) -> dict[int, Generator]:
    return {row: Generator().manual_seed(seed) for row, seed in enumerate(seeds)}


def sampler(mode: str = "processed_logprobs"):
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    return TopKTopPSampler(mode)


def drawn(step: int, rows: int) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=Generator().manual_seed(step))


def both(sampling, own: dict[int, Generator], theirs: dict[int, Generator], logits: Tensor, **limits: Tensor):
    limits = {"k": None, "p": None} | limits
    found = sampling.sample(sampler(), logits.clone(), own, **limits)
    wanted = sampling._vllm_sample(sampler(), logits.clone(), theirs, **limits)
    for ours, vllms in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, vllms, rtol=0, atol=0)
    return found[0]


def test_it_is_what_vllm_runs(sampling) -> None:
    from vllm.v1.sample.sampler import Sampler

    assert type(sampler()).forward_cpu is sampling.sample
    assert Sampler.gather_logprobs is sampling.gather_logprobs


def test_the_tokens_of_each_request_are_vllms_over_many_steps(sampling) -> None:
    own, theirs = generators(*range(5)), generators(*range(5))
    sampled = [both(sampling, own, theirs, drawn(step, 5)) for step in range(3 * sampling.DRAWN)]
    assert len(torch.stack(sampled).unique()) > 50


def test_a_request_keeps_its_numbers_when_it_changes_its_row(sampling) -> None:
    own, theirs = generators(1, 2, 3), generators(1, 2, 3)
    for step in range(5):
        both(sampling, own, theirs, drawn(step, 3))
    own, theirs = ({0: kept[2], 1: kept[0]} for kept in (own, theirs))
    for step in range(5):
        both(sampling, own, theirs, drawn(step, 2))


def test_top_k_and_top_p(sampling) -> None:
    limits = {"k": torch.tensor([5, VOCABULARY]), "p": torch.tensor([1.0, 0.7])}
    both(sampling, generators(1, 2), generators(1, 2), drawn(0, 2), **limits)


def test_requests_without_a_seed_change_nothing_for_those_beside_them(sampling) -> None:
    own, theirs = generators(1, 2, 3), generators(1, 2, 3)
    for step in range(6):
        some = slice(None) if step % 2 else slice(0, 2)
        found, wanted = (dict(list(kept.items())[some]) for kept in (own, theirs))
        torch.manual_seed(step)
        ours = sampling.sample(sampler(), drawn(step, 3), found, None, None)[0]
        torch.manual_seed(step)
        assert ours.equal(sampling._vllm_sample(sampler(), drawn(step, 3), wanted, None, None)[0])


def test_numbers_of_a_request_that_ended_are_forgotten(sampling) -> None:
    held = generators(1, 2, 3)
    before = len(sampling._left)
    sampling.sample(sampler(), drawn(0, 3), held, None, None)
    assert len(sampling._left) == before + 3
    held.clear()
    assert len(sampling._left) == before


@pytest.mark.parametrize("count", [0, 2])
def test_logprobs_are_vllms(sampling, count: int) -> None:
    logprobs, tokens = drawn(0, 4).log_softmax(-1), torch.tensor([3, 299, 0, 7])
    found, wanted = (gather(logprobs, count, tokens) for gather in (sampling.gather_logprobs, sampling._vllm_gather))
    assert found.logprob_token_ids.equal(wanted.logprob_token_ids) and found.logprobs.equal(wanted.logprobs)
    assert found.selected_token_ranks.shape == wanted.selected_token_ranks.shape

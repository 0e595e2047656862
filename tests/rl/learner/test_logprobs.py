"""Chunked logprobs against plain log_softmax, also with a weight that ZeRO-3 frees between forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rl.learner import logprobs as module
from rl.learner.logprobs import ChunkedLMHead

H, V = 5, 11


def chunked_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, chunk: int):
    """With the same temperature everywhere."""
    return module.chunked_logprobs(hidden, weight, labels, torch.full(labels.shape, temperature), chunk)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax((hidden @ weight.T).float() / temperature, dim=-1)
    return logp.gather(1, labels[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def inputs(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (tokens,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("tokens", [1, 7, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_plain_log_softmax(chunk: int, tokens: int, temperature: float) -> None:
    hidden, weight, labels = inputs(tokens)
    upstream = torch.linspace(-1, 2, tokens)
    expected, expected_entropy = plain(hidden, weight, labels, temperature)
    expected_grads = torch.autograd.grad(expected, (hidden, weight), upstream)
    logprobs, entropy = chunked_logprobs(hidden, weight, labels, temperature, chunk)
    grads = torch.autograd.grad(logprobs, (hidden, weight), upstream)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(grads, expected_grads)
    assert not entropy.requires_grad


def test_a_value_by_hand() -> None:
    """Logits (0, ln 3) at temperature 1: p = (1/4, 3/4); at temperature 1/2 the odds square: (1/10, 9/10)."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    logprobs, entropy = chunked_logprobs(hidden, weight, torch.tensor([1]), 1.0, 4)
    assert logprobs.item() == pytest.approx(math.log(0.75))
    assert entropy.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert chunked_logprobs(hidden, weight, torch.tensor([1]), 0.5, 4)[0].item() == pytest.approx(math.log(0.9))


def test_every_token_has_its_own_temperature() -> None:
    hidden, weight, labels = inputs(6)
    temperatures = torch.tensor([0.5, 2.0, 1.0, 0.7, 0.5, 3.0])
    logprobs, entropy = module.chunked_logprobs(hidden, weight, labels, temperatures, 4)
    (grads,) = torch.autograd.grad(logprobs.sum(), hidden)
    for i, temperature in enumerate(temperatures.tolist()):
        expected, expected_entropy = plain(hidden[i : i + 1], weight, labels[i : i + 1], temperature)
        torch.testing.assert_close((logprobs[i : i + 1], entropy[i : i + 1]), (expected, expected_entropy))
        torch.testing.assert_close(grads[i], torch.autograd.grad(expected, hidden)[0][i])


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_gradcheck_in_float64(tokens: int) -> None:
    hidden, weight, labels = inputs(tokens, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: chunked_logprobs(h, w, labels, 0.9, 2)[0], (hidden, weight))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_bounded_logits(chunk: int) -> None:
    hidden, weight, labels = inputs(7, torch.float64)
    temperatures = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
    logits = 0.8 * ((hidden @ weight.T) / 0.8).tanh() / temperatures[:, None]
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    logprobs, entropy = module.chunked_logprobs(hidden, weight, labels, temperatures, chunk, bound=0.8)
    torch.testing.assert_close(logprobs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())
    torch.testing.assert_close(
        torch.autograd.grad(logprobs, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream), rtol=1e-11, atol=1e-12,
    )  # fmt: skip


def test_the_last_chunks_logits_are_not_computed_again_but_for_a_second_backward() -> None:
    class Logits(torch.utils._python_dispatch.TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            self.products += func is torch.ops.aten.mm.default and out.shape[1] == V
            return out

    hidden, weight, labels = inputs(9)
    with Logits() as logits:
        loss = chunked_logprobs(hidden, weight, labels, 1.0, 4)[0].sum()
        assert logits.products == 3
        first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        assert logits.products == 3 + 2
        second = torch.autograd.grad(loss, (hidden, weight))
        assert logits.products == 3 + 2 + 3
    assert all(map(torch.equal, first, second))


def test_no_tokens_still_reach_the_weight() -> None:
    """A rank without trained tokens must take part in the backward pass, or ZeRO-3's collectives would hang."""
    hidden, weight, labels = inputs(0)
    logprobs, entropy = chunked_logprobs(hidden, weight, labels, 1.0, 4)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and hidden.grad.shape == (0, H)


def test_bfloat16_inputs_give_float32_logprobs_and_bfloat16_gradients() -> None:
    hidden, weight, labels = inputs(9, torch.bfloat16)
    expected, _ = plain(hidden, weight, labels, 1.0)
    logprobs, entropy = chunked_logprobs(hidden, weight, labels, 1.0, 4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)
    expected_grads = torch.autograd.grad(expected.sum(), (hidden, weight))
    grads = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(grads, expected_grads, rtol=0.02, atol=0.02)


def test_a_bfloat16_weight_gradient_does_not_depend_on_the_chunks() -> None:
    """A sum of 512 equal terms in bfloat16, with its 8 significant bits, would stop growing after 256 of them."""
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_logprobs(hidden, weight, torch.zeros(512, dtype=torch.int64), 1.0, 1)[0].sum().backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [256.0, -256.0]


def test_extreme_logits_stay_finite() -> None:
    hidden, weight = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    logprobs, entropy = chunked_logprobs(hidden, weight, torch.tensor([1]), 1.0, 1)
    logprobs.sum().backward()
    assert logprobs.item() == -2e4 and entropy.item() == 0.0
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels = inputs(3)
    chunked_logprobs(hidden, weight.requires_grad_(False), labels, 1.0, 2)[0].sum().backward()
    assert weight.grad is None and hidden.grad is not None


def test_module_keeps_the_heads_parameter_and_name() -> None:
    model = nn.ModuleDict({"lm_head": nn.Linear(H, V, bias=False)})
    linear = model["lm_head"]
    assert isinstance(linear, nn.Linear)
    model["lm_head"] = ChunkedLMHead(linear, chunk=4)
    assert [name for name, _ in model.named_parameters()] == ["lm_head.weight"]
    assert model["lm_head"].weight is linear.weight
    with pytest.raises(ValueError, match="bias"):
        ChunkedLMHead(nn.Linear(H, V), chunk=4)


def test_backward_reads_the_weight_that_is_gathered_then() -> None:
    """ZeRO-3 frees the parameter's storage after forward and gathers a new one for backward."""
    hidden, _, labels = inputs(5)
    head = ChunkedLMHead(nn.Linear(H, V, bias=False), chunk=2)
    whole = head.weight.detach().clone()
    expected = torch.autograd.grad(plain(hidden, whole, labels, 1.0)[0].sum(), hidden)
    loss = head(hidden, labels, torch.ones(len(labels)))[0].sum()
    head.weight.data.fill_(float("nan"))  # the storage of the forward pass is somebody else's now
    head.weight.data = torch.empty(0)
    head.weight.data = whole.clone()
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), expected)


def test_a_weight_that_was_not_gathered_is_an_error_that_says_so() -> None:
    hidden, _, labels = inputs(5)
    head = ChunkedLMHead(nn.Linear(H, V, bias=False), chunk=2)
    loss = head(hidden, labels, torch.ones(len(labels)))[0].sum()
    head.weight.data = torch.empty(0)
    with pytest.raises(RuntimeError, match="ZeRO-3 has not gathered it; call the ChunkedLMHead module"):
        loss.backward()


def test_only_chunk_tokens_of_logits_exist_at_once() -> None:
    """No tensor of T x V elements is ever made, in forward or in backward."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    hidden, weight, labels = inputs(64)
    with Largest() as largest:
        chunked_logprobs(hidden, weight, labels, 1.0, 8)[0].sum().backward()
    assert largest.numel <= max(8 * V, 64 * H)


@pytest.mark.parametrize(
    ("hidden", "labels", "temperature", "chunk", "message"),
    [
        ((3, H + 1), 3, 1.0, 1, r"hidden \(3, 6\), weight \(11, 5\)"),
        ((3, H), 2, 1.0, 1, r"labels \(2,\)"),
        ((3, H), 3, 1.0, 0, "chunk=0 must be at least 1"),
    ],
)
def test_wrong_arguments(hidden: tuple[int, int], labels: int, temperature: float, chunk: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_logprobs(torch.zeros(hidden), torch.zeros(V, H), torch.zeros(labels).long(), temperature, chunk)

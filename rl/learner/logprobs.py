"""Log-probabilities of labels over the LM head, with logits for only `chunk` tokens in memory at any time.

Full logits are T x V floats (8,192 tokens x 151,552 vocabulary entries = 4.6 GiB), several times over with their
gradient. Here the forward keeps one number a token, and the log-probabilities of the last chunk. The backward begins
with that chunk, and computes those of the others again. Peak memory is O(chunk x V) plus the gradients themselves. The
logits are divided by the temperature, as in the engine before it samples, so that these logprobs and vLLM's
`processed_logprobs` are of the same distribution.

ZeRO-3: the head's weight is whole only while DeepSpeed's module hooks have gathered it, in forward and again in
backward; in between its storage is empty. Two things keep that correct, and the caller provides the second:
  * the *parameter* is saved, never a view, cast or copy of it: autograd keeps a saved leaf by reference, so backward
    reads the storage gathered then (tests/rl/learner/test_logprobs.py pins this);
  * the weight belongs to the module whose hooks gather it: call `ChunkedLMHead`, not `chunked_logprobs` with another
    module's weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def chunked_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: Tensor, chunk: int, bound: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return log softmax(hidden @ weight.T / temperatures) at the labels, and that distribution's entropy.

    With a bound, a logit is bound * tanh(logit / bound) before it is divided, as in Gemma 2.

    Args:
        hidden: [T, H] floating point; T may be 0 and need not be a multiple of `chunk`. Positions are independent, so
            callers may pass only those they train.
        weight: [V, H], same dtype as hidden. It must be a leaf if its storage may change before backward (see the
            module's docstring).
        labels: [T] int64 in [0, V).
        temperatures: [T] floating point, each > 0.
        chunk: tokens whose logits are in memory at once, in forward and in backward.
        bound: None, or > 0.

    Returns:
        logprobs [T], differentiable in hidden and weight, and entropy [T] in nats, detached. Both are float32
        (float64 for float64 inputs). The logits are rounded to the inputs' dtype as in the engine; all later arithmetic
        is float32 (or float64).

    Raises:
        ValueError: the shapes do not fit each other, or chunk is not positive.
    """
    fits = hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or not labels.shape == temperatures.shape == hidden.shape[:1]:
        raise ValueError(
            f"expected hidden [T, H], weight [V, H], labels [T], temperatures [T]; got hidden {tuple(hidden.shape)}, "
            f"weight {tuple(weight.shape)}, labels {tuple(labels.shape)}, temperatures {tuple(temperatures.shape)}"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, labels, temperatures.to(_exact(hidden)), chunk, bound)
    return logprobs, entropy


class ChunkedLMHead(nn.Module):
    """Replaces a causal model's `lm_head` and returns logprobs instead of logits.

    It holds the linear head's own parameter under the same name (`lm_head.weight`; tied embeddings stay tied), so
    checkpoints, exports and DeepSpeed's per-module gathering work as with the original head. Put it in place before
    `deepspeed.initialize`, which installs the hooks. Call the module itself, never its `forward`.
    """

    def __init__(self, head: nn.Linear, chunk: int, bound: float | None = None) -> None:
        super().__init__()
        if head.bias is not None:
            raise ValueError("the LM head has a bias, which chunked_logprobs would ignore; no supported model has one")
        self.weight: nn.Parameter = head.weight
        self.chunk: int = chunk
        self.bound: float | None = bound

    def forward(self, hidden: Tensor, labels: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """Return logprobs [T] and entropy [T] from hidden [T, H], labels [T] and temperatures [T]; see
        `chunked_logprobs`."""
        return chunked_logprobs(hidden, self.weight, labels, temperatures, self.chunk, self.bound)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperatures: Tensor,
        chunk: int,
        bound: float | None,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropy, normalizer = (hidden.new_empty(len(hidden), dtype=_exact(hidden)) for _ in range(3))
        of_all: Tensor | None = None
        for part in _chunks(len(hidden), chunk):
            of_all = None  # free a chunk's before the next one's logits are computed
            logits = _logits(hidden[part], weight, temperatures[part], bound)
            of_all, chosen = logits.log_softmax(dim=-1), logits.gather(1, labels[part, None]).squeeze(1)
            del logits
            logprobs[part] = of_all.gather(1, labels[part, None]).squeeze(1)
            normalizer[part] = chosen - logprobs[part]
            entropy[part] = -of_all.exp().mul_(of_all).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, labels, temperatures, normalizer)
        ctx.chunk, ctx.bound, ctx.weight_shape = chunk, bound, weight.shape
        # Nothing but the loss is computed before backward takes them, so they do not raise the peak of memory.
        ctx.last_of_all = of_all if any(ctx.needs_input_grad) else None
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, labels, temperatures, normalizer = ctx.saved_tensors
        chunk, bound = ctx.chunk, ctx.bound
        if weight.shape != ctx.weight_shape:
            raise RuntimeError(
                f"the LM head's weight is {tuple(weight.shape)} in backward but was whole in forward: ZeRO-3 has not "
                "gathered it; call the ChunkedLMHead module that owns it, so that DeepSpeed's hooks run"
            )
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # Chunks are summed in float32 or float64: a bfloat16 sum would change with the number of chunks.
        grad_weight = torch.zeros_like(weight, dtype=_exact(hidden)) if want_weight else None
        of_all: Tensor | None
        of_all, ctx.last_of_all = ctx.last_of_all, None  # overwritten, so a second backward computes them again
        for part in reversed(_chunks(len(hidden), chunk)):
            if of_all is None:
                of_all = _logits(hidden[part], weight, temperatures[part], bound).log_softmax(dim=-1)
            _turn_into_gradient(of_all, normalizer[part], grad[part], labels[part], temperatures[part], bound)
            rounded, of_all = of_all.to(hidden.dtype), None
            if grad_hidden is not None:
                grad_hidden[part] = rounded @ weight
            if grad_weight is not None:
                _add_product(grad_weight, rounded.T, hidden[part])
            del rounded
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _exact(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]


def _logits(hidden: Tensor, weight: Tensor, temperatures: Tensor, bound: float | None) -> Tensor:
    """The logits [C, V] in float32 or float64, as a fresh tensor that the caller may overwrite."""
    logits = (hidden @ weight.T).to(_exact(hidden))
    if bound is not None:
        logits = logits.div_(bound).tanh_().mul_(bound)
    return logits.div_(temperatures[:, None])


def _turn_into_gradient(
    of_all: Tensor, normalizer: Tensor, grad: Tensor, labels: Tensor, temperatures: Tensor, bound: float | None
) -> None:
    """Overwrite the log-probabilities [C, V] of a chunk with the gradient of the head's output, given that of the
    labels' log-probabilities."""
    # d logprob[label] / d logits = (onehot(label) - softmax) / temperature
    scale = (grad / temperatures)[:, None]
    slope = None
    if bound is not None:  # d (bound * tanh(x / bound)) / dx = 1 - tanh(x / bound)^2
        slope = 1 - (of_all + normalizer[:, None]).mul_(temperatures[:, None] / bound).square_()
    of_all.exp_().mul_(-scale)
    of_all.scatter_add_(1, labels[:, None], scale)
    if slope is not None:
        of_all.mul_(slope)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total in place, without a temporary of total's size if the types are equal."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

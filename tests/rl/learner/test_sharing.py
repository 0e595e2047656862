"""In float64 and plain PyTorch, prefix trees give the gradients of separate rows to 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.batch.micro_batch import MicroBatch, lay_out
from rl.batch.tensors import model_inputs, predictions_of
from rl.learner.attention import TREE_ATTENTION
from rl.learner.model import PolicyModel
from tests.rl.learner import learner_fixtures as fixtures

SEPARATE = [lay_out([row]) for row in fixtures.group_rows()]
[TREES] = fixtures.trees(1, 1000)


@pytest.fixture
def only_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and routers of transformers compute in float32. That would turn differences of 1e-16 into 1e-7."""
    to, kind, softmax = torch.Tensor.to, torch.Tensor.type, torch.nn.functional.softmax

    def keep(convert: Callable[..., Any]) -> Callable[..., Any]:
        def converted(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
            narrowing = torch.float32 in (*arguments, *keywords.values())
            return tensor if tensor.dtype == torch.float64 and narrowing else convert(tensor, *arguments, **keywords)

        return converted

    def wide_softmax(tensor: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **keywords: Any) -> Tensor:
        return softmax(tensor, *arguments, dtype=None if tensor.dtype == torch.float64 else dtype, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", keep(to))
    monkeypatch.setattr(torch.Tensor, "type", keep(kind))
    monkeypatch.setattr(
        torch.Tensor, "float", lambda tensor: to(tensor, torch.promote_types(tensor.dtype, torch.float32))
    )
    monkeypatch.setattr(torch.nn.functional, "softmax", wide_softmax)


def gradients(path: Path, batches: list[MicroBatch], checkpointing: bool) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation=TREE_ATTENTION, experts_implementation="eager"
    )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(model.train(), chunk=11)
    for batch in batches:
        inputs, predictions = model_inputs(batch, "cpu"), predictions_of(batch, "cpu")
        logprobs, entropy = policy(
            inputs.tokens, inputs.position_ids, inputs.segments, inputs.sources, inputs.labels, inputs.temperatures
        )
        (fixtures.objective(logprobs, entropy, predictions).loss * predictions.weights).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "glm", "qwen"])
def test_gradients_of_trees_are_those_of_separate_rows(
    kind: str, checkpointing: bool, tmp_path: Path, only_float64: None
) -> None:
    path = fixtures.make_model(kind, tmp_path)
    separate, shared = gradients(path, SEPARATE, False), gradients(path, TREES, checkpointing)
    assert sum(map(len, TREES)) < 0.7 * sum(map(len, SEPARATE))
    assert separate.keys() == shared.keys() and len(shared) > 10
    for name, plain in separate.items():
        largest = plain.abs().max()
        gap = (shared[name] - plain).abs().max()
        assert gap <= 1e-12 * largest, f"{name}: {gap / largest:.1e} of the largest gradient"

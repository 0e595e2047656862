"""States that leave their device and come back: nothing is lost, aliases stay aliases, and a GPU's memory is freed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rl.zero.states import States

pytestmark = pytest.mark.slow

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def trained(device: str) -> tuple[nn.Module, torch.optim.AdamW]:
    """A module with a tied weight and a buffer, after a step of AdamW."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64))
    module[1].weight = module[0].weight
    module.to(device)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(8, 64, device=device)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def values(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*module.state_dict().values(), *states)]


@pytest.mark.parametrize("device", DEVICES)
def test_everything_comes_back_as_it_was(device: str) -> None:
    module, optimizer = trained(device)
    view = module[0].weight.data[3:5, ::2]
    before, seen = values(module, optimizer), view.clone()
    states = States(module, optimizer, torch.device(device))
    assert states.offload("optimizer") > 2 * 4 * 64 * 64, "two moments and the gradients"
    assert states.offload("optimizer") == 0, "it is there already"
    assert torch.equal(view, seen), "the weights are still here"
    assert states.offload("weights") >= 4 * 64 * 64
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in (*module.parameters(), *module.buffers()))
    assert states.reload() > 3 * 4 * 64 * 64
    assert all(torch.equal(one, other) for one, other in zip(before, values(module, optimizer), strict=True))
    module[0].weight.data[3, 0] = 7.0
    assert view[0, 0] == 7.0 and module[1].weight[3, 0] == 7.0, "views and tied weights are still the same memory"
    assert states.reload() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_after_many_turns_is_the_step_without_them(device: str) -> None:
    stepped = []
    for turns in (0, 3):
        module, optimizer = trained(device)
        states = States(module, optimizer, torch.device(device))
        for _ in range(turns):
            states.offload("optimizer"), states.offload("weights"), states.reload()
        optimizer.step()
        stepped.append(values(module, optimizer))
    assert all(torch.equal(one, other) for one, other in zip(*stepped, strict=True))


class Bucketed(torch.optim.AdamW):
    """An optimizer with a buffer as ZeRO has it."""

    def __init__(self, module: nn.Module, buffer: torch.Tensor) -> None:
        super().__init__(module.parameters())
        self.ipg_buckets = {buffer.dtype: SimpleNamespace(buffer=buffer)}
        self.reached = [buffer]


Bucketed.__module__ = "torch.optim.of_this_test"


def test_buffers_for_messages_are_emptied_and_not_copied() -> None:
    module, buffer = nn.Linear(4, 4), torch.full((1000,), 3.0)
    states = States(module, Bucketed(module, buffer), torch.device("cpu"))
    assert states.offload("optimizer") == 4000 and buffer.untyped_storage().nbytes() == 0
    assert [moved.host for moved in states._moved] == [None]
    assert states.reload() == 4000 and buffer.untyped_storage().nbytes() == 4000


def test_memory_that_is_not_pytorchs_own_stays_where_it_is() -> None:
    module = nn.Linear(4, 4, bias=False)
    module.weight.data = torch.from_numpy(np.ones((4, 4), np.float32))
    states = States(module, torch.optim.AdamW(module.parameters()), torch.device("cpu"))
    assert states.offload("weights") == 0 and module.weight.sum() == 16


@pytest.mark.gpu
def test_a_gpus_memory_is_freed() -> None:
    device = torch.device("cuda")
    begun = torch.cuda.memory_allocated()
    module = nn.Linear(4096, 4096, bias=False, device=device)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 4096, device=device)).sum().backward()
    optimizer.step()
    states = States(module, optimizer, device)
    held = torch.cuda.memory_allocated() - begun
    states.offload("optimizer")
    assert torch.cuda.memory_allocated() - begun < held / 2
    states.offload("weights")
    assert torch.cuda.memory_allocated() - begun < held / 50
    states.reload()
    assert torch.cuda.memory_allocated() - begun >= held * 0.98

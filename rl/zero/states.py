"""Where a rank's states lie: on its device, or on the host while an inference engine has the device.

DeepSpeed's own `offload_states` does not serve here. Under stage 3 it takes no optimizer but DeepSpeed's FusedAdam, it
counts the weights wrongly where some of them are frozen (the base of an adapter), and stage 0 has none. So whole
storages are moved instead: the bytes are copied to the host, and the storage is emptied. Every tensor, view and alias
of it stays what it is, and has its values again when the bytes are back. That is the same for every ZeRO stage, for
adapters and for experts, and on CPU, where it frees nothing.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, UntypedStorage, nn

Part = Literal["optimizer", "weights"]
"""weights: what is needed to gather the model's tensors.  optimizer: the rest: optimizer states, their own copy of the
weights, gradients and their buffers."""

_OPEN = ("deepspeed.", "torch.optim.")
"""Objects of classes of these modules are searched for tensors; in others there are none that a rank keeps."""


@dataclass(slots=True)
class _Moved:
    """A storage that is empty now, the number of its bytes, and those bytes on the host; None if nobody needs them."""

    storage: UntypedStorage
    size: int
    host: UntypedStorage | None


class States:
    """The states of one rank's DeepSpeed engine. `offload` them part by part, `reload` all of them."""

    def __init__(self, module: nn.Module, optimizer: Any, device: torch.device) -> None:
        self._module, self._optimizer, self._device = module, optimizer, device
        self._moved: list[_Moved] = []
        self._pinned: list[UntypedStorage] = []
        """Buffers on the host that are kept for the next time, because making one is slow. Only a GPU's are."""

    def offload(self, part: Part) -> int:
        """Move a part to the host, and return its bytes. What is there already stays there.

        Nothing may read a part until `reload`.
        """
        weights = _storages(_weights(self._module), self._device)
        found = weights
        if part == "optimizer":
            found = _storages(_reachable(self._optimizer, self._module), self._device)
            found = {key: storage for key, storage in found.items() if key not in weights}
        scratch = _storages(_scratch(self._optimizer), self._device)
        moved = [self._emptied(storage, keep=key not in scratch) for key, storage in found.items()]
        self._moved += moved
        del found, weights, scratch
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return sum(each.size for each in moved)

    def reload(self) -> int:
        """Bring everything back to the device, and return its bytes."""
        moved, self._moved = self._moved, []
        for each in moved:
            each.storage.resize_(each.size)
            if each.host is not None:
                each.storage.copy_(each.host)
        if self._device.type == "cuda":
            self._pinned = [each.host for each in moved if each.host is not None]
        return sum(each.size for each in moved)

    def left_bytes(self) -> int:
        """The bytes that tensors of this process have on a GPU, whoever made them."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def _emptied(self, storage: UntypedStorage, *, keep: bool) -> _Moved:
        size = storage.nbytes()
        host = self._host(size) if keep else None
        if host is not None:
            host.copy_(storage)
        storage.resize_(0)
        return _Moved(storage, size, host)

    def _host(self, size: int) -> UntypedStorage:
        kept = next((place for place, buffer in enumerate(self._pinned) if buffer.nbytes() == size), None)
        if kept is not None:
            return self._pinned.pop(kept)
        pinned = self._device.type == "cuda"
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned).untyped_storage()


def _storages(tensors: Iterator[Tensor], device: torch.device) -> dict[int, UntypedStorage]:
    """The storages of tensors on a device, each once, by its address in PyTorch. Those that cannot be emptied (a file's
    pages in memory, which a CPU can compute with) are left out."""
    found = {}
    for tensor in tensors:
        if tensor.device.type == device.type and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.resizable():
                found[storage._cdata] = storage
    return found


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """The tensors behind a module's parameters and buffers. ZeRO-3 keeps a rank's part of a parameter beside it."""
    for parameter in module.parameters():
        yield parameter.data
        for name in ("ds_tensor", "ds_secondary_tensor"):
            part = getattr(parameter, name, None)
            if isinstance(part, Tensor):
                yield part
    yield from module.buffers()


def _scratch(optimizer: Any) -> Iterator[Tensor]:
    """The buffers in which ZeRO puts gradients together for a message: between steps nobody needs what is in them."""
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        buffers = bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
        yield from (buffer for buffer in buffers if buffer is not None)


def _reachable(optimizer: Any, module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that an optimizer holds, through containers and DeepSpeed's own objects, and all gradients."""
    seen: set[int] = set()
    waiting: deque[Any] = deque([optimizer, *(parameter.grad for parameter in module.parameters())])
    while waiting:
        found = waiting.popleft()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            yield found
            waiting.append(found.grad if found.is_leaf else None)
        elif isinstance(found, Mapping):
            waiting.extend([*found.keys(), *found.values()])
        elif isinstance(found, list | tuple | set | frozenset | deque):
            waiting.extend(found)
        elif not isinstance(found, nn.Module | type) and type(found).__module__.startswith(_OPEN):
            waiting.extend(getattr(found, "__dict__", {}).values())

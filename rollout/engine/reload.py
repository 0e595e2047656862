"""The reload of a vLLM model from tensors in checkpoint format, made safe to fail and to repeat.

vLLM's layer-wise reload buffers tensors until a layer is complete, then copies the processed layer over the running
one. At the end a layer without any tensor gets its old weights back, and one with only some is used as it is, each with
at most a log line. Here missing and unknown weights are an error that lists their names, and the layers that a failed
reload left incomplete get their old weights back before the next reload starts. This runs in the worker process;
`rollout.engine.worker.TransferEngine` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

from rewards.errors import listed
from rollout.cpu.prepack import forget_packed_experts, repack_tied_heads
from rollout.engine.loading import LoadableModel, load_watched
from rollout.lora.names import plain_name


class Reload:
    """The reloads of one model, one at a time."""

    def __init__(self) -> None:
        self._known_names: frozenset[str] = frozenset()
        self._checked: set[str] = set()
        self._untouched: set[str] = set()

    def begin(self, model: LoadableModel, model_config: ModelConfig) -> None:
        """Give the layers that a failed reload left incomplete their old weights back, and start a new reload."""
        self._roll_back(model, model_config)
        self._checked = set()
        # Before the reload begins, a shared weight (a tied head) is still one parameter, under its first name.
        shared_once = _names(model)
        forget_packed_experts(model.modules())
        initialize_layerwise_reload(model)
        # Parameters that packing adds to a layer are gone now. No checkpoint has them, so they are not expected.
        self._untouched = shared_once & _names(model)

    def load(self, model: LoadableModel, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Load some tensors under checkpoint names.

        A name is loaded alone the first time, to see whether the model takes it. vLLM's models skip names that they do
        not know, some without a word.

        Raises:
            ValueError: the model does not know a name, or a shape does not fit.
        """
        known = [pair for pair in tensors if pair[0] in self._known_names]
        if known:
            self._untouched -= load_watched(model, known)
        unmatched = []
        for name, tensor in tensors:
            if name not in self._known_names:
                filled = _load_alone(model, name, tensor)
                self._untouched -= filled
                unmatched += [] if filled else [name]
        if unmatched:
            raise ValueError(f"the engine's model has no weights named {listed(unmatched)}")
        self._checked.update(name for name, _ in tensors)

    def finish(self, model: LoadableModel, model_config: ModelConfig) -> None:
        """Complete the reload.

        Raises:
            ValueError: a weight of the model got no tensor, or not all of its parts.
        """
        # Names show a weight that got nothing. Counting elements shows one that lacks parts, but misses those that vLLM
        # loads in place (SKIP_LOAD_TENSORS: the router's bias).
        missing = sorted(self._untouched) or incomplete_layers(model)
        if missing:
            raise ValueError(f"the engine's model got no complete weights for {listed(missing)}")
        finalize_layerwise_reload(model, model_config)
        repack_tied_heads(model.modules())
        self._known_names = frozenset(self._checked)

    def _roll_back(self, model: LoadableModel, model_config: ModelConfig) -> None:
        started = [info for info in map(get_layerwise_info, model.modules()) if info.can_load()]
        for info in started:
            info.loaded_weights.clear()
            info.load_numel = 0
        if started:
            finalize_layerwise_reload(model, model_config)


def _names(model: LoadableModel) -> set[str]:
    """The model's parameters by the names under which `load_weights` reports them."""
    return {plain_name(name) for name, _ in model.named_parameters()}


def incomplete_layers(model: LoadableModel) -> list[str]:
    """Return the weights that still wait for tensors in the middle of a reload, as `module (parameters)`."""
    missing = []
    owned: set[int] = set()
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        # A weight that an earlier module has too (the router's bias, a tied head) is sent once, for that module.
        own = [parameter for parameter, tensor in _running_weights(layer, info).items() if id(tensor) not in owned]
        owned.update(id(tensor) for tensor in _running_weights(layer, info).values())
        if info.can_load() and not is_deferred_attention_layer(layer) and not _is_complete(layer, info, own):
            loaded = {parameter for parameter, _ in info.loaded_weights}
            absent = [parameter for parameter in own if parameter not in loaded]
            missing.append(f"{name} ({', '.join(absent) or 'parts of ' + ', '.join(sorted(loaded))})")
    return missing


def _running_weights(layer: nn.Module, info: LayerReloadingInfo) -> dict[str, Tensor]:
    """Return the parameters that the engine computes with. vLLM sets them aside while the layer waits for tensors."""
    return dict(layer.named_parameters(recurse=False)) if info.kernel_tensors is None else info.kernel_tensors[0]


def _is_complete(layer: nn.Module, info: LayerReloadingInfo, own: Sequence[str]) -> bool:
    # Rows that pad the vocabulary are never sent, and the one tensor of an embedding arrives whole.
    if isinstance(layer, VocabParallelEmbedding) and own:
        return info.load_numel > 0
    # Buffers (rotary tables, expert maps) are computed, not sent.
    waiting = dict(layer.named_parameters(recurse=False))
    return info.load_numel >= sum(get_tensor_load_numel(waiting[name]) for name in own if name in waiting)


def _load_alone(model: LoadableModel, name: str, tensor: Tensor) -> set[str]:
    """Load one tensor. Return the model's parameters that took it; none when the model does not know the name."""
    try:
        return load_watched(model, [(name, tensor)])
    except KeyError:
        return set()
    except ValueError as error:
        if "no module or parameter named" in str(error):
            return set()
        raise
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} does not fit the engine's model: {error}") from error

"""The policy as the learner runs it: a Hugging Face decoder and a head that returns log-probabilities, not logits.

Owns loading (from a local directory or a hub name; with random weights from a seed if a directory holds only a config)
and `PolicyModel`, the one module that DeepSpeed wraps. Its parameters keep their Hugging Face names, so weights move
between engine, checkpoint and inference copy without prefixes. It refuses models that are not a plain `model` with an
`lm_head` without bias, and those that change the logits after it by more than a factor or a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rl.batch.tree import Segment
from rl.families.family import Family
from rl.learner.attention import TREE_ATTENTION
from rl.learner.logprobs import ChunkedLMHead
from rl.weights.hf_reader import HfCheckpoint, has_weights

MULTIPLIES_LOGITS = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Keys of a config.json by whose value some models multiply the logits after the head (1) or divide them (-1)."""
BOUNDS_LOGITS = "final_logit_softcapping"
"""The key with which some models bound the logits, to bound * tanh(logit / bound)."""


ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
"""The kinds of layers that see nothing but what our attention function shows them."""


def resolve_model(path: str) -> Path:
    """The local directory of a model: `path` itself, or the cached snapshot of that hub name (downloaded once).

    Raises:
        ValueError: `path` is a directory without a config.json, or looks like a path but is no directory.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ValueError(f"model.path {path!r} has no config.json; give a Hugging Face model directory")
        return directory
    if path.startswith((".", "/", "~")):
        raise ValueError(f"model.path {path!r} is not a directory; give an existing one or a Hugging Face name")
    return Path(snapshot_download(path))


def load_model(
    path: str,
    dtype: str,
    seed: int,
    family: Family,
    place: Callable[[nn.Parameter], None] | None = None,
    read: bool = True,
) -> PreTrainedModel:
    """The causal language model at `path` in `dtype`, with tree attention, in training mode.

    A directory without weights gets random ones from `seed`: the same on every rank, leaving the global RNG unchanged.

    Args:
        place: called with every parameter as soon as all of it is on the CPU. It may move or partition the storage, so
            that reading a checkpoint never holds more than one whole parameter.
        read: False leaves the parameters' values undefined, for a rank whose `place` takes them from another rank.

    Raises:
        ValueError: there is no model, or its checkpoint does not fit it. All ranks raise it, before `place` is called.
    """
    directory = resolve_model(path)
    config = AutoConfig.from_pretrained(directory)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    stored = has_weights(directory)
    with init_empty_weights(include_buffers=False) if stored else seeded(seed):
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype, attn_implementation=TREE_ATTENTION)
    if stored:
        _read(model, HfCheckpoint(directory, family), place or stay, read)
    else:
        for parameter in model.parameters():
            (place or stay)(parameter)
    model.config.architectures = [type(model).__name__]
    return model.train()


def _read(model: PreTrainedModel, checkpoint: HfCheckpoint, place: Callable[[nn.Parameter], None], read: bool) -> None:
    """Fill an empty model with the checkpoint's values, parameter by parameter."""
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in tied}
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), *checkpoint.family.ignored(model.config.to_dict())]
    checkpoint.require(tensors, optional=tied, ignored=ignored)
    for name, empty in tensors.items():
        if not isinstance(empty, nn.Parameter):
            checkpoint.read_into(empty, name)
            continue
        full = torch.empty(empty.shape, dtype=empty.dtype)
        if read:
            checkpoint.read_into(full, name)
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(full)
        setattr(model.get_submodule(owner), leaf, parameter)
        place(parameter)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def stay(parameter: nn.Parameter) -> None:
    """Default placement: keep the parameter unpartitioned on the CPU."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def logit_factor(config: PreTrainedConfig) -> float:
    """The number by which a model multiplies its logits after the head."""
    factor = 1.0
    for key, power in MULTIPLIES_LOGITS.items():
        value = getattr(config, key, None)
        factor *= 1.0 if value is None else float(value) ** power
    return factor


class PolicyModel(nn.Module):
    """A decoder under its Hugging Face parameter names (`model.*`, `lm_head.weight`), returning log-probabilities.

    Raises:
        ValueError: the logits of `causal_lm` are not just its decoder's output times a matrix and a number, or bounded,
            or it has layers that are no attention (linear attention, convolutions, state spaces).
    """

    def __init__(self, causal_lm: PreTrainedModel, chunk: int) -> None:
        super().__init__()
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None or causal_lm.base_model_prefix != "model":
            raise ValueError(
                f"{type(causal_lm).__name__} has no plain `model` + `lm_head`; "
                "supported are decoders of the Llama/Qwen/GLM-4.5 kind"
            )
        bound: float | None = getattr(causal_lm.config, BOUNDS_LOGITS, None)
        factor = logit_factor(causal_lm.config)
        if bound is not None and factor != 1.0:
            raise ValueError(
                f"{type(causal_lm).__name__} bounds its logits ({BOUNDS_LOGITS}={bound}) and multiplies them by "
                f"{factor:g}; the trainer does one or the other"
            )
        if kinds := sorted({*(getattr(causal_lm.config, "layer_types", None) or ())} - ATTENTION_LAYERS):
            raise ValueError(
                f"{type(causal_lm).__name__} has layers of the kind {', '.join(kinds)}, which carry a state from row "
                "to row of a micro-batch; supported are layers of softmax attention"
            )
        self.config: PreTrainedConfig = causal_lm.config
        self._logit_factor: float = factor
        self.model: nn.Module = causal_lm.base_model
        self.lm_head: nn.Module = ChunkedLMHead(head, chunk, bound)

    def forward(
        self,
        tokens: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[Segment, ...],
        sources: torch.Tensor,
        labels: torch.Tensor,
        temperatures: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of each label and the entropy of the distribution that it is of, both [M] float32.

        Args:
            tokens, position_ids: [T] int64.
            segments: the prefix trees that the tokens form.
            sources, labels, temperatures: [M]; label m is predicted at position `sources[m]`. Others get no logits.
        """
        output = self.model(
            input_ids=tokens[None],
            position_ids=position_ids[None],
            attention_mask=None,
            use_cache=False,
            segments=segments,
        )
        hidden = output.last_hidden_state[0].index_select(0, sources)
        logprobs: torch.Tensor
        entropy: torch.Tensor
        logprobs, entropy = self.lm_head(hidden, labels, temperatures / self._logit_factor)
        return logprobs, entropy

"""Whether the trainer computes what a model's own forward computes, tried at every start.

No list of architectures can know the next one. So a small copy of the model, with random weights, is run both ways on a
few random rows: by its own forward with plain attention, row by row, and as the learner runs it, packed as prefix trees
with our attention and our head. What is kept of the model is everything that decides what is computed: its code, and
its configuration but for the sizes in `SMALLER`, the number of layers (two, or one of each kind) and the length of a
sliding window (shorter than the rows).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rl.batch.tree import Forest, plant
from rl.learner.attention import TREE_ATTENTION
from rl.learner.model import PolicyModel

SMALLER = {
    "vocab_size": 256,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "num_experts": 16,
    "num_local_experts": 16,
    "first_k_dense_replace": 1,
}
"""The largest values of sizes that change no formula."""
WINDOW = 8
LENGTHS, SHARED = (24, 40, 33), (0, 16, 0)
"""Rows of so many tokens, of which the second begins with the first 16 of the first."""
TEMPERATURE = 0.7
NOISE = 0.05
"""The deviation of what is added to all weights: at their initial values norms and biases would do nothing."""
TOLERANCE_NATS = 5e-3
"""float32 differs by 1e-5 nats between kernels; a formula that is missing differs by 1e-1 and more."""


def check_forward(config: PreTrainedConfig) -> None:
    """Compare the learner's forward with the model's own.

    Raises:
        ValueError: they differ, or the learner cannot run this model at all.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            small_copy(config), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for parameter in model.parameters():
            parameter += NOISE * torch.randn_like(parameter)
        forest = plant(LENGTHS, SHARED)
        tokens = torch.randint(1, model.config.vocab_size, (forest.tokens,))
        expected = [_own(model, tokens[torch.from_numpy(place)]) for place in forest.places]
        found = _ours(model, tokens, forest)
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    if not difference <= TOLERANCE_NATS:
        raise ValueError(
            f"the trainer would compute other log-probabilities than {type(model).__name__} (model type "
            f"{config.model_type!r}): they differ by up to {difference:.2g} nats on random tokens; this model is not "
            "supported"
        )


def small_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a small model that computes by the same formulas."""
    small = deepcopy(config)
    for name, largest in SMALLER.items():
        value = getattr(small, name, None)
        if isinstance(value, int) and value > largest:
            setattr(small, name, largest)
    kinds = list(dict.fromkeys(getattr(small, "layer_types", None) or ()))
    small.num_hidden_layers = max(2, len(kinds))
    if kinds:
        small.layer_types = [kinds[layer % len(kinds)] for layer in range(small.num_hidden_layers)]
    if getattr(small, "sliding_window", None) is not None:
        small.sliding_window = WINDOW
    small.pad_token_id = None
    return small


def _own(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The log-probabilities of a row's tokens after the first, by the model's own forward."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1] / TEMPERATURE
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def _ours(model: PreTrainedModel, tokens: Tensor, forest: Forest) -> list[Tensor]:
    """The same for all rows, as the learner computes them."""
    model.set_attn_implementation(TREE_ATTENTION)
    policy = PolicyModel(model, chunk=16)
    positions = torch.zeros(forest.tokens, dtype=torch.int64)
    places = [torch.from_numpy(place) for place in forest.places]
    for place in places:
        positions[place] = torch.arange(len(place))
    sources, labels = (torch.cat([place[part] for place in places]) for part in (slice(None, -1), slice(1, None)))
    logprobs, _ = policy(
        tokens, positions, tuple(forest.segments), sources, tokens[labels], torch.full((len(labels),), TEMPERATURE)
    )
    return list(logprobs.split([len(place) - 1 for place in places]))

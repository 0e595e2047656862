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
    "first_k_dense_replace": 1,
}
"""The largest values of sizes that change no formula."""
WINDOW = 8
LENGTHS, SHARED = (24, 40, 33), (0, 16, 0)
"""Rows of so many tokens, of which the second begins with the first 16 of the first."""
TEMPERATURE = 0.7
GAIN = 2.4
"""How much a matrix enlarges what it is given, for random weights of the deviation GAIN / sqrt(width). At the initial
values no score would be large enough for a bound of 50 to matter."""
NOISE = 0.3
"""The deviation of what is added to vectors: at their initial values norms, biases and sinks would do nothing."""
TOLERANCE_NATS = 1e-3
"""float32 differs by up to 1e-4 nats between kernels; a formula that is missing differs by 1e-2 and more."""


def check_forward(config: PreTrainedConfig) -> None:
    """Compare the learner's forward with the model's own.

    Raises:
        ValueError: they differ, or the learner cannot run this model at all.
    """
    try:
        difference, name = _difference(config)
    except ValueError:
        raise
    except Exception as error:  # of transformers' code for the model
        raise ValueError(
            f"the trainer cannot run a small copy of the model (model type {config.model_type!r}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not difference <= TOLERANCE_NATS:
        raise ValueError(
            f"the trainer would compute other log-probabilities than {name} (model type {config.model_type!r}): they "
            f"differ by up to {difference:.2g} nats on random tokens; this model is not supported"
        )


def _difference(config: PreTrainedConfig) -> tuple[float, str]:
    """The largest difference, in nats, and the name of the model's class."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            small_copy(config), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for parameter in model.parameters():
            parameter += _deviation(parameter) * torch.randn_like(parameter)
        forest = plant(LENGTHS, SHARED)
        tokens = torch.randint(1, model.config.vocab_size, (forest.tokens,))
        expected = [_own(model, tokens[torch.from_numpy(place)]) for place in forest.places]
        found = _ours(model, tokens, forest)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)), type(model).__name__


def _deviation(parameter: Tensor) -> float:
    """The deviation of what is added to a weight."""
    return NOISE if parameter.ndim < 2 else float(GAIN / parameter.shape[-1] ** 0.5)


def small_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a small model that computes by the same formulas."""
    small = deepcopy(config)
    for name, largest in SMALLER.items():
        value = getattr(small, name, None)
        if isinstance(value, int) and value > largest:
            setattr(small, name, largest)
    _fewer_experts(small)
    kinds = list(dict.fromkeys(getattr(small, "layer_types", None) or ()))
    small.num_hidden_layers = max(2, len(kinds))
    if kinds:
        small.layer_types = [kinds[layer % len(kinds)] for layer in range(small.num_hidden_layers)]
    if getattr(small, "sliding_window", None) is not None:
        small.sliding_window = WINDOW
    small.pad_token_id = None
    return small


def _fewer_experts(small: PreTrainedConfig) -> None:
    """Leave at most 16 experts, or twice as many as a token has or as there are groups of them, in whole groups."""
    groups = getattr(small, "n_group", None) or 1
    chosen = getattr(small, "num_experts_per_tok", None) or 1
    wanted = -(-max(16, 2 * chosen, 2 * groups) // groups) * groups
    for name in ("n_routed_experts", "num_experts", "num_local_experts"):
        value = getattr(small, name, None)
        if isinstance(value, int) and value > wanted:
            setattr(small, name, wanted)


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

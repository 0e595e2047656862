"""Measure the training time of a group with its prompt computed once, against separate rows.

A random model of SmolLM2-135M's sizes, float32, forward and backward without the optimizer, in plain PyTorch. Rows have
ROW tokens, of which a share is the group's prompt; the others are trained.

ideal: the time of separate rows, less the decoder layers' time for the tokens that are saved. That time is measured on
the separate rows, too, and taken to be the same for every token. The last column says how much of the ideal is reached.

    .venv/bin/python -m benchmarks.prefix_sharing [--row 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rl.batch.micro_batch import MicroBatch, TrainRow, lay_out
from rl.batch.tensors import model_inputs, predictions_of
from rl.learner.attention import TREE_ATTENTION
from rl.learner.model import PolicyModel
from rollout.types import OBSERVED, Sample

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    attn_implementation=TREE_ATTENTION,
)
GROUPS, SHARES, REPEATS = (8, 16), (0.2, 0.5, 0.8), 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, default=128, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    policy = PolicyModel(LlamaForCausalLM(SMOLLM2_135M).train(), chunk=1024)
    print("| group | prompt | tokens | with sharing | separate, s | layers, s | shared, s | ratio | of the ideal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for members in GROUPS:
        for share in SHARES:
            print(row(policy, members, int(share * options.row), options.row), flush=True)


def row(policy: PolicyModel, members: int, prompt: int, length: int) -> str:
    """The table's row for a group of so many rows."""
    rows = group(members, prompt, length)
    separate, shared = lay_out(rows), lay_out(rows, [0] + [prompt] * (members - 1))
    step(policy, shared)  # the first run allocates
    separate_s = best(lambda: step(policy, separate))
    shared_s = best(lambda: step(policy, shared))
    layers_s = best(lambda: decoder_only(policy, separate))
    saved = 1 - len(shared) / len(separate)
    ideal_s = separate_s - layers_s * saved
    what = f"{members} | {prompt / length:.0%} | {len(separate):,} | {len(shared):,}"
    seconds = f"{separate_s:.2f} | {layers_s:.2f} | {shared_s:.2f}"
    return f"| {what} | {seconds} | {separate_s / shared_s:.2f} | {ideal_s / shared_s:.2f} |"


def group(members: int, prompt: int, length: int) -> list[TrainRow]:
    random = np.random.default_rng(0)
    common = random.integers(0, SMOLLM2_135M.vocab_size, prompt)
    return [
        train_row(np.concatenate([common, random.integers(0, SMOLLM2_135M.vocab_size, length - prompt)]), prompt)
        for _ in range(members)
    ]


def train_row(tokens: Sequence[int], prompt: int) -> TrainRow:
    sampled = len(tokens) - prompt
    sample = Sample(
        token_ids=np.asarray(tokens, np.int32),
        loss_mask=np.repeat([0, 1], [prompt, sampled]).astype(np.uint8),
        logprobs=np.repeat([0, -10], [prompt, sampled]).astype(np.float32),
        versions=np.repeat([OBSERVED, 0], [prompt, sampled]).astype(np.int32),
    )
    return TrainRow(sample=sample, advantages=np.ones(sampled), weight=1 / sampled)


def step(policy: PolicyModel, batch: MicroBatch) -> None:
    """Forward and backward of a micro-batch."""
    inputs, predictions = model_inputs(batch, "cpu"), predictions_of(batch, "cpu")
    logprobs, _ = policy(
        inputs.tokens, inputs.position_ids, inputs.segments, inputs.sources, inputs.labels, inputs.temperatures
    )
    (logprobs * predictions.weights).sum().backward()
    policy.zero_grad()


def decoder_only(policy: PolicyModel, batch: MicroBatch) -> None:
    """The same without the head. The embedding is in it, which costs next to nothing."""
    inputs = model_inputs(batch, "cpu")
    output = policy.model(
        input_ids=inputs.tokens[None],
        position_ids=inputs.position_ids[None],
        attention_mask=None,
        use_cache=False,
        segments=inputs.segments,
    )
    output.last_hidden_state.sum().backward()
    policy.zero_grad()


def best(run: Callable[[], None]) -> float:
    """The shortest of REPEATS runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()

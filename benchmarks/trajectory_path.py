"""Measure what a token costs on its way from the agent loop to a rank: µs and bytes a token, in one process.

build: a stream of many turns, half sampled and half observed, finished into a sample, with the prompt of each turn as
the engine gets it. hops: the finished group pickled and unpickled twice, as from worker to buffer to driver. pack: from
rows to micro-batches. store: written to the run directory's file.

A second table packs many rows of long-tailed lengths (log-normal) for several ranks: the seconds that it takes, the
share of the token budgets that real tokens fill, and how much more the busiest rank has than the average.

    .venv/bin/python -m benchmarks.trajectory_path [--tokens 1024,16384,65536] [--turn 512]
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rl.batch.micro_batch import TrainRow
from rl.batch.packing import pack
from rollout.agent.stream import TokenStream
from rollout.store.groups import encode_groups
from rollout.types import Completion, Group, Sample, Task, Trajectory

MEMBERS = 8
REPEATS = 5
RANKS, TOKEN_BUDGET = 8, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1024,16384,65536", help="comma-separated: tokens of a trajectory")
    parser.add_argument("--turn", type=int, default=512, help="tokens of a turn and its answer together")
    options = parser.parse_args()
    print("| tokens | build, µs | hops, µs | pack, µs | store, µs | a hop, bytes | the file, bytes |")
    print("|---|---|---|---|---|---|---|")
    for tokens in map(int, options.tokens.split(",")):
        print(row(tokens, options.turn), flush=True)
    print("\n| rows | tokens | pack, s | filled | busiest rank over the mean |")
    print("|---|---|---|---|---|")
    for rows in (512, 4096):
        print(packing(rows), flush=True)


def packing(count: int) -> str:
    """The second table's row for so many rows."""
    lengths = np.random.default_rng(0).lognormal(np.log(512), 1.3, count).clip(2, TOKEN_BUDGET).astype(int)
    rows = [row_of(length) for length in lengths.tolist()]
    start = time.perf_counter()
    ranks = pack(rows, RANKS, TOKEN_BUDGET)
    seconds = time.perf_counter() - start
    loads = [sum(batch.tokens for batch in of_rank) for of_rank in ranks]
    filled = sum(loads) / (TOKEN_BUDGET * sum(map(len, ranks)))
    return f"| {count:,} | {sum(loads):,} | {seconds:.2f} | {filled:.3f} | {max(loads) * RANKS / sum(loads) - 1:.2%} |"


def row_of(length: int) -> TrainRow:
    stream = TokenStream()
    stream.observe([1])
    sampled = length - 1
    stream.sampled(
        Completion(token_ids=(1,) * sampled, logprobs=(-1.0,) * sampled, versions=(0,) * sampled, finish_reason="stop")
    )
    return TrainRow(sample=stream.finish(), advantages=np.ones(sampled), weight=1.0)


def row(tokens: int, turn: int) -> str:
    """The table's row for a group of MEMBERS trajectories of so many tokens."""
    random = np.random.default_rng(0)
    turns = [[turn_of(turn, random) for _ in range(tokens // turn)] for _ in range(MEMBERS)]
    build_s, samples = best(lambda: [build(of_one) for of_one in turns])
    group = group_of(samples)
    hops_s, hopped = best(lambda: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(group, 5)), 5)))
    assert hopped == group
    rows = [TrainRow(sample=s, advantages=np.ones(s.trained_tokens), weight=1.0) for s in samples]
    pack_s, _ = best(lambda: pack(rows, 2, 2 * tokens))
    store_s, written = best(lambda: encode_groups([group]))
    count = MEMBERS * tokens
    times = " | ".join(f"{seconds / count * 1e6:.3f}" for seconds in (build_s, hops_s, pack_s, store_s))
    return f"| {tokens:,} | {times} | {len(pickle.dumps(group, 5)) / count:.1f} | {len(written) / count:.1f} |"


def turn_of(tokens: int, random: np.random.Generator) -> tuple[list[int], Completion]:
    """What is observed and what is sampled in one turn."""
    ids = random.integers(0, 150_000, tokens)
    half = tokens // 2
    logprobs = -random.exponential(size=half).astype(np.float32)
    completion = Completion(
        token_ids=tuple(ids[half:].tolist()),
        logprobs=tuple(logprobs.tolist()),
        versions=(7,) * half,
        finish_reason="stop",
    )
    return ids[:half].tolist(), completion


def build(turns: list[tuple[list[int], Completion]]) -> Sample:
    stream = TokenStream()
    for observed, completion in turns:
        stream.observe(observed)
        pickle.dumps(stream.token_ids, 5)  # the prompt in the turn's request
        stream.sampled(completion)
    return stream.finish()


def group_of(samples: list[Sample]) -> Group:
    trajectories = tuple(
        Trajectory(
            task_id="t",
            group_id="g",
            samples=(sample,),
            messages=(),
            stop_reason="answered",
            outcome="scored",
            reward=1.0,
            success=True,
        )
        for sample in samples
    )
    return Group(id="g", task=Task(id="t", environment="e", messages=()), trajectories=trajectories)


def best(run: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest of REPEATS runs, in seconds, and a result."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


if __name__ == "__main__":
    main()

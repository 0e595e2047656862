"""Measure what a token costs on its way from the agent loop to a rank: µs and bytes a token, in one process.

    worker  build   a stream of many turns, half sampled and half observed, finished into a sample; each turn's prompt
                    as the engine gets it
            card    the group's card, with its prefix tree
            store   appended to a segment, compressed; beside it the bytes on disk (the fsync is not in it)
            put     the samples as Ray's object store gets them
    driver  cards pickled and unpickled twice, rows and weights by GRPO, staleness, metrics and the packing plan
    rank    samples taken from the object store's bytes, micro-batches laid out

Groups of MEMBERS trajectories share their first observed tokens. A second table plans many rows of long-tailed lengths
(log-normal) for several ranks, with and without shared prefixes.

    .venv/bin/python -m benchmarks.trajectory_path [--tokens 1024,16384,65536] [--turn 512]
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl.advantages.config import AggregationConfig, GrpoSettings
from rl.advantages.rows import train_rows
from rl.batch.plan import build as lay_out_rank
from rl.batch.plan import plan
from rl.observe.stepstats import rollout_metrics, staleness
from rollout.agent.stream import TokenStream
from rollout.cards import Card, SampleCard, TrajectoryCard, Turns, card_of, samples_of
from rollout.store.segments import Segment
from rollout.types import Address, Completion, Group, Sample, Task, Trajectory, Turn

MEMBERS = 8
REPEATS = 5
RANKS, TOKEN_BUDGET = 8, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1024,16384,65536", help="comma-separated: tokens of a trajectory")
    parser.add_argument("--turn", type=int, default=512, help="tokens of a turn and its answer together")
    options = parser.parse_args()
    print("| tokens | build | card | store | put | driver | rank | all, µs | a card, bytes | on disk | put, bytes |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for tokens in map(int, options.tokens.split(",")):
        print(row(tokens, options.turn), flush=True)
    print("\n| rows | prefix | prefixes shared | plan, s | tokens | filled | busiest rank over the mean |")
    print("|---|---|---|---|---|---|---|")
    for rows in (512, 4096):
        for prefix in (0.0, 0.5):
            for shared in (False, True):
                print(planning(rows, prefix, shared), flush=True)


def row(tokens: int, turn: int) -> str:
    """The table's row for groups of MEMBERS trajectories of so many tokens."""
    random = np.random.default_rng(0)
    prompt = turn_of(turn, random)
    turns = [[prompt, *(turn_of(turn, random) for _ in range(tokens // turn - 1))] for _ in range(MEMBERS)]
    count = MEMBERS * tokens
    with tempfile.TemporaryDirectory() as folder:
        segment = Segment(Path(folder))
        build_s, samples = best(lambda: [build(of_one) for of_one in turns])
        group = group_of(samples, turn)
        store_s, _ = best(lambda: segment.append(group, "train"))
        on_disk = segment.size / REPEATS
    card_s, card = best(lambda: card_of(group, Address(segment=1, record=0)))
    put_s, kept = best(lambda: put(samples_of(group)))
    driver_s, parts = best(lambda: driver([card]))
    rank_s, _ = best(lambda: [lay_out_rank(part, lambda place: get(kept)) for part in parts])
    parts_s = (build_s, card_s, store_s, put_s, driver_s, rank_s)
    times = " | ".join(f"{seconds / count * 1e6:.3f}" for seconds in (*parts_s, sum(parts_s)))
    sizes = f"{len(pickle.dumps(card, 5)):,} | {on_disk / count:.1f} | {sum(map(len, kept)) / count:.1f}"
    return f"| {tokens:,} | {times} | {sizes} |"


def driver(cards: Sequence[Card]) -> list[Any]:
    """All that the driver does with a step's cards."""
    for _ in range(2):
        cards = pickle.loads(pickle.dumps(cards, 5))
    staleness(cards, 7)
    rollout_metrics(cards)
    rows, _ = train_rows(cards, GrpoSettings(name="grpo"), AggregationConfig())
    return plan(cards, rows, 2, max(len(row) for row in rows) * MEMBERS, share_prefixes=True)


def put(samples: list[Sample]) -> list[bytes]:
    """The samples as the object store holds them: a small pickle, and each array once."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(samples, 5, buffer_callback=buffers.append)
    return [content, *(buffer.raw().tobytes() for buffer in buffers)]


def get(kept: list[bytes]) -> list[Sample]:
    samples: list[Sample] = pickle.loads(kept[0], buffers=kept[1:])
    return samples


def planning(count: int, prefix_share: float, share_prefixes: bool) -> str:
    """The second table's row for so many rows, in groups of 16."""
    random = np.random.default_rng(0)
    cards = [long_tailed(number, prefix_share, random) for number in range(count // 16)]
    rows, _ = train_rows(cards, GrpoSettings(name="grpo"), AggregationConfig())
    start = time.perf_counter()
    parts = plan(cards, rows, RANKS, TOKEN_BUDGET, share_prefixes=share_prefixes)
    seconds = time.perf_counter() - start
    loads = [part.tokens for part in parts]
    filled = sum(loads) / (TOKEN_BUDGET * sum(len(part.micro_batches) for part in parts))
    told = f"{count:,} | {prefix_share:.0%} | {'yes' if share_prefixes else 'no'} | {seconds:.2f} | {sum(loads):,}"
    return f"| {told} | {filled:.3f} | {max(loads) * RANKS / sum(loads) - 1:.2%} |"


def long_tailed(number: int, prefix_share: float, random: np.random.Generator) -> Card:
    lengths = random.lognormal(np.log(512), 1.0, 16).clip(16, TOKEN_BUDGET // 2).astype(int)
    prefix = int(prefix_share * lengths.mean())
    members = []
    for rank, length in enumerate(np.maximum(lengths, prefix + 1).tolist()):
        sample = SampleCard(
            length=length,
            trained_tokens=length - prefix - (prefix == 0),
            versions={0: length - prefix - (prefix == 0)},
            parent=rank - 1 if prefix and rank else None,
            shared=prefix if rank else 0,
            rank=rank,
        )
        members.append(member_card(sample, float(rank % 2)))
    return Card(
        id=f"g{number}", task_id="t", source="s", trajectories=tuple(members), address=Address(segment=1, record=number)
    )


def member_card(sample: SampleCard, reward: float) -> TrajectoryCard:
    return TrajectoryCard(
        stop_reason="answered",
        outcome="scored",
        reward=reward,
        success=True,
        reward_parts={},
        metrics={},
        turns=Turns([Turn(sample=0, start=sample.length - sample.trained_tokens, stop=sample.length)]),
        samples=(sample,),
        error=None,
    )


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


def group_of(samples: list[Sample], turn: int) -> Group:
    trajectories = tuple(
        Trajectory(
            task_id="t",
            group_id="g",
            samples=(sample,),
            messages=(),
            stop_reason="answered",
            outcome="scored",
            reward=float(number % 2),
            success=True,
            turns=tuple(
                Turn(sample=0, start=start + turn // 2, stop=start + turn) for start in range(0, len(sample), turn)
            ),
            metrics={"turns": float(len(sample) // turn), "generate_s": 1.0, "environment_s": 1.0, "reward_s": 0.1},
        )
        for number, sample in enumerate(samples)
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

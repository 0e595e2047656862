"""The engine alone and the trainer alone, one thread each, at the same time: what no loop around both can beat.

Both do the work of `benchmarks.grpo_work` for SECONDS, in a process each, so that each finds the other core as busy as
in a run, and with the other's kind of work. The engine has a step's completions running all the time. The trainer
trains the same step again and again, from samples of the same lengths. Speeds are sampled tokens a second.

    .venv/bin/python -m benchmarks.floor ["64 long-tailed"]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.grpo_work import GROUP, MEAN, WORKS, Work, make_model, prompts, write_recipe
from tests.ports import free_port

SECONDS = 15.0


def measure(model: Path, work: Work, folder: Path) -> tuple[float, float]:
    """Sampled tokens a second of the engine alone and of the trainer alone."""
    sides = ("engine", "trainer")
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "TORCH_COMPILE_DISABLE": "1",  # as in a run, where it is set before torch is imported
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor", "--side", side, str(model), work.name, str(folder)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for side in sides
    ]  # fmt: skip
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"{sides} ended with {codes}; run one with --side to see why")
    engine, trainer = (json.loads((folder / f"{side}.json").read_text()) for side in sides)
    return engine, trainer


def meet(side: str, folder: Path) -> None:
    """Wait until the other side is ready, too."""
    (folder / f"{side}.ready").touch()
    while not all((folder / f"{other}.ready").exists() for other in ("engine", "trainer")):
        time.sleep(0.01)


async def engine_alone(model: Path, work: Work, folder: Path) -> None:
    from rl.recipe.load import load_recipe
    from rollout.chat.config import RendererSettings
    from rollout.chat.registry import load_chat
    from rollout.engine.inference import Inference
    from rollout.engine.settings import EngineSettings
    from rollout.transfer.config import TransportSettings
    from rollout.types import SamplingParams

    recipe = load_recipe(write_recipe(model, work, folder))
    settings = EngineSettings(
        model_path=str(model),
        dtype="float32",
        config=recipe.inference,
        transport=TransportSettings(name="shm"),
        cache_policy="recompute",
        max_context=recipe.rollout.max_context,
        device="cpu",
        seed=0,
        load_format="auto",
    )
    engine = await Inference.start(settings, version=0)
    stops = load_chat(RendererSettings(name="glm-4.5"), model).stop_token_ids
    prompt, sampled, measuring = prompts(model), 0, True

    async def group(place: int) -> None:
        number = place
        while measuring:
            await asyncio.gather(*(member(f"{number}/{i}", prompt(number), number * GROUP + i) for i in range(GROUP)))
            number += work.completions // GROUP

    async def member(name: str, tokens: list[int], seed: int) -> None:
        nonlocal sampled
        sampling = SamplingParams(max_tokens=work.tokens, stop_token_ids=stops, seed=seed)
        completion = await engine.generate(name, tokens, sampling)
        sampled += len(completion.token_ids)

    groups = [asyncio.create_task(group(place)) for place in range(work.completions // GROUP)]
    await asyncio.sleep(2.0)
    await asyncio.to_thread(meet, "engine", folder)
    before, start = sampled, time.perf_counter()
    await asyncio.sleep(SECONDS)
    speed = (sampled - before) / (time.perf_counter() - start)
    measuring = False
    await asyncio.gather(*groups)
    await engine.shutdown()
    (folder / "engine.json").write_text(json.dumps(speed))


def trainer_alone(model: Path, work: Work, folder: Path) -> None:
    from benchmarks.trajectory_path import member_card
    from rl.advantages.rows import train_rows
    from rl.batch.plan import build, plan
    from rl.driver.specs import policy_stage
    from rl.learner.learner import Learner
    from rl.losses.objective import make_objective
    from rl.recipe.load import load_recipe
    from rollout.cards import Card, SampleCard
    from rollout.types import OBSERVED, Address, Sample

    recipe = load_recipe(write_recipe(model, work, folder))
    stage = policy_stage(recipe)
    learner = Learner(str(model), recipe.model, recipe.trainer, stage.optimizer, 0, "cpu")
    random, prompt = np.random.default_rng(0), prompts(model)
    groups: list[list[Sample]] = []
    cards: list[Card] = []
    for number in range(work.completions // GROUP):
        common, members = prompt(number), []
        for _ in range(GROUP):
            length = min(int(random.geometric(1 / MEAN)), work.tokens) if work.long_tailed else work.tokens
            parts = [len(common), length]
            members.append(
                Sample(
                    token_ids=np.concatenate([common, random.integers(0, 900, length)]).astype(np.int32),
                    loss_mask=np.repeat([0, 1], parts).astype(np.uint8),
                    logprobs=np.repeat([0, -5], parts).astype(np.float32),
                    versions=np.repeat([OBSERVED, 0], parts).astype(np.int32),
                )
            )
        groups.append(members)
        tree = [
            SampleCard(
                length=len(sample), trained_tokens=len(sample) - len(common), versions={0: len(sample) - len(common)},
                parent=rank - 1 if rank else None, shared=len(common) if rank else 0, rank=rank,
            )
            for rank, sample in enumerate(members)
        ]  # fmt: skip
        cards.append(
            Card(
                id=f"g{number}", task_id="t", source="s", address=Address(segment=1, record=number),
                trajectories=tuple(member_card(sample, float(sample.rank % 2)) for sample in tree),
            )
        )  # fmt: skip
    rows, _ = train_rows(cards, recipe.advantage, recipe.aggregation)
    (part,) = plan(cards, rows, 1, recipe.trainer.token_budget, share_prefixes=True)
    objective = make_objective(stage.objective, 0)

    def step() -> None:
        batches = build(part, lambda place: groups[place.address.record])
        learner.train_step(batches, objective, 1e-9)

    for _ in range(3):
        step()
    meet("trainer", folder)
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        step()
        done += 1
    tokens = sum(sample.trained_tokens for members in groups for sample in members)
    (folder / "trainer.json").write_text(json.dumps(done * tokens / seconds))
    learner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="64", help=f"one of: {', '.join(WORKS)}")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, model, name, folder = options.side
        if side == "engine":
            asyncio.run(engine_alone(Path(model), WORKS[name], Path(folder)))
        else:
            trainer_alone(Path(model), WORKS[name], Path(folder))
        return
    with tempfile.TemporaryDirectory(prefix="floor-", dir="/tmp") as place:
        engine, trainer = measure(make_model(Path(place), WORKS[options.work]), WORKS[options.work], Path(place))
    print(f"engine alone {engine:,.0f} tokens/s, trainer alone {trainer:,.0f} tokens/s")


if __name__ == "__main__":
    main()

"""A weight push from two trainer ranks, which gather every bucket, to an engine that samples.

    .venv/bin/python -m benchmarks.push_ranks [--model smollm2|moe] [--ranks 2] [--rounds 5] [--verify]

The real ranks of a run (ZeRO stage 3, experts split over them) and a real engine, each a Ray actor with one thread;
the engine runs 8 requests all the time. Seconds, medians over rounds, the first push left out:

    gather   all buckets gathered by all ranks, and nothing else
    floor    that, one copy of all weights in memory (shm) or their bytes over gloo as measured in this run, and for a
             verified push the digests alone
    arrive, pause, push, read   as in benchmarks.push
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from benchmarks.push import MIB, NAMES, REQUESTS, Engines, copy_floor, gloo_floor, make_model, read, start_engine
from rl.driver import trainer
from rl.driver.specs import policy_stage, trainer_spec
from rl.driver.trainer import TrainerActor
from rl.paths import REPOSITORY
from rl.recipe.load import load_recipe
from rl.rundir.directory import RunDir
from rollout.store.shared import RunFolder
from rollout.transfer.bucket import digest
from rollout.types import SamplingParams


class Rank(TrainerActor):
    """A trainer rank that also measures."""

    def gather(self) -> float:
        """Seconds in which the ranks gather all buckets."""
        start = time.monotonic()
        for _ in self._learner.weights.buckets(int(self._spec.weight_sync.bucket_mb * MIB)):
            pass
        return time.monotonic() - start

    def timed(self, version: int, handles: Mapping[int, ActorHandle], verify: bool) -> dict[str, float]:
        """Push, and return the seconds of its parts on rank 0."""
        engines = Engines(handles)
        trainer.RayEngines = lambda handles: engines  # type: ignore[assignment,misc]
        start = time.monotonic()
        report = self.publish(version, handles, verify)
        end = time.monotonic()
        if report is None:
            return {}
        if report.readable:
            self.finish_read_back(list(handles)).check()
        return {
            "arrive": engines.paused_at - start,
            "pause": report.paused_s,
            "push": end - start,
            "read": time.monotonic() - end,
        }


def start_ranks(path: Path, folder: Path, ranks: int, expert_parallel: int, transport: str) -> list[ActorHandle]:
    """The ranks of a run that trains this model, joined and built."""
    recipe = load_recipe(
        "recipes/quickstart.yaml",
        [
            f"model.path={path}",
            "model.renderer=glm-4.5",
            "sandbox=unsafe-none",
            "run.device=cpu",
            f"trainer.ranks={ranks}",
            f"trainer.expert_parallel={expert_parallel}",
            f"weight_sync.transport.name={NAMES[transport]}",
        ],
    )
    spec = trainer_spec(recipe, RunFolder(path=str(folder), run_id="push"), "cpu")
    actor = ray.remote(Rank).options(num_cpus=0, max_concurrency=1)
    actors = [actor.remote(f"trainer-{rank}", str(folder / "logs"), rank, spec) for rank in range(ranks)]
    address = ray.get(actors[0].address.remote())
    ray.get([rank.join.remote(*address) for rank in actors])
    ray.get([rank.build.remote(str(path), policy_stage(recipe)) for rank in actors])
    return actors


def measure(ranks: list[ActorHandle], engine: Any, rounds: int, verify: bool) -> dict[str, float]:
    """Gather and push so often."""
    found: dict[str, list[float]] = {"gather": [], "arrive": [], "pause": [], "push": [], "read": []}
    ray.get([rank.timed.remote(0, {0: engine}, verify) for rank in ranks])
    for version in range(1, rounds + 1):
        found["gather"].append(max(ray.get([rank.gather.remote() for rank in ranks])))
        sampling = SamplingParams(max_tokens=1500, temperature=1.0)
        running = [engine.generate.remote(f"{version}-{i}", [5, 6, 7 + i], sampling) for i in range(REQUESTS)]
        time.sleep(1.0)
        for name, seconds in ray.get([rank.timed.remote(version, {0: engine}, verify) for rank in ranks])[0].items():
            found[name].append(seconds)
        for request in running:
            ray.cancel(request)
        time.sleep(1.0)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("smollm2", "moe"), default="smollm2")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verify", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory() as temporary:
        path = make_model(asked.model, Path(temporary))
        weights = read(path)
        start = time.perf_counter()
        for _, tensor in weights.tensors if asked.verify else ():
            digest(tensor)
        hashing = time.perf_counter() - start if asked.verify else 0.0
        floors = {"shm": copy_floor(weights), "gloo": gloo_floor(weights.nbytes, 64 * MIB)}
        print(f"{asked.model}: {weights.nbytes / MIB:.0f} MiB, {asked.ranks} ranks, {asked.rounds} rounds")
        columns = ("transport", "gather", "floor", "arrive", "÷ floor", "pause", "push", "read")
        print(f"| {' | '.join(columns)} |\n|{len(columns) * '---|'}")
        del weights
        for transport, moved in floors.items():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", num_cpus=2)
            folder = Path(temporary) / transport
            with RunDir.open(folder, resume="never", run_id="push"):
                experts = asked.ranks if asked.model == "moe" else 1
                ranks = start_ranks(path, folder, asked.ranks, experts, transport)
                row = measure(ranks, start_engine(path, transport, folder), asked.rounds, asked.verify)
            ray.shutdown()
            floor = row["gather"] + moved + hashing
            print(
                f"| {transport} | {row['gather']:.3f} | {floor:.3f} | {row['arrive']:.3f} "
                f"| {row['arrive'] / floor:.2f} | {row['pause']:.3f} | {row['push']:.3f} | {row['read']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

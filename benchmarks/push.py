"""A weight push to an engine that samples: how long it takes, and how long the engine stands still.

    .venv/bin/python -m benchmarks.push [--model smollm2|moe] [--rounds 5] [--transports shm gloo streamed]

A real engine in a Ray actor of its own, one thread, runs 8 requests all the time; this process pushes like trainer rank
0 of a run with one rank, through rl.weights.publish. Seconds, medians over rounds, the first push left out:

    floor    shm: one copy of all weights in memory; gloo: their bytes over what gloo broadcasts between two processes
             in this run, in buckets of the same size
    arrive   from the start of the push until the engine has the whole version, sampling on
    apply    the same version loaded by an engine that is idle, alone
    pause    how long the engine stood still in the push
    push     all of it; of a verified one, what comes before the read-back
    read     the read-back, after which the push returns, while the engine samples

`streamed` is the way without a stage, as before 2026-11-30 and as with nccl and ipc: every bucket is loaded into the
engine that stands still. `--verify` compares digests, and adds the time of the digests alone to the floor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from rl.driver.trainer import RayEngines
from rl.paths import REPOSITORY
from rl.weights.publish import PublishReport, publish
from rl.weights.read_back import ReadBack
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, InferenceActor
from rollout.engine.config import InferenceConfig
from rollout.engine.settings import EngineSettings
from rollout.ports import listen
from rollout.transfer.bucket import Member, Sender, SenderPlace, describe, digest
from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.transfer.gloo import GlooGroup, GlooRendezvous
from rollout.transfer.registry import make_transport
from rollout.types import SamplingParams, WeightSpec

ADDRESS = "127.0.0.1"
STREAMED = "tests.rollout.engine.streamed:StreamedShm"
NAMES = {"shm": "shm", "gloo": "gloo", "streamed": STREAMED}
REQUESTS = 8
MIB = 2**20


class Weights:
    """A source of plain tensors, whose gather costs nothing."""

    def __init__(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        self.tensors = list(tensors)
        self.nbytes = sum(tensor.nbytes for _, tensor in tensors)

    def manifest(self) -> list[WeightSpec]:
        return [describe(name, tensor) for name, tensor in self.tensors]

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        bucket: list[tuple[str, Tensor]] = []
        room = 0
        for name, tensor in self.tensors:
            if bucket and tensor.nbytes > room:
                yield bucket
                bucket = []
            room = max_bytes - tensor.nbytes if not bucket else room - tensor.nbytes
            bucket.append((name, tensor))
        yield bucket


class Engines(RayEngines):
    """Engines that note when they were told to pause, which is when they have the whole version."""

    paused_at = 0.0

    def start(self, method: str, *args: Any) -> list[Any]:
        if method == "pause":
            self.paused_at = time.monotonic()
        return super().start(method, *args)


def make_model(kind: str, folder: Path) -> Path:
    """Write a random model of SmolLM2-135M's sizes, or a GLM-4.5-style MoE of 200 M parameters."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any
    if kind == "smollm2":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048,
            )
        )  # fmt: skip
    else:
        model = Glm4MoeForCausalLM(
            Glm4MoeConfig(
                vocab_size=32768, hidden_size=512, intermediate_size=1536, moe_intermediate_size=512,
                num_hidden_layers=9, num_attention_heads=8, num_key_value_heads=2, head_dim=64, n_routed_experts=24,
                num_experts_per_tok=4, n_shared_experts=1, first_k_dense_replace=1, use_qk_norm=True,
                tie_word_embeddings=False, max_position_embeddings=2048,
            )
        )  # fmt: skip
    model.float().save_pretrained(folder / kind)
    return folder / kind


def read(path: Path) -> Weights:
    from safetensors.torch import load_file

    found = [pair for file in sorted(path.glob("*.safetensors")) for pair in load_file(file).items()]
    return Weights([(name, tensor.clone()) for name, tensor in found])


def copy_floor(weights: Weights) -> float:
    """Seconds of one copy into memory that is there already."""
    targets = [torch.empty_like(tensor) for _, tensor in weights.tensors]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for target, (_, tensor) in zip(targets, weights.tensors, strict=True):
            target.copy_(tensor)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def gloo_floor(nbytes: int, bucket: int) -> float:
    """Seconds of a broadcast of so many bytes from this process to another."""
    listening = listen(ADDRESS)
    meet = GlooRendezvous(address=ADDRESS, port=listening.getsockname()[1], replicas=(0,), timeout_s=60)
    other = subprocess.Popen([sys.executable, "-m", "benchmarks.push", "--echo", str(meet.port)], cwd=REPOSITORY)
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        ADDRESS, meet.port, None, True, timedelta(seconds=60), False, master_listen_fd=listening.detach()
    )
    group, data = GlooGroup(store, 0, meet, ADDRESS), torch.zeros(bucket, dtype=torch.uint8)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        group.broadcast([("", data)])
        times.append(time.perf_counter() - start)
    group.broadcast([("", torch.ones(1, dtype=torch.uint8))])
    other.wait(60)
    return statistics.median(times[2:]) * nbytes / bucket


def echo(port: int) -> None:
    """The other process of `gloo_floor`."""
    meet = GlooRendezvous(address=ADDRESS, port=port, replicas=(0,), timeout_s=60)
    store = torch.distributed.TCPStore(ADDRESS, port, None, False, timedelta(seconds=60))  # type: ignore[attr-defined]
    group, data = GlooGroup(store, 1, meet, ADDRESS), torch.zeros(64 * MIB, dtype=torch.uint8)
    for _ in range(12):
        group.broadcast([("", data)])
    group.broadcast([("", torch.zeros(1, dtype=torch.uint8))])


def start_engine(path: Path, transport: str, logs: Path) -> Any:
    actor = ray.remote(concurrency_groups=ENGINE_CONCURRENCY_GROUPS)(InferenceActor)
    engine = actor.options(num_cpus=0, max_concurrency=100).remote(f"engine-{transport}", str(logs), 1, 0)
    settings = EngineSettings(
        model_path=str(path),
        dtype="float32",
        config=InferenceConfig(cpu_threads=1, engine_args={"enforce_eager": True}),
        transport=TransportSettings(name=NAMES[transport]),
        cache_policy="recompute",
        max_context=2048,
        device="cpu",
        seed=0,
    )
    ray.get(engine.start.remote(settings))
    return engine


def measure(transport: str, path: Path, weights: Weights, rounds: int, verify: bool, logs: Path) -> dict[str, float]:
    """Push so often, and once more to the idle engine."""
    sync = WeightSyncConfig(transport=TransportSettings(name=NAMES[transport]))
    sender = make_transport(sync.transport).sender(SenderPlace(run_id="push", device="cpu", address=ADDRESS, sync=sync))
    sender.send_to((Member(replica=0, process="engine"),))
    engine = start_engine(path, transport, logs)
    engines = Engines({0: engine})
    found: dict[str, list[float]] = {"arrive": [], "pause": [], "push": [], "apply": [], "read": []}
    publish(weights, 0, sync, engines, sender, verify)
    for version in range(1, rounds + 1):
        sampling = SamplingParams(max_tokens=1500, temperature=1.0)
        running = [engine.generate.remote(f"{version}-{i}", [5, 6, 7 + i], sampling) for i in range(REQUESTS)]
        time.sleep(1.0)
        start = time.monotonic()
        report = publish(weights, version, sync, engines, sender, verify)
        assert report is not None
        found["push"].append(time.monotonic() - start)
        found["pause"].append(report.paused_s)
        found["arrive"].append(engines.paused_at - start)
        found["read"].append(read_back(engines, report, sync))
        for request in running:
            ray.cancel(request)
        time.sleep(1.0)
        if sender.stages:
            found["apply"].append(apply_alone(engine, weights, sender, version, sync))
    ray.kill(engine)
    return {name: statistics.median(values) if values else float("nan") for name, values in found.items()}


def read_back(engines: Engines, report: PublishReport, sync: WeightSyncConfig) -> float:
    """Seconds in which the engine compares what it computes with, while it samples and nobody waits."""
    start = time.monotonic()
    if report.readable:
        reading = ReadBack(report.version, engines, report.readable, sync.deadline_s(report.bytes))
        reading.finish(engines.numbers).check()
    return time.monotonic() - start


def apply_alone(engine: Any, weights: Weights, sender: Sender, version: int, sync: WeightSyncConfig) -> float:
    """Seconds of loading a version that has arrived, into an engine with nothing to do."""
    call = engine.call.remote
    ray.get(call("begin_update", version, weights.manifest()))
    for bucket in weights.buckets(int(sync.bucket_mb * MIB)):
        ray.get(call("load_bucket", sender.send(bucket)))
    ray.get(call("pause"))
    start = time.monotonic()
    ray.get(call("finish_update", version))
    taken = time.monotonic() - start
    ray.get(call("resume"))
    sender.rest()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("smollm2", "moe"), default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--transports", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--echo", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.echo is not None:
        echo(asked.echo)
        return
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = make_model(asked.model, folder)
        weights = read(path)
        hashing = 0.0
        if asked.verify:
            start = time.perf_counter()
            for _, tensor in weights.tensors:
                digest(tensor)
            hashing = time.perf_counter() - start
        floors = {"shm": copy_floor(weights), "gloo": gloo_floor(weights.nbytes, 64 * MIB)}
        floors["streamed"] = floors["shm"]
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", num_cpus=2)
        print(f"{asked.model}: {weights.nbytes / MIB:.0f} MiB in {len(weights.tensors)} tensors, {asked.rounds} rounds")
        columns = ("transport", "floor", "arrive", "÷ floor", "apply", "pause", "÷ apply", "push", "read")
        print(f"| {' | '.join(columns)} |\n|{len(columns) * '---|'}")
        for transport in asked.transports:
            row = measure(transport, path, weights, asked.rounds, asked.verify, folder)
            floor = floors[transport] + hashing
            print(
                f"| {transport} | {floor:.3f} | {row['arrive']:.3f} | {row['arrive'] / floor:.2f} | {row['apply']:.3f} "
                f"| {row['pause']:.3f} | {row['pause'] / row['apply']:.2f} | {row['push']:.3f} "
                f"| {row['read']:.3f} |",
                flush=True,
            )
        ray.shutdown()


if __name__ == "__main__":
    main()

"""Ray actor shells around the learning side: one trainer rank, and the engines as rank 0 calls them.

The shell gives its process a log, joins torch.distributed and forwards to `rl.learner.learner` and
`rl.weights.publish`. Heavy imports happen inside the methods, after the environment of the process is set.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Literal

import psutil
import ray
from ray.actor import ActorHandle

from rl.batch.micro_batch import PackedBatch
from rl.config import Recipe
from rl.weights.publish import PublishReport, publish
from rollout.actors.process import enter_role
from rollout.types import Device

Stage = Literal["sft", "rl"]


class RayEngines:
    """`rl.weights.publish.Engines` over actor handles."""

    def __init__(self, replicas: Sequence[ActorHandle]) -> None:
        self._replicas = replicas

    def start(self, method: str, *args: Any) -> list[Any]:
        return [replica.call.remote(method, *args) for replica in self._replicas]

    def wait(self, started: list[Any], timeout_s: float) -> list[Any]:
        return ray.get(started, timeout=timeout_s)


class TrainerActor:
    """One trainer rank: a DeepSpeed engine shard, its optimizer and its RNG."""

    def __init__(self, role: str, logs_dir: str, rank: int, recipe: Recipe, run_id: str, device: Device) -> None:
        enter_role(role, logs_dir, recipe.trainer.cpu_threads)
        self._rank, self._recipe, self._run_id, self._device = rank, recipe, run_id, device
        self._learner: Any = None
        self._sender: Any = None

    def ping(self) -> None:
        """Answers when this rank is idle."""

    def address(self) -> tuple[str, int]:
        """Where this rank can host the rendezvous."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def join(self, address: str, port: int) -> None:
        """Set what torch.distributed reads, and pay for the imports."""
        os.environ.update(
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
            RANK=str(self._rank),
            WORLD_SIZE=str(self._recipe.trainer.ranks),
            LOCAL_RANK="0",
        )
        if self._device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import rl.learner.learner  # noqa: F401

    def build(self, model_path: str, stage: Stage) -> None:
        """A fresh learner over the weights in `model_path`, with a fresh optimizer."""
        from rl.learner.learner import Learner

        self.close()
        recipe = self._recipe
        assert stage == "rl" or recipe.sft is not None
        optimizer = recipe.sft.optimizer if stage == "sft" and recipe.sft is not None else recipe.trainer.optimizer
        self._learner = Learner(
            model_path=model_path,
            model_cfg=recipe.model,
            trainer_cfg=recipe.trainer,
            optimizer_cfg=optimizer,
            seed=recipe.run.seed,
            device=self._device,
        )

    def train(
        self, batches: Sequence[PackedBatch], stage: Stage, denominator: float, lr: float, version: int
    ) -> dict[str, float]:
        """One optimizer step. Returns the learner's statistics, the same on every rank, and this rank's `rss_mb`."""
        from rl.losses.registry import policy_objective, sft_objective

        temperature = self._recipe.rollout.sampling.temperature if stage == "rl" else 1.0
        objective = policy_objective(self._recipe.algorithm, version) if stage == "rl" else sft_objective()
        stats: dict[str, float] = self._learner.train_step(
            list(batches), objective, denominator, lr=lr, temperature=temperature
        )
        return stats | {"rss_mb": psutil.Process().memory_info().rss / 2**20}

    def publish(self, version: int, replicas: Sequence[ActorHandle], verify: bool) -> PublishReport | None:
        engines = RayEngines(replicas) if self._rank == 0 else None
        if self._rank == 0 and self._sender is None:
            from rollout.transfer.registry import make_sender

            self._sender = make_sender(
                self._recipe.weight_sync,
                self._run_id,
                self._device,
                replicas=len(replicas),
                tensor_parallel=self._recipe.inference.tensor_parallel,
                address=ray.util.get_node_ip_address(),
            )
        return publish(self._learner.weights, version, self._recipe.weight_sync, engines, self._sender, verify)

    def save(self, directory: str) -> None:
        self._learner.save(directory)

    def load(self, directory: str) -> None:
        self._learner.load(directory)

    def export(self, directory: str) -> None:
        self._learner.export_hf(directory)

    def close(self) -> None:
        if self._learner is not None:
            self._learner.close()
            self._learner = None
        if self._sender is not None:
            self._sender.close()
            self._sender = None

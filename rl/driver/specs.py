"""Extract from the recipe, as plain data, what each process of a run needs."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import Recipe
from rl.driver.layout import Wanted
from rl.learner.config import LoraConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rl.losses.config import SUPERVISED, ObjectiveSpec
from rl.recipe.adapters import pushes_adapter
from rollout.actors.worker import WorkerSpec
from rollout.buffer.buffer import BufferSpec
from rollout.engine.settings import EngineSettings
from rollout.lora.arguments import AdapterSettings, Scale
from rollout.store.config import TrajectoriesConfig
from rollout.store.shared import RunFolder
from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.transfer.registry import resolve_transport
from rollout.types import Device, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """The settings of a trainer rank that all stages share. `widths` are the GPUs of each engine, and
    `pushes_adapter` says whether they get adapters instead of whole weights."""

    model: ModelConfig
    lora: LoraConfig | None
    trainer: TrainerConfig
    weight_sync: WeightSyncConfig
    pushes_adapter: bool
    widths: tuple[int, ...]
    placement: Placement
    transport: TransportSettings
    seed: int
    trajectories: TrajectoriesConfig
    folder: RunFolder
    device: Device


def transport_of(recipe: Recipe, device: Device, machines: int) -> TransportSettings:
    """How weights travel in a run on so many machines."""
    expected = machines + (1 if recipe.inference.late else 0)
    return resolve_transport(recipe.weight_sync, device, recipe.placement, expected)


def wanted(recipe: Recipe, device: Device, machines: int = 1, *, trains: bool = True) -> Wanted:
    """The actors of a run on this device, and so many machines; those of an evaluation where it does not train."""
    return Wanted(
        device=device,
        ranks=recipe.trainer.ranks if trains else 0,
        expert_parallel=recipe.trainer.expert_parallel,
        engines=recipe.inference.widths,
        workers=recipe.rollout.workers,
        buffer=trains,
        placement=recipe.placement if trains else "split",
        spread=not trains or transport_of(recipe, device, machines).name != "shm",
        late=recipe.inference.late,
    )


def trainer_spec(recipe: Recipe, folder: RunFolder, device: Device, machines: int = 1) -> TrainerSpec:
    return TrainerSpec(
        model=recipe.model,
        lora=recipe.lora,
        trainer=recipe.trainer,
        weight_sync=recipe.weight_sync,
        pushes_adapter=pushes_adapter(recipe),
        widths=recipe.inference.widths,
        placement=recipe.placement,
        transport=transport_of(recipe, device, machines),
        seed=recipe.run.seed,
        trajectories=recipe.trajectories,
        folder=folder,
        device=device,
    )


def engine_settings(recipe: Recipe, device: Device, machines: int = 1) -> list[EngineSettings]:
    """The settings of each engine."""
    return [_engine(recipe, width, device, machines) for width in recipe.inference.widths]


def _engine(recipe: Recipe, width: int, device: Device, machines: int) -> EngineSettings:
    return EngineSettings(
        model_path=recipe.model.path,
        dtype=recipe.model.dtype,
        config=recipe.inference.model_copy(update={"replicas": 1, "min_replicas": None, "tensor_parallel": width}),
        transport=transport_of(recipe, device, machines),
        cache_policy=recipe.weight_sync.cache_policy,
        max_context=recipe.rollout.max_context,
        device=device,
        seed=recipe.run.seed,
        adapters=adapter_settings(recipe),
        placement=recipe.placement,
    )


def adapter_settings(recipe: Recipe) -> AdapterSettings | None:
    """The adapters of an engine; None where it gets whole weights. With S = buffer.max_staleness it holds those of the
    S + 1 versions that may be trained, and the next one while it arrives."""
    if recipe.lora is None or not pushes_adapter(recipe):
        return None
    lora = recipe.lora
    return AdapterSettings(
        slots=recipe.buffer.max_staleness + 2,
        scale=Scale(rank=lora.rank, alpha=lora.alpha, rslora=lora.rslora),
        targets=None if lora.targets is None else tuple(target.rpartition(".")[2] for target in lora.targets),
    )


def worker_spec(recipe: Recipe, folder: RunFolder) -> WorkerSpec:
    assert recipe.model.renderer is not None, "rl.recipe.checks refuses a recipe without a chat format"
    return WorkerSpec(
        model_path=recipe.model.path,
        renderer=recipe.model.renderer,
        sources=recipe.tasks.sources,
        rollout=recipe.rollout,
        evaluation=recipe.eval,
        sandbox=recipe.sandbox,
        trajectories=recipe.trajectories,
        folder=folder,
        generate_timeout_s=recipe.inference.generate_timeout_s,
        seed=recipe.run.seed,
    )


def buffer_spec(recipe: Recipe) -> BufferSpec:
    return BufferSpec(
        tasks=recipe.tasks,
        max_staleness=recipe.buffer.max_staleness,
        groups_per_step=recipe.trainer.groups_per_step,
        failure_share_limit=recipe.rollout.failure_share_limit,
        seed=recipe.run.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage:
    """A stage's optimizer, and the objective that it minimises."""

    optimizer: OptimizerConfig
    objective: ObjectiveSpec


def supervised_stage(recipe: Recipe) -> TrainingStage:
    assert recipe.sft is not None
    return TrainingStage(optimizer=recipe.sft.optimizer, objective=SUPERVISED)


def policy_stage(recipe: Recipe) -> TrainingStage:
    return TrainingStage(
        optimizer=recipe.trainer.optimizer,
        objective=ObjectiveSpec(loss=recipe.loss, correction=recipe.correction, kl=recipe.kl),
    )

"""The whole recipe as one tree of strict typed models: every section is defined next to its owner."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializeAsAny

from rewards.sandbox.config import SandboxConfig
from rewards.strict import StrictModel
from rl.advantages.config import AdvantageSettings, AggregationConfig
from rl.corrections.config import CorrectionSettings
from rl.driver.config import RunConfig
from rl.learner.config import LoraConfig, ModelConfig, TrainerConfig
from rl.losses.config import KlConfig, LossSettings
from rl.observe.config import AlertsConfig, ShownConfig, TensorBoardConfig, WandbConfig
from rl.rundir.config import CheckpointConfig, Resume
from rl.sft.config import SftConfig
from rollout.agent.config import EvalConfig, RolloutConfig
from rollout.buffer.config import BufferConfig
from rollout.engine.config import InferenceConfig
from rollout.store.config import TrajectoriesConfig
from rollout.tasks.config import TasksConfig
from rollout.transfer.config import WeightSyncConfig


class Recipe(StrictModel):
    run: RunConfig = RunConfig()
    resume: Resume = "never"
    """auto: go on from the newest checkpoint in run.dir if there is one. must: refuse to start when there is none."""
    model: ModelConfig
    lora: LoraConfig | None = None
    """Train an adapter instead of the weights; null: the weights."""
    placement: Literal["split", "colocated"] = "split"
    """split: trainer and engines have devices of their own, and work at the same time.  colocated: they take turns on
    the trainer's devices; whoever waits has its memory on the host."""
    sandbox: SandboxConfig = SandboxConfig()
    tasks: TasksConfig
    sft: SftConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    inference: InferenceConfig = InferenceConfig()
    buffer: BufferConfig = BufferConfig()
    algorithm: str = "grpo"
    """A preset for the next three sections (rl.recipe.presets); each of them can be set by itself."""
    advantage: SerializeAsAny[AdvantageSettings]
    loss: SerializeAsAny[LossSettings]
    correction: SerializeAsAny[CorrectionSettings]
    kl: KlConfig | None = None
    """The distance to keep from the reference policy; null: none."""
    aggregation: AggregationConfig = AggregationConfig()
    trainer: TrainerConfig
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    wandb: WandbConfig = WandbConfig()
    tensorboard: TensorBoardConfig = TensorBoardConfig()
    shown: ShownConfig = ShownConfig()
    alerts: AlertsConfig = AlertsConfig()

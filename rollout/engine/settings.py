"""The settings of one engine as plain data, which the driver makes and the engine's process receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rollout.engine.config import InferenceConfig
from rollout.lora.arguments import AdapterSettings
from rollout.transfer.config import TransportSettings
from rollout.types import Device, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """All settings of one engine, which is the only one in `config`. `load_format` is vLLM's: dummy (random weights
    until the first push) or auto (the checkpoint's). With `adapters` only those are pushed after the first push. A
    `colocated` engine can sleep."""

    model_path: str
    dtype: str
    config: InferenceConfig
    transport: TransportSettings
    cache_policy: Literal["recompute", "keep"]
    max_context: int
    device: Device
    seed: int
    load_format: Literal["dummy", "auto"] = "dummy"
    adapters: AdapterSettings | None = None
    placement: Placement = "split"

    @property
    def width(self) -> int:
        """The workers of the engine, each with a GPU where there are some."""
        return self.config.widths[0]

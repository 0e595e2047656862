"""What one engine is built from, as plain data: the driver makes it, the engine's process gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rollout.engine.config import InferenceConfig
from rollout.transfer.config import TransportSettings
from rollout.types import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`load_format` is vLLM's: dummy (random weights, until the first push) or auto (the checkpoint's)."""

    model_path: str
    dtype: str
    config: InferenceConfig
    transport: TransportSettings
    cache_policy: Literal["recompute", "keep"]
    max_context: int
    device: Device
    seed: int
    load_format: Literal["dummy", "auto"] = "dummy"

"""Engines without vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rollout.actors.engine import InferenceActor
from rollout.engine.settings import EngineSettings


class Refusing(InferenceActor):
    """It cannot start once, where a file of its number, `refuse-0`, is in the folder of the logs, and does not end its
    start while there is a `hold-0`."""

    def __init__(self, role: str, logs_dir: str, threads: int, replica: int, gpus: list[str] | None = None) -> None:
        super().__init__(role, logs_dir, threads, replica, gpus)
        self._refusal, self._hold = (Path(logs_dir) / f"{what}-{replica}" for what in ("refuse", "hold"))

    async def start(self, settings: EngineSettings) -> None:
        if self._refusal.exists():
            self._refusal.unlink()
            raise ValueError("no room")
        while self._hold.exists():
            await asyncio.sleep(0.05)

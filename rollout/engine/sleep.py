"""How an engine leaves its device to the trainer for a while.

    pause → sleep → … the trainer's turn … → wake("weights") → a push → wake("kv_cache") → resume

The KV cache is dropped, and running requests have theirs computed again afterwards. Weights wait on the host or are
dropped, too, where a push of all of them will follow. vLLM's worker on CPU ignores both calls with a line in its log:
there the order holds, and nothing is freed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from rollout.contracts import EngineError
from rollout.engine.thread import engine_core

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Piece = Literal["weights", "kv_cache"]
KEEP, DROP = 1, 2
"""vLLM's sleep levels: with the weights copied to the host, and with the weights dropped."""


class AsleepError(EngineError):
    """A call that needs what the engine has given up, or one out of order."""


class Sleep:
    """What of one engine is asleep. `call` runs a command on the engine's thread, between two steps."""

    def __init__(self, call: Callable[[Callable[[LLMEngine], Any]], Awaitable[Any]]) -> None:
        self._call = call
        self._asleep: tuple[Piece, ...] = ()

    async def fall(self, *, keep_weights: bool) -> None:
        """Give up the KV cache and the weights. The engine must be paused. Does nothing while it is asleep."""
        if not self._asleep:
            await self._call(lambda llm: _fall(llm, KEEP if keep_weights else DROP))
            self._asleep = ("weights", "kv_cache")

    async def wake(self, piece: Piece) -> None:
        """Take a piece back: the weights first. Does nothing if it is awake.

        Raises:
            AsleepError: the KV cache was asked for before the weights.
        """
        if piece not in self._asleep:
            return
        if piece != self._asleep[0]:
            raise AsleepError(f"wake({piece}) comes after wake({self._asleep[0]})")
        await self._call(lambda llm: engine_core(llm).model_executor.wake_up(tags=[piece]))
        self._asleep = self._asleep[1:]

    def check(self, what: str, *needed: Piece) -> None:
        """Raise AsleepError if `what` needs a piece that is asleep."""
        if missing := [piece for piece in needed if piece in self._asleep]:
            raise AsleepError(f"{what}: the engine is asleep; wake its {' and '.join(missing)} first")


def _fall(llm: LLMEngine, level: int) -> None:
    llm.reset_prefix_cache(reset_running_requests=True)
    engine_core(llm).model_executor.sleep(level)

"""An engine that is called over pipes: `python -m tests.rollout.transfer.nccl_engine`.

Reads pickles from standard input: the engine's settings, then calls (method, *arguments), then None. Writes the pickled
result of each call to standard output.
"""

from __future__ import annotations

import asyncio
import pickle
import sys

from rollout.engine.inference import Inference


async def serve() -> None:
    engine = await Inference.start(pickle.load(sys.stdin.buffer))
    while (call := pickle.load(sys.stdin.buffer)) is not None:
        result = await getattr(engine, call[0])(*call[1:])
        sys.stdout.buffer.write(pickle.dumps(result))
        sys.stdout.buffer.flush()
    await engine.shutdown()


if __name__ == "__main__":
    asyncio.run(serve())

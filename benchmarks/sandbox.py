"""Executions and verdicts a second, against a bare `python -I -c` beside them.

    python -m benchmarks.sandbox [SECONDS]

For 1, 16 and 32 at once. A bare interpreter is started and waited for in the same way, by the same event loop. Rounds
of all kinds take turns, so that a machine that slows down slows all of them down.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from rewards.judge.judge import judge
from rewards.judge.rows import judged
from rewards.sandbox import bubblewrap
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Outcome, Sandbox, isolation

CODE = "print(6 * 7)"
TEXT = judged({"tests": "assert answer.strip() == '42'"})
CALLED = judged({"tests": "assert f(6) == 42", "entry_point": "f"})
ROUNDS = 5


async def bare() -> None:
    process = await asyncio.create_subprocess_exec(
        bubblewrap.interpreter(), "-I", "-c", CODE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b"42\n"


async def rate(work: Callable[[], Awaitable[None]], at_once: int, seconds: float) -> float:
    """How often a second `work` is done by so many callers."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await work()
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return done / (time.perf_counter() - started)


async def measure(seconds: float) -> None:
    print(f"{isolation(SandboxConfig())}; {os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    print("| at once | bare a second | execution | verdict on a text | verdict on a program |")
    print("|---|---|---|---|---|")
    for at_once in (1, 16, 32):
        sandbox = Sandbox(SandboxConfig(concurrency=at_once))

        async def execution(sandbox: Sandbox = sandbox) -> None:
            assert (await sandbox.run(CODE)).outcome is Outcome.OK

        async def text(sandbox: Sandbox = sandbox) -> None:
            assert (await judge(sandbox, TEXT, "42")).kind == "passed"

        async def program(sandbox: Sandbox = sandbox) -> None:
            assert (await judge(sandbox, CALLED, "def f(x): return x * 7")).kind == "passed"

        kinds = (bare, execution, text, program)
        rates = [[await rate(work, at_once, seconds) for work in kinds] for _ in range(ROUNDS)]
        base = statistics.median(row[0] for row in rates)
        ratios = [statistics.median(row[kind] / row[0] for row in rates) for kind in (1, 2, 3)]
        print(f"| {at_once} | {base:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |", flush=True)


if __name__ == "__main__":
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0))

"""The first step of every process of a run: send its output to a log that is named after its role."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXACT_PINNED = "pinned_max_round_threshold_mb:1"
"""PYTORCH_ALLOC_CONF of a process that keeps gigabytes in pinned host memory, which PyTorch would round up to powers of
two."""


def enter_role(role: str, logs_dir: str, threads: int = 1) -> Path:
    """Send this process's stdout and stderr to `<logs_dir>/<role>.log` and cap its math threads. Return the log's path.

    Call it before torch is imported, because OpenMP reads its thread count once. From then on SIGUSR1 writes all Python
    stacks to the log.
    """
    path = Path(logs_dir) / f"{role}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        # What a policy wrote is in errors and hence in logs, and `logging` lets an encoding error out. Ray's actors
        # have streams of Ray's own, in which a TextIOWrapper is wrapped.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return path


@contextmanager
def settling_in() -> Iterator[None]:
    """Import and build without Python's garbage collector, and keep it from what is there afterwards.

    It would look at every new module again and again: that is a quarter of the time of `import vllm`.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def relax_gc() -> None:
    """Make Python's garbage collector look at the objects of a process more rarely, and never at those there now.

    Call it when everything is imported and made. A worker holds many thousand messages and tokens arrays that are no
    garbage; looking at them again and again cost a third of its time at 10,000 trajectories (benchmarks/README.md). The
    driver gets a step's cards at once, some twenty objects for each trajectory, beside all modules of the trainer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)

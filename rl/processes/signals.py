"""The driver's handlers of SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rl.processes.tree import kill_tree

Handler = Callable[[int, FrameType | None], None]

AGAIN_S = 5.0
"""Longer than a busy machine takes to pass a signal on. A second Ctrl-C does not wait for it: the guardian has that."""


def install_signal_handlers(callback: Callable[[signal.Signals], None]) -> None:
    """Call `callback` in the main thread at the first SIGINT or SIGTERM. At the second one, kill all descendants and
    exit at once with 128 + signal. What comes within AGAIN_S of the first is the same request: SLURM signals every
    process of a job, so that the driver hears of it from SLURM and from its guardian."""
    _install(_handler(callback))


def _handler(callback: Callable[[signal.Signals], None]) -> Handler:
    first: float | None = None

    def handle(signum: int, _: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            callback(signal.Signals(signum))
        elif now - first > AGAIN_S:
            kill_tree(grace_s=0.0, deadline_s=3.0)
            os._exit(128 + signum)

    return handle


def _install(handler: Handler) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def signal_handlers_kept(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
    """`install_signal_handlers` around code that installs handlers of its own, as ray.init does: it cannot.

    Ray's handler for SIGTERM raises SystemExit wherever the main thread is. Raised inside a callback of the garbage
    collector or of a fork, that exception is lost; and raised where `logging` gives its lock back after a fork, it
    leaves the lock taken, so that Ray's own shutdown waits for ever. Its C++ part installs another one past Python,
    which ends the process by SIGABRT 3 s after SIGTERM, whatever it is doing. So ours are installed again at the end.
    """
    handler = _handler(callback)
    _install(handler)
    install = signal.signal
    signal.signal = _keep
    try:
        yield
    finally:
        signal.signal = install
        _install(handler)


def _keep(signalnum: int, handler: Any) -> Any:
    """`signal.signal` that installs nothing."""
    return signal.getsignal(signalnum)

"""The driver's handlers of SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from rl.processes.tree import kill_tree


def install_signal_handlers(callback: Callable[[signal.Signals], None]) -> None:
    """Call `callback` in the main thread at the first SIGINT or SIGTERM. At the second one, kill all descendants and
    exit at once with 128 + signal."""
    received = 0

    def handle(signum: int, _: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received > 1:
            kill_tree(grace_s=0.0, deadline_s=3.0)
            os._exit(128 + signum)
        callback(signal.Signals(signum))

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


@contextlib.contextmanager
def signal_handlers_kept(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
    """`install_signal_handlers` around code that installs handlers of its own, as ray.init does.

    A signal that reaches one of those handlers is not lost: Python also writes its number to a pipe of ours, and
    `callback` is called at the end. (Ray's handler for SIGTERM raises SystemExit. That exception is lost when it is
    raised inside a callback of the garbage collector or of a lock.)
    """
    install_signal_handlers(callback)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        install_signal_handlers(callback)
        signal.set_wakeup_fd(before)
        os.close(writer)
        with open(reader, "rb") as came:
            for signum in came.read():
                if signum in (signal.SIGINT, signal.SIGTERM):
                    callback(signal.Signals(signum))

"""The end of a driver that was asked to stop by a signal and does not.

Handlers written in Python run in the main thread, once it is back in Python. A call into C++ may keep it for ever:
creating an actor waits for Ray's GCS, which SLURM has signalled too, and which has ended. What C does at a signal comes
at once in any case, and it can wake another thread.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Self

AFTER_S = 20.0
"""5 s before the guardian kills the driver, and 10 s before SLURM does."""

_LAST_BYTE = bytes(1)
"""No signal has the number 0."""


class LastWord:
    """From entering until leaving it: AFTER_S after the first SIGINT or SIGTERM, a thread calls `say` with it and ends
    the process with 128 + signal. To be entered in the main thread; it hears of signals that have handlers in Python.
    """

    def __init__(self, say: Callable[[signal.Signals], None]) -> None:
        self._say = say
        self._left = threading.Event()
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="last-word", daemon=True)

    def __enter__(self) -> Self:
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a signal to a child is none to us
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        signal.set_wakeup_fd(-1)
        os.write(self._writer, _LAST_BYTE)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _listen(self) -> None:
        while (number := os.read(self._reader, 1)) != _LAST_BYTE:
            signum = signal.Signals(number[0])
            if signum in (signal.SIGINT, signal.SIGTERM) and not self._left.wait(AFTER_S):
                try:
                    self._say(signum)
                finally:
                    os._exit(128 + signum)

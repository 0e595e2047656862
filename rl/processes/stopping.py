"""Requests to stop a run: Ctrl-C, SIGTERM or the watchdog.

A request only sets a flag. The main thread raises `Stopped` when it next checks the flag.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_S = 0.05


class Stopped(RuntimeError):
    """The run was asked to stop. `code` is the exit code that says so."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class StopRequest:
    """The first request wins. It is raised as `Stopped` in the main thread: by `check`, at the end of `deferred`, or at
    once by `interrupt`.
    """

    def __init__(self) -> None:
        self._stopped: Stopped | None = None
        self._interruptible = False

    def request(self, reason: str, code: int) -> None:
        """Set the flag. Safe from other threads."""
        if self._stopped is None:
            self._stopped = Stopped(reason, code)

    def interrupt(self, reason: str, code: int) -> None:
        """`request` for a signal handler, which runs in the main thread. While that thread is `interruptible`, this
        raises `Stopped` at once, in the middle of whatever it does (reading a dataset, say).
        """
        self.request(reason, code)
        if self._interruptible:
            self.check()

    def check(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self._stopped is not None:
            raise self._stopped

    def expect(self, wait_s: float) -> None:
        """Wait at most this long for a request. The main thread's signal handlers run meanwhile."""
        end = time.monotonic() + wait_s
        while self._stopped is None and time.monotonic() < end:
            time.sleep(POLL_S)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Protect code that `interrupt` must not break into. Such code has to `check` by itself if it takes long."""
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before
            self.check()

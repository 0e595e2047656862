"""Views of a run that other programs show: wandb, TensorBoard. One that fails or hangs ends with one warning, and the
run goes on without it.

All of a sink's code, its imports included, runs in one background thread that reads a queue; the driver only puts items
into it. Only `finish` waits for the thread, up to a deadline. metrics.jsonl is the truth about a run; these are views
of it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl.observe.tracking.sampled import Chosen


class Sink(Protocol):
    """One view of a run. Its methods are called from one thread, and may fail or hang."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def trajectories(self, step: int, chosen: Sequence[Chosen]) -> None: ...

    def end(self, exit_code: int, summary: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class _End:
    exit_code: int
    summary: dict[str, Any]


_Item = Callable[[Sink], None] | _End


class Tracker:
    """Feeds one sink, which `open_sink` makes in the thread.

    `warn` is called at most once, from any thread. `deadline_s` bounds every single call into the sink: when one takes
    longer, the tracker gives up and drops all that comes later. `abandon` is then called, to end what the sink has
    started.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        *,
        warn: Callable[[str], None],
        deadline_s: float = 90.0,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._open_sink = open_sink
        self._warn = warn
        self._deadline_s = deadline_s
        self._abandon = abandon
        self._lock = threading.Lock()
        self._failed = False
        self._busy_since: float | None = time.monotonic()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        return not self._failed

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over a step's metrics and return at once."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._deadline_s:
            self._give_up(f"no answer for {self._deadline_s:.0f} s")
        kept = dict(values)
        self._put(lambda sink: sink.log(step, kept))

    def alert(self, title: str, text: str) -> None:
        """Hand over an alert, which wandb sends to those who asked for alerts, and return at once."""
        self._put(lambda sink: sink.alert(title, text))

    def trajectories(self, step: int, chosen: Sequence[Chosen]) -> None:
        """Hand over the trajectories of a step that are to be shown, and return at once."""
        self._put(lambda sink: sink.trajectories(step, chosen))

    def finish(self, exit_code: int, summary: Mapping[str, Any], *, deadline_s: float = 30.0) -> None:
        """End the view. Gives up after `deadline_s`. Idempotent."""
        if self.active and self._thread.is_alive():
            self._queue.put(_End(exit_code, dict(summary)))
            self._thread.join(deadline_s)
            if self._thread.is_alive():
                self._give_up(f"not finished after {deadline_s:.0f} s")

    def _put(self, item: _Item) -> None:
        if self.active:
            self._queue.put(item)

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self._failed:
                return
            self._failed = True
        self._warn(f"{self._name} is off for the rest of this run ({why}); metrics.jsonl goes on")
        self._abandon()

    def _work(self) -> None:
        try:
            sink = self._open_sink()
            self._busy_since = None
            while not self._failed:
                item = self._queue.get()
                self._busy_since = time.monotonic()
                if isinstance(item, _End):
                    return sink.end(item.exit_code, item.summary)
                item(sink)
                self._busy_since = None
        except (Exception, SystemExit) as error:
            # Everything is caught here, because a failure inside a sink must not stop a run.
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
        if self._failed:  # maybe while the sink was still being opened
            self._abandon()

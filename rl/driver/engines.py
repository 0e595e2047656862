"""The engines of a run: which of them serve, and how one that died comes back.

    starting ─▶ serving ─▶ dead ─▶ starting again ─▶ ready ─▶ serving
                                                      (it gets the version that the others hold, alone)

An engine dies with its process, or when vLLM fails in it. Completions that it had not finished are sampled by another
engine, or wait for this one (`rollout.actors.engine`). While it is missing, pushes go to the others. Which engine has
which number never changes, and neither does its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import ray
from ray.actor import ActorHandle

from rl.driver.cluster import Cluster
from rl.driver.waiting import ProcessFailure, Started
from rollout.engine.settings import EngineSettings
from rollout.types import Placement


class Engines:
    """Starts engines, and again those that died, at most `restarts` times in all. After that a death ends the run, as
    does one before all of them have started once. `tell` is told of each."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Sequence[EngineSettings],
        placement: Placement,
        restarts: int,
        tell: Callable[[str], None],
    ) -> None:
        self._cluster, self._calls, self._settings, self._tell = cluster, cluster.calls, settings, tell
        self._allowed = self._left = 0 if placement == "colocated" else restarts
        self._missing: set[int] = set()
        self._ready: set[int] = set()
        cluster.start_engines([own.config for own in settings], placement)
        starting = self._calls.start_each(list(self.all.values()), "start", [(own,) for own in settings])
        self._starting: Started = self._calls.background(starting)

    @property
    def all(self) -> dict[int, ActorHandle]:
        """Every engine's newest process, by its number."""
        return self._cluster.engines

    @property
    def serving(self) -> dict[int, ActorHandle]:
        """Those that hold weights, or will have them with the next push."""
        return {number: handle for number, handle in self.all.items() if number not in self._missing}

    @property
    def ready(self) -> list[int]:
        """Those that were started again and lack only weights."""
        return sorted(self._ready)

    @property
    def started(self) -> bool:
        """Whether all have started once."""
        return not self._starting

    @property
    def restarted(self) -> int:
        """How many were started again so far."""
        return self._allowed - self._left

    def wait(self) -> None:
        """Wait until all have started."""
        self._calls.wait(self._starting, "starting the inference engines")
        self._starting = {}
        for number in self.all:
            self._watch(number)

    def admit(self, number: int, handle: ActorHandle) -> None:
        """Count an engine among those that serve, because this process of it has got weights; unless it has died
        meanwhile."""
        if self.holds(number, handle):
            self._ready.discard(number)
            self._missing.discard(number)

    def holds(self, number: int, handle: ActorHandle) -> bool:
        """Whether this is still the engine's process."""
        return self.all[number] == handle

    def _watch(self, number: int) -> None:
        self._calls.spare(self._calls.start([self.all[number]], "watch"), partial(self._ended, number))

    def _ended(self, number: int, failure: ProcessFailure | None) -> None:
        """Start an engine again, whose process or vLLM has ended."""
        if failure is None:
            log = self._calls.log(f"engine-{number}")
            raise ProcessFailure(f"engine-{number} ended by itself; its log: {log}")
        if not self._left:
            raise failure
        self._left -= 1
        self._tell(f"{failure}; it is started again ({self.restarted} of inference.restarts={self._allowed})")
        dead = self.all[number]
        self._calls.remove(dead)
        ray.kill(dead)
        self._ready.discard(number)
        self._missing.add(number)
        again = self._calls.start([self._cluster.start_engine(number)], "start", self._settings[number])
        self._calls.spare(again, partial(self._answered, number))

    def _answered(self, number: int, failure: ProcessFailure | None) -> None:
        """Note that an engine has started again, or has failed in that."""
        if failure is not None:
            self._ended(number, failure)
            return
        self._ready.add(number)
        self._watch(number)

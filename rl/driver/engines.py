"""The engines of a run: which of them serve, how one that died comes back, and how one joins later.

    the first ones        starting ─▶ serving
    one that died         starting again ─▶ ready ─▶ serving
    without a machine     waiting for one ─▶ starting ─▶ ready ─▶ serving

One that is ready gets the version that the others hold, alone. An engine dies with its process, or when vLLM fails in
it. Completions that it had not finished are sampled by another engine, or wait for this one (`rollout.actors.engine`).
While it is missing, pushes go to the others. Which engine has which number never changes. Neither does its machine,
unless the run began without all of its engines (`inference.min_replicas`) and the machine has left the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import ray
from ray.actor import ActorHandle

from rl.driver.cluster import Cluster
from rl.driver.waiting import ProcessFailure, Started
from rollout.engine.settings import EngineSettings
from rollout.types import Placement

LOOK_S = 3.0
"""How often a machine is looked for, for engines that have none."""
BEGIN_S = 120.0
"""How long the process of an engine may take to begin on a machine that seemed to have room. Ray waits for ever where
another job has taken the room meanwhile."""


class Engines:
    """Starts engines, and again those that died, at most `restarts` times in all. After that a death ends the run, as
    does one before the first ones have started once. `tell` is told of each."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Sequence[EngineSettings],
        placement: Placement,
        restarts: int,
        tell: Callable[[str], None],
        *,
        move: bool = False,
    ) -> None:
        """`move`: whether those without a machine wait for one, also those whose machine has left the cluster."""
        self._cluster, self._calls, self._settings, self._tell = cluster, cluster.calls, settings, tell
        self._allowed = self._left = 0 if placement == "colocated" else restarts
        self._ready: set[int] = set()
        cluster.start_engines([own.config for own in settings], placement)
        starting = self._calls.start_each(
            list(self.all.values()), "start", [(settings[number],) for number in self.all]
        )
        self._starting: Started = self._calls.background(starting)
        self._may_move = move
        self._waiting = {*range(len(settings))} - {*self.all} if move else set[int]()
        self._missing = {*self._waiting}
        self._served: set[int] = set()
        self._uncounted: dict[int, ProcessFailure] = {}
        self._beginning: dict[int, tuple[ray.ObjectRef, float]] = {}
        """For each process that may not have begun: a call that it answers then, and since when."""
        self._looked = time.monotonic()

    @property
    def all(self) -> dict[int, ActorHandle]:
        """The newest process of every engine that has a machine, by its number."""
        return self._cluster.engines

    @property
    def serving(self) -> dict[int, ActorHandle]:
        """Those that hold weights, or will have them with the next push."""
        return {number: handle for number, handle in self.all.items() if number not in self._missing}

    @property
    def ready(self) -> list[int]:
        """Those that were started in the run and lack only weights."""
        return sorted(self._ready)

    @property
    def started(self) -> bool:
        """Whether the first ones have started."""
        return not self._starting

    @property
    def restarted(self) -> int:
        """How many were started again so far."""
        return self._allowed - self._left

    def wait(self) -> None:
        """Wait until the first ones have started."""
        self._calls.wait(self._starting, "starting the inference engines")
        self._starting = {}
        for number in self.all:
            self._served.add(number)
            self._watch(number)

    def admit(self, number: int, handle: ActorHandle) -> None:
        """Count an engine among those that serve, because this process of it has got weights; unless it has died
        meanwhile."""
        if self.holds(number, handle):
            self._ready.discard(number)
            self._missing.discard(number)
            self._served.add(number)

    def holds(self, number: int, handle: ActorHandle) -> bool:
        """Whether this is still the engine's process."""
        return self.all.get(number) == handle

    def any_ready(self) -> bool:
        """Look for machines, and say whether there are `ready` ones."""
        self.look_for_machines()
        return bool(self._ready)

    def look_for_machines(self) -> None:
        """Start engines that have no machine, where one has room for them by now."""
        if not (self._waiting or self._beginning) or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        self._leave_taken()
        widths = {number: self._settings[number].width for number in sorted(self._waiting)}
        for number in self._cluster.find_machines(widths):
            self._waiting.discard(number)
            self._start(number)

    def _leave_taken(self) -> None:
        """Let engines wait for another machine whose process has not begun in time."""
        for number, (begun, since) in [*self._beginning.items()]:
            if ray.wait([begun], timeout=0)[0]:
                del self._beginning[number]
            elif time.monotonic() - since > BEGIN_S:
                self._leave(number, f"engine-{number} got no room on its machine in {BEGIN_S:.0f} s; it waits for one")

    def _start(self, number: int) -> None:
        handle = self._cluster.start_engine(number)
        if self._may_move:
            self._beginning[number] = handle.status.remote(), time.monotonic()
        started = self._calls.start([handle], "start", self._settings[number])
        self._calls.spare(started, partial(self._answered, number, handle))

    def _watch(self, number: int) -> None:
        self._calls.spare(self._calls.start([self.all[number]], "watch"), partial(self._ended, number))

    def _ended(self, number: int, failure: ProcessFailure | None) -> None:
        """Start an engine again, whose process or vLLM has ended, or let it wait for another machine."""
        if failure is None:
            log = self._calls.log(f"engine-{number}")
            raise ProcessFailure(f"engine-{number} ended by itself; its log: {log}")
        if self._may_move and self._cluster.machine_is_gone(number):
            self._leave(number, f"{failure}; its machine is gone, and it waits for another one")
            return
        self._count(number, failure)
        self._forget(number)
        count = self.restarted + len(self._uncounted)
        self._tell(f"{failure}; it is started again ({count} of inference.restarts={self._allowed})")
        self._start(number)

    def _count(self, number: int, failure: ProcessFailure) -> None:
        """Count a death. Ray finds a machine dead later than its processes, so where machines may leave, a death counts
        only once the next start has succeeded, or has failed on a machine that is still there."""
        if self._may_move:
            self._count_last(number)
            self._uncounted[number] = failure
        else:
            self._use_up(failure)

    def _count_last(self, number: int) -> None:
        if (failure := self._uncounted.pop(number, None)) is not None:
            self._use_up(failure)

    def _use_up(self, failure: ProcessFailure) -> None:
        if not self._left:
            raise failure
        self._left -= 1

    def _leave(self, number: int, why: str, *, avoid: bool = False) -> None:
        """Let an engine wait for another machine, because its own is gone, or is one to `avoid`."""
        self._forget(number)
        self._uncounted.pop(number, None)
        self._served.discard(number)
        self._cluster.leave_machine(number, avoid=avoid)
        self._waiting.add(number)
        self._tell(why)

    def _forget(self, number: int) -> None:
        """Let the process of an engine be dead."""
        dead = self.all[number]
        self._calls.remove(dead)
        ray.kill(dead)
        self._ready.discard(number)
        self._missing.add(number)
        self._beginning.pop(number, None)

    def _answered(self, number: int, handle: ActorHandle, failure: ProcessFailure | None) -> None:
        """Note that a process of an engine has started, or has failed in that."""
        if not self.holds(number, handle):
            return
        if failure is not None:
            if self._may_move and number not in self._served and not self._cluster.machine_is_gone(number):
                self._leave(number, f"{failure}; it waits for another machine than that one", avoid=True)
            else:
                self._ended(number, failure)
            return
        self._count_last(number)
        self._ready.add(number)
        self._watch(number)

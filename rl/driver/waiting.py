"""Calls to the run's actors, and the one place where the driver waits for them.

While `wait` waits for some results it also watches every long-running actor, the stop request and the trainers' pings.
So a dead process, Ctrl-C and a stall all end the wait within a few seconds. The error names a failed process and its
log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError

from rl.processes.stopping import StopRequest

POLL_S = 0.5
PING_S = 2.0
DEATH_S = 3.0
"""After a failure, wait this long for another process to be found dead. That death is then reported as the cause."""

SIGNAL_S = 3.0
"""After a death, wait this long for a signal that ends the run. SLURM and systemd signal every process of a job one
after the other, node after node, and the driver's turn need not come first."""

Actor: TypeAlias = ActorHandle

Started = dict[ray.ObjectRef, str]
"""Calls under way: the reference of each result, and the role of the actor that was called."""


class ProcessFailure(RuntimeError):
    """A process of the run failed. The text names its role, error and log; `cause` is the exception, if any."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class ProcessDied(ProcessFailure):
    """A process of the run is dead, or its machine is out of reach."""


Ended = Callable[[ProcessFailure | None], None]
"""Is told how a call has ended."""


class Calls:
    """Starts calls on actors and waits for their results. It knows the actors' roles and logs, and no recipe."""

    def __init__(self, logs_dir: Path) -> None:
        self.stop = StopRequest()
        self.gone: Callable[[], Sequence[str]] = list
        """Says of each machine that was lost why."""
        self._logs_dir = logs_dir
        self._roles: dict[Actor, str] = {}
        self._pinged_actors: list[Actor] = []
        self._watched: Started = {}
        self._spared: dict[ray.ObjectRef, tuple[str, Ended]] = {}
        self._background: Started = {}
        self._pings: dict[Actor, ray.ObjectRef] = {}
        self._pinged = 0.0
        self._waiting = "nothing yet"

    def add(self, handle: Actor, role: str, *, ping: bool = False) -> None:
        """Register an actor and its role. `ping`: notice its death by pings, for an actor that runs one call at a time
        and so cannot be watched."""
        self._roles[handle] = role
        if ping:
            self._pinged_actors.append(handle)

    def handles(self) -> list[Actor]:
        """Every actor that was added, in that order."""
        return list(self._roles)

    def role(self, handle: Actor) -> str:
        """The role that an actor was added with."""
        return self._roles[handle]

    def waiting_for(self) -> str:
        """What the driver waits for now, in words: the work and the processes that do it."""
        return self._waiting

    def watch(self, handles: Iterable[Actor], method: str, *args: Any) -> None:
        """Call a method that runs as long as the actor should live. If the method ends in any way, the run ends."""
        for handle in handles:
            self._watched[getattr(handle, method).remote(*args)] = self._roles[handle]

    def spare(self, calls: Started, ended: Ended) -> None:
        """Calls that may fail. When one ends, later waits tell `ended` so, with its failure if it has failed, and go
        on."""
        self._spared |= {reference: (role, ended) for reference, role in calls.items()}

    def remove(self, handle: Actor) -> None:
        """Forget an actor that has died."""
        del self._roles[handle]

    def start(self, handles: Iterable[Actor], method: str, *args: Any) -> Started:
        """Start a method on each handle; pass the result to `wait`."""
        return {getattr(handle, method).remote(*args): self._roles[handle] for handle in handles}

    def start_each(self, handles: Sequence[Actor], method: str, arguments: Sequence[tuple[Any, ...]]) -> Started:
        """Like `start`, with arguments of its own for each handle."""
        return {
            getattr(handle, method).remote(*args): self._roles[handle]
            for handle, args in zip(handles, arguments, strict=True)
        }

    def background(self, calls: Started) -> Started:
        """Let every later `wait` notice when one of these fails, long before somebody waits for them."""
        self._background |= calls
        return calls

    def ask(self, handle: Actor, method: str, *args: Any, what: str) -> Any:
        """Call a method of one actor and wait for its result."""
        return self.wait(self.start([handle], method, *args), what)[0]

    def ask_all(self, handles: Sequence[Actor], method: str, *args: Any, what: str) -> list[Any]:
        """Call a method of several actors and wait for all results, in the order of `handles`."""
        return self.wait(self.start(handles, method, *args), what)

    def wait(
        self,
        calls: Started,
        what: str,
        on_result: Callable[[], None] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Wait for the results of `calls` and return them in order. There is no timeout, because the watchdog limits
        the wait. `on_result` is called for every result that arrives, and `meanwhile` again and again.

        Raises:
            ProcessFailure: a call failed, or a process died, or a watched method ended.
            Stopped: `stop` was requested.
        """
        with self._in_ray():
            return self._wait(calls, what, on_result or _nothing, meanwhile or _nothing)

    def _wait(
        self, calls: Started, what: str, on_result: Callable[[], None], meanwhile: Callable[[], None]
    ) -> list[Any]:
        results: dict[ray.ObjectRef, Any] = {}
        while pending := {ref: role for ref, role in calls.items() if ref not in results}:
            meanwhile()
            for reference, value in self._look(pending, what).items():
                results[reference] = value
                on_result()
        return [results[reference] for reference in calls]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so that these waits themselves bring about (`spare`). Raises as `wait` does."""
        with self._in_ray():
            while not condition():
                self._look({}, what)

    @contextmanager
    def _in_ray(self) -> Iterator[None]:
        """A signal handler must not raise inside of Ray; and a signal is what the death of a process may be due to."""
        with self.stop.deferred():
            try:
                yield
            except ProcessDied:
                self.stop.expect(SIGNAL_S)
                raise

    def _look(self, pending: Started, what: str) -> dict[ray.ObjectRef, Any]:
        """Look once, for at most POLL_S, at all that may end. Returns the results of those of `pending` that have."""
        self._waiting = f"{what}: {self._names(pending.values())}"
        self.stop.check()
        self._ping()
        if (lost := self._lost(what)) is not None:
            raise lost
        others = {ref: role for ref, role in (self._watched | self._background).items() if ref not in pending}
        done, _ = ray.wait([*pending, *others, *self._spared], num_returns=1, timeout=POLL_S)
        results = {}
        for reference in done:
            if reference in self._spared:
                self._end_spared(reference, what)
                continue
            value = self._check(reference, pending.get(reference) or others[reference], what)
            self._background.pop(reference, None)
            if reference in self._watched:
                role = self._watched[reference]
                raise ProcessFailure(f"{what}: {role} ended by itself; its log: {self.log(role)}")
            if reference in pending:
                results[reference] = value
        return results

    def _end_spared(self, reference: ray.ObjectRef, what: str) -> None:
        role, ended = self._spared.pop(reference)
        try:
            self._get(reference, role, what)
        except ProcessFailure as failure:
            if isinstance(failure, ProcessDied):
                self._outlive(what)
            ended(failure)
        else:
            ended(None)

    def _outlive(self, what: str) -> None:
        """Go on after a death only if the run does: a process may have ended by the signal that ends all, and without
        Ray's own processes no other can be started."""
        self.stop.expect(SIGNAL_S)
        self.stop.check()
        if (lost := self._lost(what)) is not None:
            raise lost

    def _ping(self) -> None:
        """Ping the actors that `add` got with `ping`. An idle actor answers; if the actor has died, its ping fails."""
        if time.monotonic() - self._pinged < PING_S:
            return
        self._pinged = time.monotonic()
        for actor in self._pinged_actors:
            ping = self._pings.get(actor)
            if ping is not None and ray.wait([ping], timeout=0)[0]:
                self._check(ping, self._roles[actor], "heartbeat")
                ping = None
            self._pings[actor] = actor.ping.remote() if ping is None else ping

    def log(self, role: str) -> Path:
        """The log file of the actor of that role."""
        return self._logs_dir / f"{role}.log"

    def _names(self, roles: Iterable[str]) -> str:
        return ", ".join(f"{role} ({self.log(role)})" for role in sorted(set(roles)))

    def _check(self, reference: ray.ObjectRef, role: str, what: str) -> Any:
        """The result of a call that has ended, or the failure of whoever is to blame."""
        try:
            return self._get(reference, role, what)
        except ProcessDied:
            raise
        except ProcessFailure as failure:
            if isinstance(failure.__cause__, RayTaskError) and (death := self._death(what)) is not None:
                raise self._died(*death, what) from failure.cause
            raise

    def _get(self, reference: ray.ObjectRef, role: str, what: str) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            # Before RayActorError: when a living process raised a RayActorError, Ray's error is of both classes.
            cause = _cause(error)
            raise ProcessFailure(
                f"{what}: {role} failed with {type(cause).__name__}: {cause}; its log: {self.log(role)}", cause
            ) from error
        except (RayActorError, ActorUnschedulableError) as error:
            raise self._died(role, error, what) from error

    def _death(self, what: str) -> tuple[str, RayActorError] | None:
        """A process found dead within DEATH_S. Its peers report a closed connection before Ray notices the death. If it
        is one that may die, there is nobody to blame."""
        may_die = {role for role, _ in self._spared.values()}
        asked = {actor.__ray_ready__.remote(): role for actor, role in self._roles.items() if role not in may_die}
        end = time.monotonic() + DEATH_S
        while asked and (left := end - time.monotonic()) > 0:
            for reference in ray.wait([*asked, *self._spared], num_returns=1, timeout=left)[0]:
                if reference in self._spared:
                    self._end_spared(reference, what)
                    return None
                role = asked.pop(reference)
                try:
                    ray.get(reference)
                except RayActorError as error:
                    return role, error
        return None

    def _lost(self, what: str) -> ProcessDied | None:
        """The loss of a machine, or of Ray itself, with which its actors die."""
        gone = self.gone()
        return ProcessDied(f"{what}: a machine is gone: {'; '.join(gone)}") if gone else None

    def _died(self, role: str, error: RayActorError | ActorUnschedulableError, what: str) -> ProcessFailure:
        if (lost := self._lost(what)) is not None:
            return lost
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # If an __init__ failed, the last line is its exception. Else the first line is the cause; process ids follow.
        unfit = isinstance(error, RayActorError) and error.actor_init_failed
        cause = lines[-1] if unfit else lines[0]
        kind = ProcessFailure if unfit else ProcessDied
        return kind(f"{what}: process {role} died ({cause}); its log: {self.log(role)}", error)


def _nothing() -> None:
    """What is done where a caller wants nothing done."""


def _cause(error: RayTaskError) -> Exception:
    """The exception that the task raised. Of a group it is the first member, because a group's own text says little."""
    cause: Exception = error if error.cause is None else error.cause
    while isinstance(cause, ExceptionGroup):
        cause = cause.exceptions[0]
    return cause

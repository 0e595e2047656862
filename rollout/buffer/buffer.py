"""The buffer: the gate that bounds staleness, and the finished groups that wait for the trainer.

Who waits for whom (S = max_staleness, P = groups_per_step):

    issue      a worker waits while (S + 1) * P groups are admitted ......... until `published` frees places
    take       the trainer waits for P groups that may go ................... until workers `put` them
    published  nobody waits

The gate. A group is admitted from `issue` until the weights of the step that consumed it are *published*; at most
(S + 1) * P are. That is AReaL's rule floor((N - 1) / B) <= i + eta (Fu et al. 2025, eq. 3; N rollouts begun so far,
batch B, version i, bound eta), with N less the i * P that are consumed, and N not counting what was re-issued. A
place is not freed at `take`: groups begun before the new weights are out would be one version too old at S = 0.

The order. A group begun at version b expires after step b + S. That no more than (S + 1) * P are admitted isn't enough:
fast groups could overtake a slow one until it expires. So `take` goes by earliest deadline, and waits for a straggler
rather than leave behind more than later steps can consume in time. Hence nothing is dropped as stale while versions
come one by one; should it happen all the same (invariant 5), it is re-issued, and re-issues go first.

A plain object without clock, thread or Ray: the caller serialises its calls and does the waiting.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rollout.buffer.ledger import Issue, Ledger
from rollout.tasks.config import TasksConfig
from rollout.types import Group, Task

MAX_FAILURES = 3
"""A task whose groups are lost to infrastructure this often is dropped: one broken task must not be tried for ever."""
FAILURE_WINDOW = 100
"""Trajectories over which the share of failures is taken."""
FAILURE_MINIMUM = 20
"""Trajectories before that share means anything."""
NAMED = 4
"""Issues that a message names one by one."""


class TooManyFailures(RuntimeError):
    """More than `rollout.failure_share_limit` of the recent trajectories were lost to infrastructure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSpec:
    """What the buffer's process needs of the recipe."""

    tasks: TasksConfig
    max_staleness: int
    groups_per_step: int
    failure_share_limit: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferState:
    """What a checkpoint keeps: the ledger as JSON, and the finished groups, so that nobody has to make them again."""

    ledger: Mapping[str, Any]
    groups: tuple[Group, ...]


class Buffer:
    """See the module's docstring.

    Args:
        tasks: the source, gone through in its own order first, then again and again in orders shuffled by `seed`.
        saved: where to go on, from a checkpoint; None: from the start. Its groups may still be trained, because no
            token in them is of a later version than the checkpoint's; the gate judges them like any others.

    Raises:
        ValueError: there are no tasks, or the bounds are out of range.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        saved: BufferState | None = None,
        *,
        max_staleness: int,
        groups_per_step: int,
        failure_share_limit: float,
        seed: int,
    ) -> None:
        if not len(tasks):
            raise ValueError("there are no tasks to train on: check tasks.sources")
        if max_staleness < 0 or groups_per_step < 1:
            raise ValueError(f"max_staleness={max_staleness} must be >= 0, groups_per_step={groups_per_step} >= 1")
        kept = {} if saved is None else {group.id: group for group in saved.groups}
        self.ledger = Ledger() if saved is None else Ledger.from_state_dict(saved.ledger, kept)
        self.arrivals = 0
        """Groups put so far, usable or not."""
        self._tasks = tasks
        self._seed = seed
        self._max_staleness = max_staleness
        self._groups_per_step = groups_per_step
        self._breaker = _Breaker(failure_share_limit)
        self._finished = {i.id: self._expiring(i, kept[i.id]) for i in self.ledger.open("finished")}
        self._version: int | None = None
        self._taken_at: int | None = None
        self._in_training = 0

    def issue(self) -> tuple[str, Task] | None:
        """The next task with its issue id, which the group must carry as its `id`; None while the gate is shut."""
        if self._version is None or self._admitted() >= self._places:
            return None
        issue = self.ledger.issue_next(self._version)
        return issue.id, self._task(issue.position)

    def put(self, group: Group) -> None:
        """Hand in the group of an issue, once.

        Where every member is an infra_error its task is re-issued, or after MAX_FAILURES times dropped.

        Raises:
            ValueError: no such issue is under way.
        """
        issue = self.ledger.finish(group.id)
        self.arrivals += 1
        self._breaker.observe(group)
        if group.usable:
            self._finished[group.id] = self._expiring(issue, group)
        elif issue.failures + 1 < MAX_FAILURES:
            self.ledger.reissue(issue.id, "infra_error")
        else:
            self.ledger.drop(issue.id, "infra_error")

    def take(self, version: int) -> list[Group] | None:
        """P groups for the step that trains `version`, earliest deadline first; None while they are not there.

        Every trained token in them has a version >= version - S.

        Raises:
            ValueError: `version` is not the published one, or was taken already.
            TooManyFailures: the circuit breaker has tripped.
        """
        self._breaker.check()
        if version != self._version or version == self._taken_at:
            raise ValueError(f"take({version}): published is {self._version}, last taken at {self._taken_at}")
        self._reissue_stale(version)
        chosen = self._choose(version)
        if chosen is None:
            return None
        self.ledger.take(issue.id for issue in chosen)
        self._taken_at, self._in_training = version, len(chosen)
        return [self._finished.pop(issue.id).group for issue in chosen]

    def mark_trained(self, issue_ids: Sequence[str], step: int) -> None:
        """The optimizer step is done. The gate doesn't move: `published` does that."""
        self.ledger.mark_trained(issue_ids, step)

    def published(self, version: int) -> None:
        """All engines hold `version`: what is issued from now on is sampled by it or a later one.

        Raises:
            ValueError: it is older than the one published before.
        """
        if self._version is not None and version < self._version:
            raise ValueError(f"version {version} published after version {self._version}")
        if version != self._version:  # a push that is announced twice frees its places once
            self._in_training = 0
        self._version = version

    def state(self) -> BufferState:
        """What a run resumed from here starts with. What is running or in training by then will be re-issued."""
        groups = tuple(finished.group for finished in self._finished.values())
        return BufferState(ledger=self.ledger.state_dict(), groups=groups)

    def waiting_for(self) -> str:
        """One line for the watchdog: how far the gate and the next step are, and whom they wait for."""
        if self._version is None:
            return "the gate is shut until the first weights are published"
        running, finished = self.ledger.open("issued"), self.ledger.open("finished")
        state = (
            f"version {self._version}: {len(running)} groups running, {len(finished)} finished, "
            f"{self._in_training} in training, {self._admitted()} of {self._places} places of the gate taken"
        )
        if self._taken_at == self._version:
            return f"{state}; workers wait for the trainer to publish version {self._version + 1}"
        if not running:
            return f"{state}; the trainer waits for workers to ask for tasks"
        oldest = ", ".join(f"{i.id} ({self._task(i.position).id}, since version {i.version})" for i in running[:NAMED])
        more = f" and {len(running) - NAMED} more" if len(running) > NAMED else ""
        return f"{state}; the trainer waits for {self._groups_per_step} groups, running are {oldest}{more}"

    @property
    def _places(self) -> int:
        return (self._max_staleness + 1) * self._groups_per_step

    def _admitted(self) -> int:
        return len(self.ledger.open("issued", "finished")) + self._in_training

    def _task(self, position: int) -> Task:
        epoch, place = divmod(position, len(self._tasks))
        return self._tasks[_order(len(self._tasks), self._seed, epoch)[place] if epoch else place]

    def _expiring(self, issue: Issue, group: Group) -> _Finished:
        oldest = group.oldest_version()
        begun = issue.version if oldest is None else oldest
        return _Finished(group=group, deadline=begun + self._max_staleness)

    def _deadline(self, issue: Issue) -> int:
        finished = self._finished.get(issue.id)
        return issue.version + self._max_staleness if finished is None else finished.deadline

    def _reissue_stale(self, version: int) -> None:
        for issue in self.ledger.open("finished"):
            if self._deadline(issue) < version:
                del self._finished[issue.id]
                self.ledger.reissue(issue.id, "stale")

    def _choose(self, version: int) -> list[Issue] | None:
        """The P finished groups that expire first, unless going on without a running one would let some expire."""
        count = self._groups_per_step
        admitted = sorted(
            self.ledger.open("issued", "finished"), key=lambda issue: (self._deadline(issue), issue.number)
        )
        chosen = [issue for issue in admitted if issue.state == "finished"][:count]
        if len(chosen) < count:
            return None
        if chosen == admitted[:count]:
            return chosen
        taken = {issue.id for issue in chosen}
        left = [self._deadline(issue) for issue in admitted if issue.id not in taken]
        in_time = all(deadline > version + rank // count for rank, deadline in enumerate(left))
        return chosen if in_time else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    group: Group
    deadline: int
    """The last version whose step may train it: that of its oldest token, plus S."""


class _Breaker:
    """Trips when too large a share of the last trajectories was lost to infrastructure."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._errors: deque[str | None] = deque(maxlen=FAILURE_WINDOW)

    def observe(self, group: Group) -> None:
        for trajectory in group.trajectories:
            failed = trajectory.outcome == "infra_error"
            self._errors.append(trajectory.error or "no message" if failed else None)

    def check(self) -> None:
        errors = [error for error in self._errors if error is not None]
        if len(self._errors) >= FAILURE_MINIMUM and len(errors) > self._limit * len(self._errors):
            raise TooManyFailures(
                f"{len(errors)} of the last {len(self._errors)} trajectories were lost to infrastructure failures "
                f"(rollout.failure_share_limit is {self._limit}); the last one: {errors[-1]}"
            )


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    """The order of the tasks in a later epoch."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order

"""The buffer: the gate that bounds staleness, and the cards of the finished groups that wait for the trainer.

Who waits for whom (S = max_staleness, P = groups_per_step):

    issue      a worker waits while (S + 1) * P groups are admitted ......... until `published` frees places
    take       the trainer waits for P groups that may go ................... until workers `put` them
    published  nobody waits

The gate. A group is admitted from `issue` until the weights of the step that consumed it are *published*. At most
(S + 1) * P groups are admitted at once. This is AReaL's rule floor((N - 1) / B) <= i + eta (Fu et al. 2025, eq. 3; N
rollouts begun so far, batch B, version i, bound eta). Here the i * P consumed groups are subtracted from N, and issues
that were re-issued are not counted in N. A place is not freed at `take`: groups begun before the new weights are out
would be one version too old at S = 0.

The order. A group begun at version b expires after the step that trains version b + S. Limiting admission is not enough
to prevent that: fast groups could be trained first, again and again, until a slow group is too old. So `take` goes by
earliest deadline. It waits for a slow group if the groups left behind would be more than later steps can consume in
time. Hence no group becomes stale while versions come one by one. If one does all the same, its task is re-issued, and
re-issues go first.

The buffer is a plain object without clock, thread or Ray: the caller serialises its calls and does the waiting. It
holds cards, never a token.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rollout.buffer.expiry import Expiry, Key
from rollout.buffer.ledger import Issue, Ledger
from rollout.cards import Card
from rollout.tasks.config import TasksConfig
from rollout.types import Task

MAX_FAILURES = 3
"""A task is dropped after this many groups lost to infrastructure, so that a broken one is not tried for ever."""
FAILURE_WINDOW = 100
"""Number of recent trajectories over which the share of failures is taken."""
FAILURE_MINIMUM = 20
"""Number of trajectories before that share means anything."""
NAMED = 4
"""Number of issues that a message names one by one."""


class TooManyFailures(RuntimeError):
    """More than `rollout.failure_share_limit` of the recent trajectories were lost to infrastructure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSpec:
    """The parts of a recipe that the buffer's process needs."""

    tasks: TasksConfig
    max_staleness: int
    groups_per_step: int
    failure_share_limit: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferState:
    """The buffer in a checkpoint: the ledger as JSON, the position of its log, the version that was published, the
    time, in seconds since 1970, and `TaskStream.digest` of the tasks that its positions mean.

    The finished groups themselves lie in the trajectory store, at the addresses that the ledger holds.
    """

    ledger: Mapping[str, Any]
    position: int
    version: int
    time: float
    tasks: str | None = None


class Buffer:
    """See the module's docstring.

    Args:
        tasks: the tasks of an epoch. The first epoch takes them in their own order, each later one shuffled by `seed`.
        ledger: a fresh one, or that of a resumed run (`rollout.buffer.resume`).
        cards: those of the groups that wait in it. The gate treats them like any others.

    Raises:
        ValueError: there are no tasks, or max_staleness or groups_per_step is out of range.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        ledger: Ledger,
        cards: Mapping[str, Card],
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
        self.ledger = ledger
        self.arrivals = 0
        """Number of groups put so far, usable or not."""
        self._tasks = tasks
        self._seed = seed
        self._max_staleness = max_staleness
        self._groups_per_step = groups_per_step
        self._breaker = _Breaker(failure_share_limit)
        self._cards = dict(cards)
        self._expiry = Expiry()
        for issue in ledger.open("finished"):
            self._expiry.finish(self._expires(issue))
        self._version: int | None = None
        self._taken_at: int | None = None
        self._in_training = 0

    def issue(self) -> tuple[str, Task] | None:
        """Return the next task with its issue id, which its group must have as `id`; None while the gate is shut."""
        if not self.room:
            return None
        assert self._version is not None
        issue = self.ledger.issue_next(self._version, self._task)
        self._expiry.run(self._expires(issue))
        return issue.id, issue.task

    def put(self, card: Card) -> None:
        """Hand in the card of an issue's group, once. The group is durable at the card's address.

        If every member is an infra_error, the task is re-issued, or dropped after MAX_FAILURES such groups.

        Raises:
            ValueError: no issue of this id is under way.
        """
        issue = self.ledger.finish(card.id, card.address, card.version_span())
        self.arrivals += 1
        self._breaker.observe(card)
        self._expiry.end(card.id)
        if card.usable:
            self._cards[card.id] = card
            self._expiry.finish(self._expires(issue))
        else:
            fail(self.ledger, issue)

    def take(self, version: int) -> list[Card] | None:
        """Return the cards of P groups for the step that trains `version`, earliest deadline first; None while the step
        must wait.

        Every trained token in them has a version >= version - S.

        Raises:
            ValueError: `version` is not the published one, or was taken already.
            TooManyFailures: the circuit breaker has tripped.
        """
        self._breaker.check()
        if version != self._version or version == self._taken_at:
            raise ValueError(f"take({version}): published is {self._version}, last taken at {self._taken_at}")
        if self.ledger.count("finished") < self._groups_per_step:
            return None
        self._reissue_stale(version)
        chosen = self._expiry.pop_next(self._groups_per_step, version)
        if chosen is None:
            return None
        self.ledger.take(chosen, version)
        self._taken_at, self._in_training = version, len(chosen)
        return [self._cards.pop(issue_id) for issue_id in chosen]

    def mark_trained(self, issue_ids: Sequence[str], step: int) -> None:
        """Record that the optimizer step is done. This frees no place at the gate; `published` does."""
        self.ledger.mark_trained(issue_ids, step)

    def published(self, version: int) -> None:
        """Record that all engines hold `version`: groups issued from now on are sampled by it or a later one.

        Raises:
            ValueError: `version` is older than the one published before.
        """
        if self._version is not None and version < self._version:
            raise ValueError(f"version {version} published after version {self._version}")
        if version != self._version:  # a push that is announced twice frees its places once
            self._in_training = 0
            self.ledger.record("published", version=version)
        self._version = version

    @property
    def room(self) -> int:
        """How many tasks the gate lets through now."""
        return 0 if self._version is None else max(0, self._places - self._admitted())

    @property
    def version(self) -> int | None:
        """The version that was published last; None before the first."""
        return self._version

    def waiting_for(self) -> str:
        """Return one line for the watchdog: the state of the gate and of the next step, and whom they wait for."""
        if self._version is None:
            return "the gate is shut until the first weights are published"
        running = self.ledger.open("issued")
        state = (
            f"version {self._version}: {len(running)} groups running, {self.ledger.count('finished')} finished, "
            f"{self._in_training} in training, {self._admitted()} of {self._places} places of the gate taken"
        )
        if self._taken_at == self._version:
            return f"{state}; workers wait for the trainer to publish version {self._version + 1}"
        if not running:
            return f"{state}; the trainer waits for workers to ask for tasks"
        oldest = ", ".join(f"{i.id} ({i.task.id}, since version {i.version})" for i in running[:NAMED])
        more = f" and {len(running) - NAMED} more" if len(running) > NAMED else ""
        return f"{state}; the trainer waits for {self._groups_per_step} groups, running are {oldest}{more}"

    @property
    def _places(self) -> int:
        return (self._max_staleness + 1) * self._groups_per_step

    def _admitted(self) -> int:
        return self.ledger.count("issued", "finished") + self._in_training

    def _task(self, position: int) -> Task:
        epoch, place = divmod(position, len(self._tasks))
        return self._tasks[_order(len(self._tasks), self._seed, epoch)[place] if epoch else place]

    def _expires(self, issue: Issue) -> Key:
        """A group is as old as its oldest token. While it runs, none is known to be older than its issue."""
        oldest = issue.version if issue.versions is None else issue.versions[0]
        return oldest + self._max_staleness, issue.number, issue.id

    def _reissue_stale(self, version: int) -> None:
        for issue_id in self._expiry.pop_stale(version):
            del self._cards[issue_id]
            self.ledger.reissue(issue_id, "stale")


def fail(ledger: Ledger, issue: Issue) -> None:
    """End an issue whose group has no usable member."""
    if issue.failures + 1 < MAX_FAILURES:
        ledger.reissue(issue.id, "infra_error")
    else:
        ledger.drop(issue.id, "infra_error")


class _Breaker:
    """A circuit breaker that trips when too large a share of the last trajectories was lost to infrastructure."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._errors: deque[str | None] = deque(maxlen=FAILURE_WINDOW)

    def observe(self, card: Card) -> None:
        for trajectory in card.trajectories:
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
    """Return the order of the tasks in a later epoch."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order

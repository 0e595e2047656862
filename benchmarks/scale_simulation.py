"""A run in virtual time: engines, tools, the product's own buffer and ledger, a trainer and its pushes.

    engine     requests share its decoding steps. A step gets slower with the number of requests and with the context
               that they read. Prompts, caches that are computed again, and pushes stop decoding for their time. A
               request whose context does not fit beside the others waits.
    slot       takes a task while the gate is open, runs its group's trajectories turn by turn, and puts the card
    driver     takes, plans, trains, pushes, publishes, one after the other, as `rl.run` does

The staleness that comes out is that of `rollout.buffer.buffer.Buffer`, which decides here as it does in a run. Every
random number comes from one seed, and nothing depends on the time of day.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.buffer.buffer import Buffer
from rollout.buffer.ledger import Ledger
from rollout.cards import Card, SampleCard, TrajectoryCard, Turns
from rollout.types import Address, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Tokens that are observed (prompt or tool result), then sampled, and the seconds that the tools take then."""

    observed: int
    sampled: int
    tools_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """The time of an engine's decoding step, and of a prompt, in seconds; the tokens that its KV cache holds."""

    step_s: float
    step_s_per_request: float = 0.0
    step_s_per_context_token: float = 0.0
    prompt_s_per_token: float = 0.0
    cache_tokens: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is simulated.

    `train_s` gives the seconds of a step from its tokens and trajectories, `handling_s` those of driver and buffer for
    one trajectory of a step. Engines stand still for `pause_s` of the `push_s` of a push, at its end. `recompute` as in
    `weight_sync.cache_policy`.
    """

    engines: int
    speed: EngineSpeed
    groups_per_step: int
    group_size: int
    max_staleness: int
    slots: int
    """Groups that may run at once, over all workers."""
    trajectory: Callable[[random.Random], Sequence[Turn]]
    train_s: Callable[[int, int], float]
    push_s: float
    pause_s: float
    handling_s: float
    recompute: bool
    steps: int
    ending_s: float = 0.0
    """Between a group's last member and its card: rewards, and the store's fsync."""
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of the trainer. `ready` and `running` are the buffer's finished and unfinished groups when it took."""

    begun: float
    wait_s: float = 0.0
    handling_s: float = 0.0
    train_s: float = 0.0
    push_s: float = 0.0
    tokens: int = 0
    sampled: int = 0
    trajectories: int = 0
    mean_age: float = 0.0
    oldest: int = 0
    ready: int = 0
    running: int = 0

    @property
    def step_s(self) -> float:
        return self.wait_s + self.handling_s + self.train_s + self.push_s


@dataclass(slots=True)
class Use:
    """Seconds of all engines together, and of all trajectories together."""

    busy: float = 0.0
    prompts: float = 0.0
    """Part of `busy`: new tokens of prompts. What is left beside the other parts is decoding."""
    lost: float = 0.0
    """Part of `busy`: contexts that others' requests had driven out of the cache."""
    after_push: float = 0.0
    """Part of `busy`: contexts under new weights."""
    paused: float = 0.0
    queued: float = 0.0
    """Of trajectories: waiting for room in the cache."""
    tools: float = 0.0
    alive: float = 0.0


class Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, run: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, run, arguments))

    def after(self, seconds: float, run: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + seconds, run, *arguments)

    def next(self) -> bool:
        if not self._events:
            return False
        self.now, _, run, arguments = heapq.heappop(self._events)
        run(*arguments)
        return True


@dataclass(slots=True, eq=False)
class Member:
    """A trajectory under way."""

    group: Running
    turns: Sequence[Turn]
    engine: Engine
    begun: float
    turn: int = 0
    context: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    asked: float = 0.0
    from_step: float = 0.0
    waiting_tokens: int = 0


@dataclass(slots=True, eq=False)
class Running:
    """A group under way."""

    id: str
    task: Task
    left: int
    members: list[Member] = field(default_factory=list)


class Engine:
    """Decoding steps that requests share. `steps` counts them, as a real number."""

    def __init__(self, clock: Clock, speed: EngineSpeed, use: Use, ended: Callable[[Member], None]) -> None:
        self._clock, self._speed, self._use, self._ended = clock, speed, use, ended
        self._requests: list[tuple[float, int, Member]] = []
        self._queue: deque[Member] = deque()
        self._published: list[tuple[float, int]] = []
        self._last = self._steps = self._owed = 0.0
        self._context = self._count = self._asked = 0
        self.open_context = 0
        """Tokens of all open trajectories of this engine, also of those that wait for their tools."""

    def request(self, member: Member) -> None:
        self._advance()
        member.asked = self._clock.now
        self._queue.append(member)
        self._admit()
        self._schedule()

    def publish(self, version: int, pause_s: float, recompute: bool) -> None:
        """Stand still for a push, and go on with new weights."""
        self._advance()
        again = self._context * self._speed.prompt_s_per_token if recompute else 0.0
        self._owe(pause_s + again)
        self._use.paused += pause_s
        self._use.after_push += again
        self._published.append((self._steps, version))
        self._schedule()

    def _owe(self, seconds: float) -> None:
        self._owed += seconds

    def _step_s(self) -> float:
        speed = self._speed
        per_request = speed.step_s_per_request * len(self._requests)
        return speed.step_s + per_request + speed.step_s_per_context_token * self._context

    def _advance(self) -> None:
        seconds = self._clock.now - self._last
        self._last = self._clock.now
        if self._requests or self._owed:
            self._use.busy += seconds
        paid = min(self._owed, seconds)
        self._owed -= paid
        if self._requests:
            self._steps += (seconds - paid) / self._step_s()

    def _admit(self) -> None:
        while self._queue:
            member = self._queue[0]
            turn = member.turns[member.turn]
            length = member.context + turn.observed + turn.sampled
            if self._requests and self._context + length > self._speed.cache_tokens:
                return
            self._queue.popleft()
            self._use.queued += self._clock.now - member.asked
            self._fill(member, turn)
            self._context += length
            member.from_step = self._steps
            self._asked += 1
            heapq.heappush(self._requests, (self._steps + turn.sampled, self._asked, member))

    def _fill(self, member: Member, turn: Turn) -> None:
        """Compute what is new in the prompt, and what of it the cache has lost to others' requests."""
        lost = max(0.0, 1.0 - self._speed.cache_tokens / max(1, self.open_context)) * member.context
        self._owe((turn.observed + lost) * self._speed.prompt_s_per_token)
        self._use.prompts += turn.observed * self._speed.prompt_s_per_token
        self._use.lost += lost * self._speed.prompt_s_per_token

    def _schedule(self) -> None:
        self._count += 1
        if self._requests:
            left = max(0.0, self._requests[0][0] - self._steps)
            self._clock.after(self._owed + left * self._step_s(), self._due, self._count)

    def _due(self, count: int) -> None:
        if count != self._count:
            return
        self._advance()
        self._steps = max(self._steps, self._requests[0][0])
        ended = []
        while self._requests and self._requests[0][0] <= self._steps:
            ended.append(heapq.heappop(self._requests)[2])
        for member in ended:
            self._finish(member)
        self._admit()
        self._schedule()
        for member in ended:
            self._ended(member)

    def _finish(self, member: Member) -> None:
        turn = member.turns[member.turn]
        before, added = member.context, turn.observed + turn.sampled
        self._context -= before + added
        member.context += added
        self.open_context += added
        for version, tokens in self._by_version(member.from_step, turn.sampled):
            member.versions[version] = member.versions.get(version, 0) + tokens

    def _by_version(self, begin: float, sampled: int) -> list[tuple[int, int]]:
        """How many of the tokens, which were sampled from step `begin` to now, each version sampled."""
        found, left = [], sampled
        for mark, version in reversed(self._published):
            tokens = min(left, round(sampled - max(0.0, mark - begin)))
            if tokens > 0:
                found.append((version, tokens))
                left -= tokens
            if mark <= begin or not left:
                break
        return found


class Simulation:
    """Runs until the trainer has taken `run.steps` steps. `steps` has one entry each."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.clock, self.use = Clock(), Use()
        self.steps: list[Step] = []
        self.trajectories = 0
        self._random = random.Random(run.seed)
        self.engines = [Engine(self.clock, run.speed, self.use, self._sampled) for _ in range(run.engines)]
        self._buffer = Buffer(
            [Task(id="t", environment="e", messages=())],
            Ledger(lambda event, **fields: None),
            {},
            max_staleness=run.max_staleness,
            groups_per_step=run.groups_per_step,
            failure_share_limit=1.0,
            seed=run.seed,
        )
        self._version = self._running = self._groups = 0
        self._step: Step | None = None

    def go(self) -> list[Step]:
        self._published(0, 0.0)
        while len(self.steps) < self._run.steps and self.clock.next():
            pass
        assert len(self.steps) == self._run.steps, "the simulation has come to a halt"
        return self.steps

    def _published(self, version: int, pause_s: float) -> None:
        for engine in self.engines:
            engine.publish(version, pause_s, self._run.recompute)
        self.clock.after(pause_s, self._open, version)

    def _open(self, version: int) -> None:
        """The end of a step, and the begin of the next."""
        self._version = version
        self._buffer.published(version)
        if self._step is not None:
            self.steps.append(self._step)
        self._step = Step(begun=self.clock.now)
        self._issue()
        self._take()

    def _issue(self) -> None:
        while self._running < self._run.slots and (issued := self._buffer.issue()) is not None:
            self._running += 1
            group = Running(*issued, left=self._run.group_size)
            engine = self.engines[self._groups % len(self.engines)]
            self._groups += 1
            for _ in range(self._run.group_size):
                member = Member(group, self._run.trajectory(self._random), engine, self.clock.now)
                group.members.append(member)
                engine.request(member)

    def _sampled(self, member: Member) -> None:
        """A turn's tokens are there: its tools run."""
        seconds = member.turns[member.turn].tools_s
        self.use.tools += seconds
        self.clock.after(seconds, self._answered, member)

    def _answered(self, member: Member) -> None:
        member.turn += 1
        if member.turn < len(member.turns):
            member.engine.request(member)
            return
        member.engine.open_context -= member.context
        self.use.alive += self.clock.now - member.begun
        member.group.left -= 1
        if not member.group.left:
            self.clock.after(self._run.ending_s, self._put, member.group)

    def _put(self, group: Running) -> None:
        self._running -= 1
        self.trajectories += len(group.members)
        self._buffer.put(card_of(group, self.trajectories))
        self._issue()
        self._take()

    def _take(self) -> None:
        step = self._step
        if step is None or step.trajectories or (cards := self._buffer.take(self._version)) is None:
            return
        step.wait_s = self.clock.now - step.begun
        step.ready = self._buffer.ledger.count("finished")
        step.running = self._buffer.ledger.count("issued")
        measure(step, cards, self._version)
        step.handling_s = step.trajectories * self._run.handling_s
        step.train_s = self._run.train_s(step.tokens, step.trajectories)
        step.push_s = self._run.push_s
        self._issue()  # stale groups, if any, gave their places back
        ids = [card.id for card in cards]
        self.clock.after(step.handling_s + step.train_s, self._trained, ids)

    def _trained(self, ids: list[str]) -> None:
        self._buffer.mark_trained(ids, self._version + 1)
        self.clock.after(self._run.push_s - self._run.pause_s, self._published, self._version + 1, self._run.pause_s)


def card_of(group: Running, record: int) -> Card:
    members = []
    for member in group.members:
        sampled = sum(member.versions.values())
        sample = SampleCard(length=member.context, trained_tokens=sampled, versions=member.versions)
        members.append(
            TrajectoryCard(
                stop_reason="answered",
                outcome="scored",
                reward=0.0,
                success=False,
                reward_parts={},
                metrics={},
                turns=Turns(()),
                samples=(sample,),
                error=None,
            )
        )
    address = Address(segment=1, record=record)
    return Card(id=group.id, task_id=group.task.id, source="", trajectories=tuple(members), address=address)


def measure(step: Step, cards: Sequence[Card], version: int) -> None:
    """Write down what the step takes: its tokens, and their ages."""
    samples = [sample for card in cards for member in card.trajectories for sample in member.samples]
    step.trajectories, step.tokens = len(samples), sum(sample.length for sample in samples)
    ages = [(version - own, tokens) for sample in samples for own, tokens in sample.versions.items()]
    step.sampled = sum(tokens for _, tokens in ages)
    step.mean_age = sum(age * tokens for age, tokens in ages) / step.sampled
    step.oldest = max(age for age, _ in ages)

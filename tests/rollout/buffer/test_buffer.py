"""The staleness gate and the order in which groups are taken, by example and as a state machine with crashes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.buffer.buffer import (
    FAILURE_MINIMUM,
    FAILURE_WINDOW,
    MAX_FAILURES,
    NAMED,
    TooManyFailures,
)
from rollout.cards import Card
from rollout.types import Group, Task
from tests.rollout.buffer.buffer_support import Run, group, ids


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """Makes runs, each in a directory of its own."""

    def make_run(**settings: Any) -> Run:
        return Run(Path(tempfile.mkdtemp(dir=tmp_path)), **settings)

    return make_run


def test_nothing_is_issued_before_the_first_weights(make: Callable[..., Run]) -> None:
    run = make()
    buffer = run.buffer
    assert buffer.issue() is None
    assert "until the first weights are published" in buffer.waiting_for()
    buffer.published(0)
    assert buffer.issue() is not None


def test_staleness_zero_is_exactly_on_policy(make: Callable[..., Run]) -> None:
    """Each version issues `groups_per_step` tasks. None is issued between taking them and publishing new weights."""
    run = make(staleness=0, step=2)
    buffer = run.buffer
    for version in range(3):
        buffer.published(version)
        issued = run.issue_all()
        assert len(issued) == 2
        for issue in issued:
            run.put(group(*issue, version))
            assert buffer.issue() is None
        taken = buffer.take(version)
        assert taken is not None and buffer.issue() is None
        buffer.published(version)  # once more: it frees nothing
        assert buffer.issue() is None
        buffer.mark_trained([g.id for g in taken], version + 1)
        assert buffer.issue() is None
    assert buffer.ledger.counts() == {"issued": 6, "open": 0, "trained": 6, "dropped": 0, "reissued": 0}


def test_staleness_one_keeps_a_step_running_while_another_trains(make: Callable[..., Run]) -> None:
    run = make(staleness=1, step=2)
    buffer = run.buffer
    buffer.published(0)
    first = run.issue_all()
    assert len(first) == 4
    for issue in first[:2]:
        run.put(group(*issue, 0))
    assert ids(buffer.take(0)) == ["g1-000000", "g1-000001"]
    assert buffer.issue() is None
    buffer.published(1)
    assert len(run.issue_all()) == 2


def test_a_fast_group_may_overtake_but_never_let_a_slow_one_expire(make: Callable[..., Run]) -> None:
    """max_staleness=1, one group a step. At version 1 the slow group of version 0 must be consumed; the fast one of
    version 1 can wait."""
    run = make(staleness=1, step=1)
    buffer = run.buffer
    buffer.published(0)
    slow, fast = run.issue_all()
    run.put(group(*fast, 0))
    assert ids(buffer.take(0)) == [fast[0]]  # the slow one can still go with version 1
    buffer.published(1)
    [newer] = run.issue_all()
    run.put(group(*newer, 1))
    assert buffer.take(1) is None
    assert f"running are {slow[0]} (t0, since version 0)" in buffer.waiting_for()
    run.put(group(*slow, 0, 1))
    assert ids(buffer.take(1)) == [slow[0]]


def test_stragglers_that_could_not_all_be_consumed_in_time_are_waited_for(make: Callable[..., Run]) -> None:
    """max_staleness=2, one group a step. Overtaking is fine at version 0. At version 1 two groups of version 0 are
    left, for the steps at versions 1 and 2."""
    run = make(staleness=2, step=1)
    buffer = run.buffer
    buffer.published(0)
    a, b, c = run.issue_all()
    run.put(group(*c, 0))
    assert ids(buffer.take(0)) == [c[0]]
    buffer.published(1)
    [d] = run.issue_all()
    run.put(group(*d, 1))
    assert buffer.take(1) is None  # both a and b would then have to go with version 2
    run.put(group(*b, 0))
    assert ids(buffer.take(1)) == [b[0]]
    buffer.published(2)
    run.put(group(*a, 0))
    assert ids(buffer.take(2)) == [a[0]]


def test_what_is_too_old_is_reissued_first(make: Callable[..., Run]) -> None:
    run = make(staleness=1, step=1)
    buffer = run.buffer
    buffer.published(0)
    old, kept = run.issue_all()
    run.put(group(*old, 0, 2))  # one old token is enough
    run.put(group(*kept, 1, 2))
    buffer.published(2)
    assert ids(buffer.take(2)) == [kept[0]]
    assert buffer.ledger.counts()["reissued/stale"] == 1
    again = buffer.issue()
    assert again is not None and again[1].id == "t0" and again[0] not in (old[0], kept[0])


def test_groups_that_only_failed_are_reissued_and_at_last_dropped(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=1)
    buffer = run.buffer
    buffer.published(0)
    for _ in range(MAX_FAILURES):
        issue = buffer.issue()
        assert issue is not None and issue[1].id == "t0"
        run.put(group(*issue, failed=True))
    after = buffer.issue()
    assert after is not None and after[1].id == "t1"
    counts = buffer.ledger.counts()
    assert (counts["reissued/infra_error"], counts["dropped/infra_error"]) == (MAX_FAILURES - 1, 1)
    assert buffer.arrivals == MAX_FAILURES


def test_the_circuit_breaker_names_share_limit_and_last_error(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=FAILURE_MINIMUM, limit=0.5)
    buffer = run.buffer
    buffer.published(0)
    issued = run.issue_all()
    for issue in issued[: FAILURE_MINIMUM // 2]:
        run.put(group(*issue, 0))  # one of two members failed: just at the limit
    assert buffer.take(0) is None, "20 of them, and half have failed"
    run.put(group(*issued[-2], failed=True))
    last = group(*issued[-1], failed=True)
    run.put(replace(last, trajectories=tuple(replace(t, error=None) for t in last.trajectories)))
    with pytest.raises(
        TooManyFailures, match=r"14 of the last 24 .*\(rollout.failure_share_limit is 0.5\); the last one: no message"
    ):
        buffer.take(0)


def test_the_circuit_breaker_waits_until_enough_trajectories_have_come(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=FAILURE_MINIMUM, limit=0.5)
    buffer = run.buffer
    buffer.published(0)
    issued = run.issue_all()
    for issue in issued[: FAILURE_MINIMUM // 2 - 1]:
        run.put(group(*issue, failed=True))
    assert buffer.take(0) is None
    run.put(group(*issued[-1], failed=True))
    with pytest.raises(TooManyFailures, match=r"20 of the last 20 .*sandbox is gone"):
        buffer.take(0)


def test_the_circuit_breaker_forgets_an_outage_that_is_over(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=2 * FAILURE_WINDOW, limit=0.6, count=2 * FAILURE_WINDOW)
    buffer = run.buffer
    buffer.published(0)
    issued = run.issue_all()
    outage, later = issued[: FAILURE_WINDOW // 2], issued[FAILURE_WINDOW // 2 :]
    for issue in outage:
        run.put(group(*issue, failed=True))  # two members each: the whole window
    with pytest.raises(TooManyFailures, match=f"{FAILURE_WINDOW} of the last {FAILURE_WINDOW}"):
        buffer.take(0)
    for issue in later[: FAILURE_WINDOW // 2]:
        run.put(group(*issue, 0))  # every second member failed: below the limit
    assert buffer.take(0) is None
    assert FAILURE_MINIMUM < FAILURE_WINDOW


def test_tasks_wrap_around_in_a_new_order_each_epoch(make: Callable[..., Run]) -> None:
    def epochs(seed: int = 0) -> list[list[str]]:
        run = make(staleness=0, step=24, count=8, seed=seed)
        buffer = run.buffer
        buffer.published(0)
        drawn = [task.id for _, task in run.issue_all()]
        return [drawn[0:8], drawn[8:16], drawn[16:24]]

    first, second, third = epochs()
    assert first == [f"t{i}" for i in range(8)]
    assert sorted(second) == sorted(third) == first
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    assert epochs() == [first, second, third]
    assert epochs(seed=1)[0] == first and epochs(seed=1)[1] not in (second, third)


def test_a_group_without_sampled_tokens_ages_from_its_issue(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=1)
    buffer = run.buffer
    buffer.published(0)
    issue = buffer.issue()
    assert issue is not None
    run.put(group(*issue))
    assert ids(buffer.take(0)) == [issue[0]]


def test_misuse_is_refused(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=1)
    buffer = run.buffer
    buffer.published(3)
    issue = buffer.issue()
    assert issue is not None
    run.put(group(*issue, 3))
    with pytest.raises(ValueError, match="g1-000000 is finished"):
        run.put(group(*issue, 3))
    with pytest.raises(ValueError, match=r"take\(2\): published is 3"):
        buffer.take(2)
    assert buffer.take(3) is not None
    with pytest.raises(ValueError, match=r"take\(3\): published is 3, last taken at 3"):
        buffer.take(3)
    with pytest.raises(ValueError, match="version 2 published after version 3"):
        buffer.published(2)
    with pytest.raises(ValueError, match="there are no tasks"):
        make(count=0)
    with pytest.raises(ValueError, match="groups_per_step=0"):
        make(step=0)


def test_waiting_for_says_who_holds_whom_up(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=2)
    buffer = run.buffer
    buffer.published(0)
    assert "waits for workers to ask for tasks" in buffer.waiting_for()
    issued = run.issue_all()
    run.put(group(*issued[0], 0))
    assert "1 groups running, 1 finished, 0 in training, 2 of 2 places" in buffer.waiting_for()
    assert "waits for 2 groups, running are g1-000001 (t1, since version 0)" in buffer.waiting_for()
    run.put(group(*issued[1], 0))
    buffer.take(0)
    assert "workers wait for the trainer to publish version 1" in buffer.waiting_for()


def test_waiting_for_names_the_oldest_groups_and_counts_the_others(make: Callable[..., Run]) -> None:
    run = make(staleness=0, step=NAMED + 2)
    buffer = run.buffer
    buffer.published(0)
    issued = [buffer.issue() for _ in range(NAMED)]
    names = ", ".join(f"{issue[0]} ({issue[1].id}, since version 0)" for issue in issued if issue)
    assert buffer.waiting_for().endswith(f"running are {names}")
    run.issue_all()
    assert buffer.waiting_for().endswith(f"running are {names} and 2 more")


class Pipeline(RuleBasedStateMachine):
    """Workers, trainer and engines in any order and at any speed, with failures, lost steps and kills.

    The engines may hold a version that the buffer does not know yet (`pushed`): a push comes before `published`.
    """

    @initialize(staleness=st.integers(0, 3), step=st.integers(1, 3), count=st.integers(1, 7))
    def start(self, staleness: int, step: int, count: int) -> None:
        self.staleness, self.step, self.count = staleness, step, count
        self.directory = tempfile.TemporaryDirectory(prefix="pipeline-")
        self.run = Run(Path(self.directory.name), staleness=staleness, step=step, count=count)
        self.buffer = self.run.buffer
        self.version = self.pushed = 0
        self.steps = 0
        self.running: dict[str, tuple[Task, int]] = {}
        self.taken: list[Card] = []
        self.took_at = -1
        self.trained: Counter[str] = Counter()  # by issue id; a resumed run goes on from its checkpoint's
        self.durable: dict[str, Card] = {}  # the usable groups of this timeline that did not become stale
        self.jumped = False
        self.buffer.published(0)
        self.save()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()

    def save(self) -> None:
        self.checkpoint = (self.run.state(), self.pushed, self.steps, Counter(self.trained))

    def put(self, made: Group) -> None:
        card = self.run.store(made)
        self.buffer.put(card)
        if card.usable:
            self.durable[card.id] = card

    @rule()
    def a_worker_asks(self) -> None:
        issue = self.buffer.issue()
        if issue is not None:
            issue_id, task = issue
            assert issue_id not in self.running
            self.running[issue_id] = (task, self.pushed)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def a_group_arrives(self, data: st.DataObject, fails: bool) -> None:
        issue_id = data.draw(st.sampled_from(sorted(self.running)))
        task, begun = self.running.pop(issue_id)
        self.put(group(issue_id, task, begun, self.pushed, failed=fails))

    @precondition(lambda self: not self.taken and self.took_at != self.version)
    @rule()
    def the_trainer_takes(self) -> None:
        self.take()

    def take(self) -> None:
        waiting = {issue.id for issue in self.buffer.ledger.open("finished")}
        cards = self.buffer.take(self.version)
        for stale in waiting - {issue.id for issue in self.buffer.ledger.open("finished", "taken")}:
            del self.durable[stale]
        if cards is None:
            return
        assert len(cards) == self.step
        for card in cards:
            span = card.version_span()
            assert span is not None and span[0] >= self.version - self.staleness
        self.taken, self.took_at = cards, self.version

    @precondition(lambda self: self.taken)
    @rule()
    def the_step_is_trained_and_pushed(self) -> None:
        self.steps += 1
        self.buffer.mark_trained([g.id for g in self.taken], self.steps)
        self.trained.update(g.id for g in self.taken)
        self.taken = []
        self.pushed = self.version + 1

    @precondition(lambda self: self.pushed > self.version)
    @rule(checkpoints=st.booleans())
    def the_new_version_is_published(self, checkpoints: bool) -> None:
        self.version = self.pushed
        self.buffer.published(self.version)
        if checkpoints:
            self.save()

    @precondition(lambda self: not self.taken)
    @rule(by=st.integers(1, 3))
    def versions_jump(self, by: int) -> None:
        """The driver does not do this, but the bound must hold whatever it does."""
        self.jumped = True
        self.version = self.pushed = self.pushed + by
        self.buffer.published(self.version)

    @rule()
    def a_checkpoint_is_written(self) -> None:
        if not self.taken and self.pushed == self.version:
            self.save()

    @rule(at_once=st.booleans(), data=st.data())
    def the_run_is_killed_and_resumed(self, at_once: bool, data: st.DataObject) -> None:
        """Resume from the last checkpoint or, with `at_once`, from the buffer's state at this very moment. A group may
        have become durable just before the kill, so that the buffer never heard of it."""
        if at_once:
            self.save()
        unheard = data.draw(st.sampled_from([None, *sorted(self.running)]))
        if unheard is not None:
            task, begun = self.running[unheard]
            self.durable[unheard] = self.run.store(group(unheard, task, begun, self.pushed))
        state, self.version, self.steps, self.trained = self.checkpoint
        self.trained = Counter(self.trained)
        self.run.resume(state)
        self.buffer = self.run.buffer
        versions = range(state.version - self.staleness, state.version + 1)
        self.durable = {
            name: card
            for name, card in self.durable.items()
            if name in self.trained or all(version in versions for version in card.versions())
        }
        # Every finished group that these weights could train waits again. Nothing else that was open is open now.
        assert {issue.id for issue in self.buffer.ledger.open("finished")} == self.durable.keys() - self.trained.keys()
        assert not self.buffer.ledger.open("issued", "taken")
        self.pushed, self.took_at = self.version, -1
        self.running, self.taken = {}, []
        self.buffer.published(self.version)
        self.save()

    @precondition(lambda self: not self.taken and self.took_at != self.version)
    @rule()
    def when_every_worker_delivers_the_trainer_is_served(self) -> None:
        """There is no deadlock: once the workers have delivered every group that they may make, a step can be taken."""
        for _ in range(10 * (self.staleness + 1) * self.step):
            while (issue := self.buffer.issue()) is not None:
                self.running[issue[0]] = (issue[1], self.pushed)
            for issue_id, (task, begun) in sorted(self.running.items()):
                self.put(group(issue_id, task, begun))
            self.running = {}
            self.take()
            if self.taken:
                return
        raise AssertionError("every group was delivered and still no step can be taken: " + self.buffer.waiting_for())

    @invariant()
    def the_books_balance(self) -> None:
        counts = self.buffer.ledger.counts()
        assert counts["issued"] == counts["open"] + counts["trained"] + counts["dropped"] + counts["reissued"]
        state = self.buffer.ledger.state_dict()
        # Every task below the cursor is in exactly one place.
        assert state["cursor"] == counts["open"] + len(state["retries"]) + counts["trained"] + counts["dropped"]
        places = [entry["position"] for entry in state["open"] + state["retries"]]
        assert len(places) == len(set(places))
        assert {issue.id for issue in self.buffer.ledger.open("issued")} == set(self.running)

    @invariant()
    def nothing_is_trained_twice(self) -> None:
        assert all(times == 1 for times in self.trained.values())
        assert self.buffer.ledger.counts()["trained"] == len(self.trained)

    @invariant()
    def the_gate_holds(self) -> None:
        waiting = len(self.buffer.ledger.open("issued", "finished"))
        assert waiting <= (self.staleness + 1) * self.step

    @invariant()
    def nothing_goes_stale_while_versions_come_one_by_one(self) -> None:
        if not self.jumped:
            assert "reissued/stale" not in self.buffer.ledger.counts()


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(max_examples=80, stateful_step_count=50)

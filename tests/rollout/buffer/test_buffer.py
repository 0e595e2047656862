"""The staleness gate and the order in which groups are taken, by example and as a state machine with crashes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.buffer.buffer import (
    FAILURE_MINIMUM,
    FAILURE_WINDOW,
    MAX_FAILURES,
    NAMED,
    Buffer,
    BufferState,
    TooManyFailures,
)
from rollout.store.groups import decode_groups, encode_groups
from rollout.types import OBSERVED, Group, Task, Trajectory
from tests.samples import sample_of


def tasks(count: int) -> list[Task]:
    return [Task(id=f"t{i}", environment="e", messages=()) for i in range(count)]


def group(issue_id: str, task: Task, *versions: int, failed: bool = False) -> Group:
    """A group of two members. The first has one sampled token of each version, the second failed. In a failed group
    both failed."""
    sample = sample_of(
        token_ids=(1,) * (len(versions) + 1),
        loss_mask=(0,) + (1,) * len(versions),
        logprobs=(0.0,) * (len(versions) + 1),
        versions=(OBSERVED, *versions),
    )
    members = [
        Trajectory(
            task_id=task.id,
            group_id=issue_id,
            samples=() if broken else (sample,),
            messages=(),
            stop_reason="aborted" if broken else "answered",
            outcome="infra_error" if broken else "scored",
            reward=None if broken else 1.0,
            success=None if broken else True,
            error="the sandbox is gone" if broken else None,
        )
        for broken in (failed, True)
    ]
    return Group(id=issue_id, task=task, trajectories=tuple(members))


def make(
    *,
    staleness: int = 0,
    step: int = 2,
    count: int = 100,
    saved: BufferState | None = None,
    limit: float = 1.0,
    seed: int = 0,
) -> Buffer:
    return Buffer(
        tasks(count),
        saved,
        max_staleness=staleness,
        groups_per_step=step,
        failure_share_limit=limit,
        seed=seed,
    )


def through_a_checkpoint(state: BufferState) -> BufferState:
    return BufferState(
        ledger=json.loads(json.dumps(state.ledger)), groups=tuple(decode_groups(encode_groups(state.groups)))
    )


def issue_all(buffer: Buffer) -> list[tuple[str, Task]]:
    issued = []
    while (issue := buffer.issue()) is not None:
        issued.append(issue)
    return issued


def ids(groups: list[Group] | None) -> list[str] | None:
    return None if groups is None else [g.id for g in groups]


def test_nothing_is_issued_before_the_first_weights() -> None:
    buffer = make()
    assert buffer.issue() is None
    assert "until the first weights are published" in buffer.waiting_for()
    buffer.published(0)
    assert buffer.issue() is not None


def test_staleness_zero_is_exactly_on_policy() -> None:
    """Each version issues `groups_per_step` tasks. None is issued between taking them and publishing new weights."""
    buffer = make(staleness=0, step=2)
    for version in range(3):
        buffer.published(version)
        issued = issue_all(buffer)
        assert len(issued) == 2
        for issue in issued:
            buffer.put(group(*issue, version))
            assert buffer.issue() is None
        taken = buffer.take(version)
        assert taken is not None and buffer.issue() is None
        buffer.published(version)  # once more: it frees nothing
        assert buffer.issue() is None
        buffer.mark_trained([g.id for g in taken], version + 1)
        assert buffer.issue() is None
    assert buffer.ledger.counts() == {"issued": 6, "open": 0, "trained": 6, "dropped": 0, "reissued": 0}


def test_staleness_one_keeps_a_step_running_while_another_trains() -> None:
    buffer = make(staleness=1, step=2)
    buffer.published(0)
    first = issue_all(buffer)
    assert len(first) == 4
    for issue in first[:2]:
        buffer.put(group(*issue, 0))
    assert ids(buffer.take(0)) == ["g000000", "g000001"]
    assert buffer.issue() is None
    buffer.published(1)
    assert len(issue_all(buffer)) == 2


def test_a_fast_group_may_overtake_but_never_let_a_slow_one_expire() -> None:
    """max_staleness=1, one group a step. At version 1 the slow group of version 0 must be consumed; the fast one of
    version 1 can wait."""
    buffer = make(staleness=1, step=1)
    buffer.published(0)
    slow, fast = issue_all(buffer)
    buffer.put(group(*fast, 0))
    assert ids(buffer.take(0)) == [fast[0]]  # the slow one can still go with version 1
    buffer.published(1)
    [newer] = issue_all(buffer)
    buffer.put(group(*newer, 1))
    assert buffer.take(1) is None
    assert f"running are {slow[0]} (t0, since version 0)" in buffer.waiting_for()
    buffer.put(group(*slow, 0, 1))
    assert ids(buffer.take(1)) == [slow[0]]


def test_stragglers_that_could_not_all_be_consumed_in_time_are_waited_for() -> None:
    """max_staleness=2, one group a step. Overtaking is fine at version 0. At version 1 two groups of version 0 are
    left, for the steps at versions 1 and 2."""
    buffer = make(staleness=2, step=1)
    buffer.published(0)
    a, b, c = issue_all(buffer)
    buffer.put(group(*c, 0))
    assert ids(buffer.take(0)) == [c[0]]
    buffer.published(1)
    [d] = issue_all(buffer)
    buffer.put(group(*d, 1))
    assert buffer.take(1) is None  # both a and b would then have to go with version 2
    buffer.put(group(*b, 0))
    assert ids(buffer.take(1)) == [b[0]]
    buffer.published(2)
    buffer.put(group(*a, 0))
    assert ids(buffer.take(2)) == [a[0]]


def test_what_is_too_old_is_reissued_first() -> None:
    buffer = make(staleness=1, step=1)
    buffer.published(0)
    old, kept = issue_all(buffer)
    buffer.put(group(*old, 0, 2))  # one old token is enough
    buffer.put(group(*kept, 1, 2))
    buffer.published(2)
    assert ids(buffer.take(2)) == [kept[0]]
    assert buffer.ledger.counts()["reissued/stale"] == 1
    again = buffer.issue()
    assert again is not None and again[1].id == "t0" and again[0] not in (old[0], kept[0])


def test_groups_that_only_failed_are_reissued_and_at_last_dropped() -> None:
    buffer = make(staleness=0, step=1)
    buffer.published(0)
    for _ in range(MAX_FAILURES):
        issue = buffer.issue()
        assert issue is not None and issue[1].id == "t0"
        buffer.put(group(*issue, failed=True))
    after = buffer.issue()
    assert after is not None and after[1].id == "t1"
    counts = buffer.ledger.counts()
    assert (counts["reissued/infra_error"], counts["dropped/infra_error"]) == (MAX_FAILURES - 1, 1)
    assert buffer.arrivals == MAX_FAILURES


def test_the_circuit_breaker_names_share_limit_and_last_error() -> None:
    buffer = make(staleness=0, step=FAILURE_MINIMUM, limit=0.5)
    buffer.published(0)
    issued = issue_all(buffer)
    for issue in issued[: FAILURE_MINIMUM // 2]:
        buffer.put(group(*issue, 0))  # one of two members failed: just at the limit
    assert buffer.take(0) is None, "20 of them, and half have failed"
    buffer.put(group(*issued[-2], failed=True))
    last = group(*issued[-1], failed=True)
    buffer.put(replace(last, trajectories=tuple(replace(t, error=None) for t in last.trajectories)))
    with pytest.raises(
        TooManyFailures, match=r"14 of the last 24 .*\(rollout.failure_share_limit is 0.5\); the last one: no message"
    ):
        buffer.take(0)


def test_the_circuit_breaker_waits_until_enough_trajectories_have_come() -> None:
    buffer = make(staleness=0, step=FAILURE_MINIMUM, limit=0.5)
    buffer.published(0)
    issued = issue_all(buffer)
    for issue in issued[: FAILURE_MINIMUM // 2 - 1]:
        buffer.put(group(*issue, failed=True))
    assert buffer.take(0) is None
    buffer.put(group(*issued[-1], failed=True))
    with pytest.raises(TooManyFailures, match=r"20 of the last 20 .*sandbox is gone"):
        buffer.take(0)


def test_the_circuit_breaker_forgets_an_outage_that_is_over() -> None:
    buffer = make(staleness=0, step=2 * FAILURE_WINDOW, limit=0.6, count=2 * FAILURE_WINDOW)
    buffer.published(0)
    issued = issue_all(buffer)
    outage, later = issued[: FAILURE_WINDOW // 2], issued[FAILURE_WINDOW // 2 :]
    for issue in outage:
        buffer.put(group(*issue, failed=True))  # two members each: the whole window
    with pytest.raises(TooManyFailures, match=f"{FAILURE_WINDOW} of the last {FAILURE_WINDOW}"):
        buffer.take(0)
    for issue in later[: FAILURE_WINDOW // 2]:
        buffer.put(group(*issue, 0))  # every second member failed: below the limit
    assert buffer.take(0) is None
    assert FAILURE_MINIMUM < FAILURE_WINDOW


def test_tasks_wrap_around_in_a_new_order_each_epoch() -> None:
    def epochs(seed: int = 0) -> list[list[str]]:
        buffer = make(staleness=0, step=24, count=8, seed=seed)
        buffer.published(0)
        drawn = [task.id for _, task in issue_all(buffer)]
        return [drawn[0:8], drawn[8:16], drawn[16:24]]

    first, second, third = epochs()
    assert first == [f"t{i}" for i in range(8)]
    assert sorted(second) == sorted(third) == first
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    assert epochs() == [first, second, third]
    assert epochs(seed=1)[0] == first and epochs(seed=1)[1] not in (second, third)


def test_a_resumed_run_trains_the_finished_groups_that_waited_and_makes_the_others_again() -> None:
    buffer = make(staleness=1, step=2)
    buffer.published(0)
    issued = issue_all(buffer)
    finished = [group(*issue, 0) for issue in (issued[1], issued[3])]
    for done in finished:
        buffer.put(done)
    resumed = make(staleness=1, step=2, saved=through_a_checkpoint(buffer.state()))
    resumed.published(0)
    assert [(task.id) for _, task in issue_all(resumed)] == ["t0", "t2"]  # what was running
    assert resumed.take(0) == finished
    assert resumed.ledger.counts()["reissued"] == 2


def test_a_restored_group_is_judged_by_the_gate_like_any_other() -> None:
    buffer = make(staleness=1, step=1)
    buffer.published(0)
    buffer.put(group(*issue_all(buffer)[0], 0, 1))
    resumed = make(staleness=1, step=1, saved=through_a_checkpoint(buffer.state()))
    resumed.published(2)
    assert resumed.take(2) is None and resumed.ledger.counts()["reissued/stale"] == 1
    empty = make(staleness=1, step=1)
    empty.published(0)
    empty.put(group(*issue_all(empty)[0]))  # without sampled tokens it ages from its issue
    resumed = make(staleness=1, step=1, saved=through_a_checkpoint(empty.state()))
    resumed.published(2)
    assert resumed.take(2) is None and resumed.ledger.counts()["reissued/stale"] == 1


def test_a_group_without_sampled_tokens_ages_from_its_issue() -> None:
    buffer = make(staleness=0, step=1)
    buffer.published(0)
    issue = buffer.issue()
    assert issue is not None
    buffer.put(group(*issue))
    assert ids(buffer.take(0)) == [issue[0]]


def test_misuse_is_refused() -> None:
    buffer = make(staleness=0, step=1)
    buffer.published(3)
    issue = buffer.issue()
    assert issue is not None
    buffer.put(group(*issue, 3))
    with pytest.raises(ValueError, match="g000000 is finished"):
        buffer.put(group(*issue, 3))
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


def test_waiting_for_says_who_holds_whom_up() -> None:
    buffer = make(staleness=0, step=2)
    buffer.published(0)
    assert "waits for workers to ask for tasks" in buffer.waiting_for()
    issued = issue_all(buffer)
    buffer.put(group(*issued[0], 0))
    assert "1 groups running, 1 finished, 0 in training, 2 of 2 places" in buffer.waiting_for()
    assert "waits for 2 groups, running are g000001 (t1, since version 0)" in buffer.waiting_for()
    buffer.put(group(*issued[1], 0))
    buffer.take(0)
    assert "workers wait for the trainer to publish version 1" in buffer.waiting_for()


def test_waiting_for_names_the_oldest_groups_and_counts_the_others() -> None:
    buffer = make(staleness=0, step=NAMED + 2)
    buffer.published(0)
    issued = [buffer.issue() for _ in range(NAMED)]
    names = ", ".join(f"{issue[0]} ({issue[1].id}, since version 0)" for issue in issued if issue)
    assert buffer.waiting_for().endswith(f"running are {names}")
    issue_all(buffer)
    assert buffer.waiting_for().endswith(f"running are {names} and 2 more")


class Pipeline(RuleBasedStateMachine):
    """Workers, trainer and engines in any order and at any speed, with failures, lost steps and kills.

    The engines may hold a version that the buffer does not know yet (`pushed`): a push comes before `published`.
    """

    @initialize(staleness=st.integers(0, 3), step=st.integers(1, 3), count=st.integers(1, 7))
    def start(self, staleness: int, step: int, count: int) -> None:
        self.staleness, self.step, self.count = staleness, step, count
        self.buffer = make(staleness=staleness, step=step, count=count)
        self.version = self.pushed = 0
        self.steps = 0
        self.running: dict[str, tuple[Task, int]] = {}
        self.taken: list[Group] = []
        self.took_at = -1
        self.trained: Counter[str] = Counter()  # by issue id; a resumed run goes on from its checkpoint's
        self.jumped = False
        self.buffer.published(0)
        self.save()

    def save(self) -> None:
        state = through_a_checkpoint(self.buffer.state())
        self.checkpoint = (state, self.pushed, self.steps, Counter(self.trained))

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
        self.buffer.put(group(issue_id, task, begun, self.pushed, failed=fails))

    @precondition(lambda self: not self.taken and self.took_at != self.version)
    @rule()
    def the_trainer_takes(self) -> None:
        self.accept(self.buffer.take(self.version))

    def accept(self, groups: list[Group] | None) -> None:
        if groups is None:
            return
        assert len(groups) == self.step
        for taken in groups:
            oldest = taken.oldest_version()
            assert oldest is not None and oldest >= self.version - self.staleness
        self.taken, self.took_at = groups, self.version

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

    @rule(at_once=st.booleans())
    def the_run_is_killed_and_resumed(self, at_once: bool) -> None:
        """Resume from the last checkpoint or, with `at_once`, from the buffer's state at this very moment."""
        if at_once:
            self.save()
        state, self.version, self.steps, self.trained = self.checkpoint
        self.buffer = make(staleness=self.staleness, step=self.step, count=self.count, saved=state)
        # Finished groups wait again. Nothing else that was open is open now.
        assert {issue.id for issue in self.buffer.ledger.open("issued", "finished", "taken")} == {
            saved.id for saved in state.groups
        }
        self.pushed, self.took_at = self.version, -1
        self.running, self.taken = {}, []
        self.trained = Counter(self.trained)
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
                self.buffer.put(group(issue_id, task, begun))
            self.running = {}
            self.accept(self.buffer.take(self.version))
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

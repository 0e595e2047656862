"""The ledger: the record of what became of every task that was handed out.

    issue_next ──▶ issued ──▶ finished ──▶ taken ──▶ trained
                      │           │          │
                      └───────────┴──────────┴─────▶ dropped for good (reason)
                                             └─────▶ re-issued (reason): a new issue of the same task, with its parent

An issue ends exactly once, so at any time  issued = open + trained + dropped + re-issued,  and each position of the
task stream below the cursor is open, waiting to be re-issued, trained or dropped. Closed issues are kept only as
counts, so the size of the state depends on the work under way and not on the length of the run. Every transition is
also recorded as an event (`rollout.store.eventlog` lists them), from which a resumed run learns what its checkpoint
does not know (`rollout.buffer.resume`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from rollout.store.groups import task_of
from rollout.types import Address, Task

State = Literal["issued", "finished", "taken"]
Reason = Literal["stale", "infra_error", "interrupted", "orphaned"]
"""stale: too old to train.  infra_error: no member survived.  interrupted: under way when the run was resumed.
orphaned: sampled by weights that are newer than the checkpoint of a resumed run, and so are lost."""


class Record(Protocol):
    """Keeps an event, as `EventLog.append` does."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An open issue: one handing-out of a task, which has not ended yet."""

    id: str
    """Begins with the number of the run's start, so no resumed run gives an id again."""
    number: int
    """Counts issues from 0; a smaller number is older."""
    task: Task
    position: int
    """Index of the task in the infinite task stream. Re-issues of a task share it."""
    version: int
    """The policy version that was published when it was issued. None of its tokens is older."""
    failures: int
    """Number of earlier issues of this task that ended as infra_error."""
    parent: str | None
    """The issue that this one repeats."""
    state: State
    address: Address | None = None
    """Where its group lies, once it is finished."""
    versions: tuple[int, int] | None = None
    """The oldest and the newest version of the group's sampled tokens; None where nothing was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    task: Task
    position: int
    failures: int
    parent: str


class Ledger:
    """See the module's docstring. A transition that is not in the diagram raises ValueError."""

    def __init__(self, record: Record, start: int = 1) -> None:
        """`start` counts the starts of the run from 1, this one included."""
        self.record = record
        self._start = start
        self._open: dict[str, Issue] = {}
        self._states: Counter[State] = Counter()
        self._retries: deque[_Retry] = deque()
        self._cursor = 0
        self._issued = 0
        self._trained = 0
        self._last_step = 0
        self._dropped: Counter[str] = Counter()
        self._reissued: Counter[str] = Counter()

    def issue_next(self, version: int, task_at: Callable[[int], Task]) -> Issue:
        """Open the next issue: of the task that has waited longest to be re-issued, or else of the next position."""
        retry = self._retries[0] if self._retries else None
        issue = Issue(
            id=f"g{self._start}-{self._issued:06d}",
            number=self._issued,
            task=retry.task if retry else task_at(self._cursor),
            position=retry.position if retry else self._cursor,
            version=version,
            failures=retry.failures if retry else 0,
            parent=retry.parent if retry else None,
            state="issued",
        )
        self._add(issue)
        return issue

    def finish(self, issue_id: str, address: Address, versions: tuple[int, int] | None) -> Issue:
        """Record that the group of an issue has arrived, where it lies, and its oldest and newest version."""
        issue = replace(self._require(issue_id, ("issued",)), state="finished", address=address, versions=versions)
        self._put(issue)
        self.record("finished", id=issue_id, address=[address.segment, address.record], versions=versions)
        return issue

    def take(self, issue_ids: Sequence[str], version: int) -> None:
        """Record that the step that trains `version` has these issues."""
        for issue_id in issue_ids:
            self._put(replace(self._require(issue_id, ("finished",)), state="taken"))
        self.record("taken", version=version, ids=list(issue_ids))

    def mark_trained(self, issue_ids: Sequence[str], step: int) -> None:
        """Close the issues that optimizer step `step` (counted from 1) has consumed.

        Raises:
            ValueError: an issue was not taken or is closed already, or the step is not after the last one.
        """
        if step <= self._last_step:
            raise ValueError(f"step {step} is in the ledger already (the last is {self._last_step}): trained twice?")
        for issue_id in issue_ids:
            self._require(issue_id, ("taken",))
        for issue_id in issue_ids:
            self._close(issue_id)
        self._trained += len(issue_ids)
        self._last_step = step
        self.record("trained", step=step, ids=list(issue_ids))

    def drop(self, issue_id: str, reason: Reason) -> None:
        """Close an issue for good: its position is not issued again."""
        self._close(issue_id)
        self._dropped[reason] += 1
        self.record("dropped", id=issue_id, reason=reason)

    def reissue(self, issue_id: str, reason: Reason) -> None:
        """Close an issue and queue its task for a new one. An infra_error counts as one more failure of the task."""
        issue = self._close(issue_id)
        failures = issue.failures + (reason == "infra_error")
        self._retries.append(_Retry(task=issue.task, position=issue.position, failures=failures, parent=issue.id))
        self._reissued[reason] += 1
        self.record("reissued", id=issue_id, reason=reason)

    def replay(self, event: Mapping[str, Any]) -> None:
        """Apply an event that an earlier start logged after its checkpoint, except that a group which was taken or
        trained stays finished: its step went with the weights."""
        match event["event"]:
            case "issued":
                fields = {name: event[name] for name in ("id", "number", "position", "version", "failures", "parent")}
                self._add(Issue(**fields, task=task_of(event["task"]), state="issued"))
            case "finished":
                segment, record = event["address"]
                self.finish(event["id"], Address(segment=segment, record=record), _pair(event["versions"]))
            case "dropped":
                self.drop(event["id"], event["reason"])
            case "reissued":
                self.reissue(event["id"], event["reason"])

    def wait_again(self, issue_id: str) -> Issue:
        """Record that a group which was taken when the checkpoint was written waits again."""
        issue = replace(self._require(issue_id, ("taken",)), state="finished")
        self._put(issue)
        return issue

    def open(self, *states: State) -> list[Issue]:
        """Return the open issues in these states, oldest first."""
        return [issue for issue in self._open.values() if issue.state in states]

    def count(self, *states: State) -> int:
        """Return the number of open issues in these states, without looking at each."""
        return sum(self._states[state] for state in states)

    def counts(self) -> dict[str, int]:
        """Return the number of issues that are issued, open, trained, dropped and reissued.

        `dropped/<reason>` and `reissued/<reason>` are included where there are any.
        """
        return _counts(self._issued, len(self._open), self._trained, self._dropped, self._reissued)

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values."""
        return {
            "cursor": self._cursor,
            "issued": self._issued,
            "trained": self._trained,
            "last_step": self._last_step,
            "dropped": dict(self._dropped),
            "reissued": dict(self._reissued),
            "open": [asdict(issue) for issue in self._open.values()],
            "retries": [asdict(retry) for retry in self._retries],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], record: Record, start: int) -> Ledger:
        """Return the ledger as it was when `state_dict` was called."""
        ledger = cls(record, start)
        ledger._cursor = state["cursor"]
        ledger._issued = state["issued"]
        ledger._trained = state["trained"]
        ledger._last_step = state["last_step"]
        ledger._dropped.update(state["dropped"])
        ledger._reissued.update(state["reissued"])
        for issue in state["open"]:
            ledger._put(_issue(issue))
        ledger._retries.extend(_Retry(**{**retry, "task": task_of(retry["task"])}) for retry in state["retries"])
        return ledger

    def _add(self, issue: Issue) -> None:
        if issue.parent is None:
            self._cursor = issue.position + 1
        else:
            self._retries.remove(next(retry for retry in self._retries if retry.parent == issue.parent))
        self._issued = issue.number + 1
        self._put(issue)
        fields = asdict(issue)
        del fields["state"], fields["address"], fields["versions"]
        self.record("issued", **fields)

    def _require(self, issue_id: str, states: Sequence[State]) -> Issue:
        issue = self._open.get(issue_id)
        if issue is None or issue.state not in states:
            found = "not open (unknown, or ended already)" if issue is None else issue.state
            raise ValueError(f"issue {issue_id} is {found}, expected {' or '.join(states)}")
        return issue

    def _close(self, issue_id: str) -> Issue:
        issue = self._require(issue_id, ("issued", "finished", "taken"))
        del self._open[issue_id]
        self._states[issue.state] -= 1
        return issue

    def _put(self, issue: Issue) -> None:
        before = self._open.get(issue.id)
        if before is not None:
            self._states[before.state] -= 1
        self._states[issue.state] += 1
        self._open[issue.id] = issue


def counts_of(state: Mapping[str, Any]) -> dict[str, int]:
    """The `counts` of the ledger that `state_dict` returned `state` of."""
    return _counts(state["issued"], len(state["open"]), state["trained"], state["dropped"], state["reissued"])


def _counts(
    issued: int, opened: int, trained: int, dropped: Mapping[str, int], reissued: Mapping[str, int]
) -> dict[str, int]:
    return {
        "issued": issued,
        "open": opened,
        "trained": trained,
        "dropped": sum(dropped.values()),
        "reissued": sum(reissued.values()),
        **{f"dropped/{reason}": count for reason, count in sorted(dropped.items())},
        **{f"reissued/{reason}": count for reason, count in sorted(reissued.items())},
    }


def _issue(fields: Mapping[str, Any]) -> Issue:
    address = None if fields["address"] is None else Address(**fields["address"])
    read = {"task": task_of(fields["task"]), "address": address, "versions": _pair(fields["versions"])}
    return Issue(**{**fields, **read})


def _pair(versions: Sequence[int] | None) -> tuple[int, int] | None:
    return None if versions is None else (versions[0], versions[1])

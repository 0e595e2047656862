"""The ledger: the record of what became of every task that was handed out.

    issue_next ──▶ issued ──▶ finished ──▶ taken ──▶ trained
                      │           │          │
                      └───────────┴──────────┴─────▶ dropped for good (reason)
                                             └─────▶ re-issued (reason): a new issue of the same task, with its parent

An issue ends exactly once, so at any time  issued = open + trained + dropped + re-issued,  and each position of the
task stream below the cursor is open, waiting to be re-issued, trained or dropped. Closed issues are kept only as
counts, so the size of the state depends on the work under way and not on the length of the run.

The ledger is saved as JSON in a checkpoint. On resume a finished issue whose group was saved with it stays finished.
Every other open issue is re-issued, because it died with the process. A trained issue is never repeated. The ledger
knows positions and ids, but neither tasks nor groups; `rollout.buffer.buffer` knows those.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

State = Literal["issued", "finished", "taken"]
Reason = Literal["stale", "infra_error", "interrupted"]
"""stale: too old to train.  infra_error: no member survived.  interrupted: under way when the run was resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An open issue: one handing-out of a task, which has not ended yet."""

    id: str
    number: int
    """Counts issues from 0; a smaller number is older."""
    position: int
    """Index of the task in the infinite task stream. Re-issues of a task share it."""
    version: int
    """The policy version that was published when it was issued. None of its tokens is older."""
    failures: int
    """Number of earlier issues of this task that ended as infra_error."""
    parent: str | None
    """The issue that this one repeats."""
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    position: int
    failures: int
    parent: str


class Ledger:
    """See the module's docstring. A transition that is not in the diagram raises ValueError."""

    def __init__(self) -> None:
        self._open: dict[str, Issue] = {}
        self._retries: deque[_Retry] = deque()
        self._cursor = 0
        self._issued = 0
        self._trained = 0
        self._last_step = 0
        self._dropped: Counter[str] = Counter()
        self._reissued: Counter[str] = Counter()

    def issue_next(self, version: int) -> Issue:
        """Open the next issue: of the task that has waited longest to be re-issued, or else of the next position."""
        if self._retries:
            retry = self._retries.popleft()
        else:
            retry = None
            self._cursor += 1
        issue = Issue(
            id=f"g{self._issued:06d}",
            number=self._issued,
            position=retry.position if retry else self._cursor - 1,
            version=version,
            failures=retry.failures if retry else 0,
            parent=retry.parent if retry else None,
            state="issued",
        )
        self._issued += 1
        self._open[issue.id] = issue
        return issue

    def finish(self, issue_id: str) -> Issue:
        """Record that the group of an issue has arrived."""
        return self._move(issue_id, ("issued",), "finished")

    def take(self, issue_ids: Iterable[str]) -> None:
        """Record that the trainer has these issues."""
        for issue_id in issue_ids:
            self._move(issue_id, ("finished",), "taken")

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
            del self._open[issue_id]
        self._trained += len(issue_ids)
        self._last_step = step

    def drop(self, issue_id: str, reason: Reason) -> None:
        """Close an issue for good: its position is not issued again."""
        self._close(issue_id)
        self._dropped[reason] += 1

    def reissue(self, issue_id: str, reason: Reason) -> None:
        """Close an issue and queue its task for a new one. An infra_error counts as one more failure of the task."""
        issue = self._close(issue_id)
        failures = issue.failures + (reason == "infra_error")
        self._retries.append(_Retry(position=issue.position, failures=failures, parent=issue.id))
        self._reissued[reason] += 1

    def open(self, *states: State) -> list[Issue]:
        """Return the open issues in these states, oldest first."""
        return [issue for issue in self._open.values() if issue.state in states]

    def counts(self) -> dict[str, int]:
        """Return the number of issues that are issued, open, trained, dropped and reissued.

        `dropped/<reason>` and `reissued/<reason>` are included where there are any.
        """
        return {
            "issued": self._issued,
            "open": len(self._open),
            "trained": self._trained,
            "dropped": self._dropped.total(),
            "reissued": self._reissued.total(),
            **{f"dropped/{reason}": count for reason, count in sorted(self._dropped.items())},
            **{f"reissued/{reason}": count for reason, count in sorted(self._reissued.items())},
        }

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
    def from_state_dict(cls, state: Mapping[str, Any], kept: Collection[str] = ()) -> Ledger:
        """Return the ledger of a resumed run. The issues `kept` stay finished.

        Other open issues are queued for re-issue, ahead of those already queued.

        Raises:
            ValueError: one of `kept` was not finished.
        """
        ledger = cls()
        ledger._cursor = state["cursor"]
        ledger._issued = state["issued"]
        ledger._trained = state["trained"]
        ledger._last_step = state["last_step"]
        ledger._dropped.update(state["dropped"])
        ledger._reissued.update(state["reissued"])
        ledger._open = {issue["id"]: Issue(**issue) for issue in state["open"]}
        for issue_id in kept:
            ledger._require(issue_id, ("finished",))
        for issue_id in [issue_id for issue_id in ledger._open if issue_id not in kept]:
            ledger.reissue(issue_id, "interrupted")
        ledger._retries.extend(_Retry(**retry) for retry in state["retries"])
        return ledger

    def _require(self, issue_id: str, states: Sequence[State]) -> Issue:
        issue = self._open.get(issue_id)
        if issue is None or issue.state not in states:
            found = "not open (unknown, or ended already)" if issue is None else issue.state
            raise ValueError(f"issue {issue_id} is {found}, expected {' or '.join(states)}")
        return issue

    def _move(self, issue_id: str, states: Sequence[State], to: State) -> Issue:
        issue = replace(self._require(issue_id, states), state=to)
        self._open[issue_id] = issue
        return issue

    def _close(self, issue_id: str) -> Issue:
        issue = self._require(issue_id, ("issued", "finished", "taken"))
        del self._open[issue_id]
        return issue

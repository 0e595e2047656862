"""The ledger: what became of every task that was handed out (invariant 6).

    issue_next ──▶ issued ──▶ finished ──▶ taken ──▶ trained
                      │           │          │
                      └───────────┴──────────┴─────▶ dropped for good (reason)
                                             └─────▶ re-issued (reason): a new issue of the same task, with its parent

An issue ends exactly once, so at any time  issued = open + trained + dropped + re-issued,  and each position of the
task stream below the cursor is open, waiting to be re-issued, trained or dropped. Closed issues live on only as
counts, so the state stays as small as what is under way, however long the run.

It is JSON inside a checkpoint. On resume a finished issue whose group was saved with it stays finished; everything else
that was open is re-issued (it died with the process), and what was trained can't come back. The ledger knows positions
and ids, neither tasks nor groups; `rollout.buffer.buffer` does.
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
    """One handing-out of a task that has not ended yet."""

    id: str
    number: int
    """Counts issues from 0: smaller is older."""
    position: int
    """Of the task, in the endless stream of tasks; shared by all re-issues of it."""
    version: int
    """The policy version published when it was issued: none of its tokens is older."""
    failures: int
    """How many earlier issues of this task ended as infra_error."""
    parent: str | None
    """The issue that this one repeats."""
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    position: int
    failures: int
    parent: str


class Ledger:
    """See the module's docstring. A transition that the diagram lacks is a ValueError, never a silent correction."""

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
        """Open the next issue: of what waits to be re-issued, oldest first, else of the next position."""
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
        """Its group has arrived."""
        return self._move(issue_id, ("issued",), "finished")

    def take(self, issue_ids: Iterable[str]) -> None:
        """The trainer has them."""
        for issue_id in issue_ids:
            self._move(issue_id, ("finished",), "taken")

    def mark_trained(self, issue_ids: Sequence[str], step: int) -> None:
        """Close what optimizer step `step` (counted from 1) has consumed.

        Raises:
            ValueError: an issue was not taken, or is closed already; or the step is not after the last one.
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
        """Close it for good: its task is not tried again."""
        self._close(issue_id)
        self._dropped[reason] += 1

    def reissue(self, issue_id: str, reason: Reason) -> None:
        """Close it and let its task wait for a new issue. An infra_error counts as one more failure of the task."""
        issue = self._close(issue_id)
        failures = issue.failures + (reason == "infra_error")
        self._retries.append(_Retry(position=issue.position, failures=failures, parent=issue.id))
        self._reissued[reason] += 1

    def open(self, *states: State) -> list[Issue]:
        """The open issues in these states, oldest first."""
        return [issue for issue in self._open.values() if issue.state in states]

    def counts(self) -> dict[str, int]:
        """issued, open, trained, dropped, reissued; and `dropped/<reason>`, `reissued/<reason>` where there are any."""
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
        """JSON."""
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
        """The ledger of a resumed run: the issues `kept` stay finished, what was open besides waits to be re-issued,
        before what waited already.

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

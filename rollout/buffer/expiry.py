"""The admitted groups in the order in which they expire, and which of them the next step takes.

Two sorted lists, one of the groups that run and one of those that are finished. A call looks up places in them and does
not walk over them, so it costs about the same however many groups are open.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

Key = tuple[int, int, str]
"""The last version whose step may train a group, the number of its issue, and the issue's id."""


class Expiry:
    """The groups that run and those that are finished. Each list is sorted; earlier ones expire first."""

    def __init__(self) -> None:
        self._running: list[Key] = []
        self._finished: list[Key] = []
        self._keys: dict[str, Key] = {}

    def run(self, key: Key) -> None:
        self._keys[key[-1]] = key
        insort(self._running, key)

    def end(self, issue_id: str) -> None:
        """Remove a group that runs."""
        del self._running[bisect_left(self._running, self._keys.pop(issue_id))]

    def finish(self, key: Key) -> None:
        insort(self._finished, key)

    def pop_stale(self, version: int) -> list[str]:
        """Remove the finished groups that no step of `version` or a later one may train. Return their ids."""
        return self._pop(bisect_left(self._finished, (version,)))

    def pop_next(self, count: int, version: int) -> list[str] | None:
        """Remove the `count` finished groups that expire first, for the step of `version`. Return their ids.

        Return None if there are fewer, or if some of the groups left behind would then expire.
        """
        if len(self._finished) < count:
            return None
        first_of_all = not self._running or self._finished[count - 1] < self._running[0]
        return self._pop(count) if first_of_all or self._in_time(count, version) else None

    def _pop(self, count: int) -> list[str]:
        popped = [issue_id for _, _, issue_id in self._finished[:count]]
        del self._finished[:count]
        return popped

    def _in_time(self, count: int, version: int) -> bool:
        """Whether the steps after that of `version` can take all that it leaves behind before it expires: the groups
        of each deadline, and all that expire before them."""
        last = max(keys[-1][0] for keys in (self._running, self._finished) if keys)
        return all(
            self._until(deadline, count) <= (deadline - version) * count
            for deadline in range(self._running[0][0], last + 1)
        )

    def _until(self, deadline: int, taken: int) -> int:
        """The number of groups that expire by `deadline`, without the finished groups that are taken."""
        running, finished = (bisect_right(keys, (deadline + 1,)) for keys in (self._running, self._finished))
        return running + max(0, finished - taken)

"""Which groups a step takes, against the rule that `rollout.buffer.buffer` states, walked group by group."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.buffer.expiry import Expiry, Key

GROUPS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=14)
"""Of each admitted group: the last version whose step may train it, and whether it is finished."""


def expiry_of(groups: list[tuple[int, bool]]) -> tuple[Expiry, dict[str, tuple[Key, bool]]]:
    expiry, known = Expiry(), {}
    for number, (deadline, finished) in enumerate(groups):
        key = (deadline, number, f"g{number}")
        known[key[-1]] = key, finished
        expiry.run((0, number, key[-1]))
        if finished:
            expiry.end(key[-1])
            expiry.finish(key)
        else:
            expiry.end(key[-1])
            expiry.run(key)
    return expiry, known


def walked(known: dict[str, tuple[Key, bool]], count: int, version: int) -> list[str] | None:
    """The rule: of each group that is left behind, the step that can take it at the latest must come in time."""
    order = sorted(known.values())
    chosen = [key for key, finished in order if finished][:count]
    if len(chosen) < count:
        return None
    left = [key for key, _ in order if key not in chosen]
    first_of_all = chosen == [key for key, _ in order][:count]
    in_time = all(deadline > version + rank // count for rank, (deadline, _, _) in enumerate(left))
    return [issue_id for _, _, issue_id in chosen] if first_of_all or in_time else None


@given(groups=GROUPS, count=st.integers(1, 5), version=st.integers(0, 4))
def test_a_step_takes_what_the_rule_says(groups: list[tuple[int, bool]], count: int, version: int) -> None:
    expiry, known = expiry_of(groups)
    stale = [issue_id for issue_id, (key, finished) in known.items() if finished and key[0] < version]
    assert sorted(expiry.pop_stale(version)) == sorted(stale)
    left = {issue_id: known[issue_id] for issue_id in known if issue_id not in stale}
    assert expiry.pop_next(count, version) == walked(left, count, version)


@given(groups=GROUPS)
def test_what_a_step_took_is_gone(groups: list[tuple[int, bool]]) -> None:
    expiry, known = expiry_of([(deadline + 100, finished) for deadline, finished in groups])
    seen: list[str] = []
    while (taken := expiry.pop_next(1, 0)) is not None:
        seen += taken
    assert seen == [issue_id for (_, _, issue_id), finished in sorted(known.values()) if finished]

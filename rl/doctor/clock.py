"""How far the clocks of machines are apart, from the fastest of several round trips (as NTP does, RFC 5905)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rl.doctor.finding import Finding

PINGS = 7
MOST_S = 1.0


def skew(ask: Callable[[], float]) -> float:
    """Seconds by which the clock behind `ask`, which returns its time, is ahead of the one here."""
    best, offset = float("inf"), 0.0
    for _ in range(PINGS):
        sent, began = time.time(), time.monotonic()
        there = ask()
        took = time.monotonic() - began
        if took < best:
            best, offset = took, there - (sent + took / 2)
    return offset


def judge(skews: Mapping[str, float]) -> Finding:
    """The finding, from how far each machine's clock is ahead."""
    wrong = [
        f"the clock of {machine} is {seconds:+.1f} s off" for machine, seconds in skews.items() if abs(seconds) > MOST_S
    ]
    if wrong:
        fix = "let chrony or ntpd set the clocks; timelines and spans of different machines would not fit together"
        return Finding("clocks", False, f"{'; '.join(wrong)}: {fix}")
    most = max((abs(seconds) for seconds in skews.values()), default=0.0)
    return Finding("clocks", True, f"at most {most * 1000:.0f} ms apart" if len(skews) > 1 else "one machine")

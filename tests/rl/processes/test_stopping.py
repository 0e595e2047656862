"""Requests to stop the run, and when the main thread raises them."""

from __future__ import annotations

import pytest

from rl.processes.stopping import Stopped, StopRequest


def test_the_first_request_is_raised_by_the_next_check() -> None:
    stop = StopRequest()
    stop.check()
    stop.request("SIGINT", 130)
    stop.request("no progress", 75)
    for _ in range(2):
        with pytest.raises(Stopped, match="SIGINT") as stopped:
            stop.check()
        assert stopped.value.code == 130


def test_an_interrupt_is_raised_at_once_while_the_run_is_interruptible() -> None:
    stop = StopRequest()
    with pytest.raises(Stopped), stop.interruptible():
        stop.interrupt("SIGTERM", 143)
    stop.interrupt("SIGTERM", 143)  # afterwards it only notes the request


def test_an_interrupt_before_or_after_interruptible_code_is_raised_by_the_next_check() -> None:
    stop = StopRequest()
    stop.interrupt("SIGTERM", 143)
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        stop.check()
    assert stopped.value.code == 143


def test_inside_deferred_code_an_interrupt_waits_for_its_end_or_its_check() -> None:
    stop = StopRequest()
    reached = []
    with stop.interruptible():
        with pytest.raises(Stopped), stop.deferred():
            stop.interrupt("SIGINT", 130)
            reached.append("the end")
        with pytest.raises(Stopped):
            stop.interrupt("SIGINT", 130)
    assert reached == ["the end"]

"""Reachability over real sockets, clocks, and the all-reduce's verdicts."""

from __future__ import annotations

import socket
import time

import pytest

from rl.doctor import clock, network, reduce


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_is_bound_and_published_is_reached(address: str) -> None:
    ports = {address: network.listen(address)}
    assert network.reach(ports) == {}
    assert network.judge(ports, {"a": {}, "b": {}}).text == "2 ways between 2 machines"


def test_a_pair_that_fails_is_named_with_its_direction() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        ports = {"127.0.0.1": closed.getsockname()[1]}
        failed = network.reach(ports)
    assert failed == {"127.0.0.1": "Connection refused"}
    found = network.judge(ports, {"10.0.0.2": failed, "127.0.0.1": {}})
    assert not found.fine and "firewall" in found.text
    assert f"10.0.0.2 does not reach 127.0.0.1 at port {ports['127.0.0.1']} (Connection refused)" in found.text


def test_somebody_who_accepts_and_says_nothing_is_no_machine_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert network.reach({"127.0.0.1": silent.getsockname()[1]}, limit_s=0.3) == {"127.0.0.1": "timed out"}


def test_the_skew_is_that_of_the_fastest_round_trip() -> None:
    delays = iter([0.05, 0.001, 0.05, 0.05, 0.05, 0.05, 0.05])

    def ask() -> float:
        there = time.time() + 5.0
        time.sleep(next(delays))  # on the way back only, which a slow round trip would count as skew
        return there

    assert clock.skew(ask) == pytest.approx(5.0, abs=0.02)
    off = clock.judge({"a": 0.0, "b": 5.0})
    assert not off.fine and "the clock of b is +5.0 s off" in off.text and "chrony" in off.text
    assert clock.judge({"a": 0.0, "b": -0.01}).text == "at most 10 ms apart"


def test_the_sum_and_the_rank_that_failed_are_judged() -> None:
    assert reduce.judge([3.0, 3.0], ["a", "b"], "cpu").text == "gloo, 2 ranks on 2 machines"
    found = reduce.judge(["rank 1 did not arrive; timed out", 3.0], ["a", "b"], "cuda")
    assert not found.fine and "rank 0 on a: rank 1 did not arrive" in found.text and "nccl" in found.text
    assert "2 is not 3" in reduce.judge([2.0, 3.0], ["a", "b"], "cpu").text

"""What is said of a machine whose connection has ended, with commands that end by themselves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from rl.launch.greeting import Greeting
from rl.launch.hosts import Hosts, Others

LINES = [f"line {number}" for number in range(9)]


def connected(logs: Path, *, logs_stay: bool) -> Hosts:
    talks = [sys.executable, "-c", f"print({chr(10).join(LINES)!r}, end='\\n\\n')"]
    commands = {"a": talks, "b/c": [sys.executable, "-c", ""]}
    hosts = Hosts(Others(source="test", commands=commands, environment={}, first="a"), logs, logs_stay=logs_stay)
    hosts.start(Greeting(address="127.0.0.1:1", token="", run_id="r", environment={}, code="", python=""))
    return hosts


@pytest.mark.parametrize("logs_stay", [True, False])
def test_what_a_machine_said_last_is_told_where_its_log_is_deleted_more_of_it(tmp_path: Path, logs_stay: bool) -> None:
    hosts = connected(tmp_path, logs_stay=logs_stay)
    try:
        while len(ended := hosts.ended()) < 2:
            time.sleep(0.05)
    finally:
        hosts.close()
    silent = "b/c: the connection ended without a word"
    if logs_stay:
        assert ended == [f"a: line 8 (its log: {tmp_path}/host-a.log)", f"{silent} (its log: {tmp_path}/host-b_c.log)"]
    else:
        assert ended == ["a: line 4 | line 5 | line 6 | line 7 | line 8", silent]

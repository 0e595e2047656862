"""Processes that run code in a sandbox: `python -m tests.rewards.sandbox.sandbox_hosts NAME [ARGUMENT]`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys

import uvloop

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox


def forks() -> None:
    """Print a result under each of two event loops, how often this process has forked, and the same after a fork."""
    counted = []
    before_fork = ctypes.CFUNCTYPE(None)(lambda: counted.append(1))
    assert ctypes.CDLL(None).__register_atfork(before_fork, None, None, None) == 0
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            print(runner.run(Sandbox(SandboxConfig()).run("print(6 * 7)")).stdout.strip())
    print(len(counted))
    if os.fork() == 0:
        os._exit(0)
    print(len(counted))


def long() -> None:
    """Run the code on standard input for up to five minutes."""
    asyncio.run(Sandbox(SandboxConfig(wall_s=300)).run(sys.stdin.read()))


def as_user(prefix: str) -> None:
    """Become an ordinary user and run the code on standard input under the interpreter in `prefix`."""
    sys.base_prefix = prefix
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(12345)
        os.setuid(12345)
    result = asyncio.run(Sandbox(SandboxConfig()).run(sys.stdin.read()))
    print(result.stdout, result.stderr, result.outcome)


if __name__ == "__main__":
    {"forks": forks, "long": long, "as_user": as_user}[sys.argv[1]](*sys.argv[2:])

"""Other machines of a run, reached over ssh: on each the verb `node` joins Ray, and ends when its connection does."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl.launch.greeting import Greeting
from rl.paths import REPOSITORY

OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-T")
"""Nobody is asked for a password, and a machine that is cut off is noticed within 20 s."""
CLOSE_S = 15.0
_CHARACTERS = 2000


class Hosts:
    """The connections to the other machines. What a machine says goes to `host-NAME.log` in the folder of logs."""

    def __init__(self, names: Sequence[str], ssh: str, logs: Path) -> None:
        self._logs = {name: logs / f"host-{name.replace('/', '_')}.log" for name in names}
        self._ssh = shlex.split(ssh)
        self._connections: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, said: Greeting) -> None:
        """Connect to every machine at once, and tell each the greeting."""
        for name, log in self._logs.items():
            with log.open("ab") as output:
                connection = subprocess.Popen(
                    [*self._ssh, *OPTIONS, name, _command()],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self._connections[name] = connection
            assert connection.stdin is not None
            try:
                connection.stdin.write(said.line())
                connection.stdin.flush()
            except BrokenPipeError:  # it ended already: `ended` says so
                continue

    def ended(self) -> list[str]:
        """Of each machine whose connection has ended, its name and the last line that it said."""
        return [
            f"{name}: {self._last_line(name)} (its log: {self._logs[name]})"
            for name, connection in self._connections.items()
            if connection.poll() is not None
        ]

    def close(self) -> None:
        """End what was started on the machines, and wait for it. Never raises."""
        for connection in self._connections.values():
            if connection.stdin is not None:
                try:
                    connection.stdin.close()
                except OSError:
                    continue
        end = time.monotonic() + CLOSE_S
        for connection in self._connections.values():
            try:
                connection.wait(timeout=max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                connection.kill()
                connection.wait()
        self._connections = {}

    def _last_line(self, name: str) -> str:
        text = self._logs[name].read_bytes()[-_CHARACTERS:].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "the connection ended without a word"


def _command() -> str:
    """What ssh runs on a machine: launch.sh of the same working tree, with the same environment if one was named."""
    named = [f"SLUICE_VENV={shlex.quote(sys.prefix)}"] if "SLUICE_VENV" in os.environ else []
    device = os.environ.get("SLUICE_DEVICE")
    named += [f"SLUICE_DEVICE={shlex.quote(device)}"] if device else []
    return " ".join([f"cd {shlex.quote(str(REPOSITORY))} &&", *named, "exec ./launch.sh node"])

"""Other machines of a run: on each the verb `node` joins Ray, and ends when the command that started it there does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.launch.greeting import Greeting

CLOSE_S = 15.0
END_S = 2.0
_CHARACTERS, _LINES = 2000, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """The other machines of a run: who named them, the command by its machine that runs `node` there, the environment
    of these commands, and an address or a name of the first machine."""

    source: str
    commands: Mapping[str, Sequence[str]]
    environment: Mapping[str, str]
    first: str


class Hosts:
    """The connections to the other machines. What a machine says goes to `host-NAME.log` in the folder of logs. Where
    that is deleted at the end, messages name no log, and have the last lines instead of the last one."""

    def __init__(self, others: Others, logs: Path, *, logs_stay: bool = True) -> None:
        self._others, self._logs_stay = others, logs_stay
        self._logs = {name: logs / f"host-{name.replace('/', '_')}.log" for name in others.commands}
        self._connections: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, said: Greeting) -> None:
        """Connect to every machine at once, and tell each the greeting."""
        for name, log in self._logs.items():
            with log.open("ab") as output:
                connection = subprocess.Popen(
                    self._others.commands[name],
                    env=dict(self._others.environment),
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
        """Of each machine whose connection has ended, its name and what it said last."""
        return [
            f"{name}: {self._last_words(name)}"
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
                _end(connection)
        self._connections = {}

    def _last_words(self, name: str) -> str:
        text = self._logs[name].read_bytes()[-_CHARACTERS:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["the connection ended without a word"]
        return f"{lines[-1]} (its log: {self._logs[name]})" if self._logs_stay else " | ".join(lines[-_LINES:])


def _end(connection: subprocess.Popen[bytes]) -> None:
    """An srun that is only killed would leave its step behind."""
    connection.terminate()
    try:
        connection.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        connection.kill()
        connection.wait()

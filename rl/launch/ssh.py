"""The command that reaches another machine over ssh."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from rl.launch.hosts import Others
from rl.paths import REPOSITORY

OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-T")
"""Nobody is asked for a password, and a machine that is cut off is noticed within 20 s."""


def over_ssh(hosts: Sequence[str], ssh: str) -> Others:
    """The machines of a hostfile. `ssh` is the command with options of somebody's."""
    return Others(
        source="run.hostfile",
        commands={name: [*shlex.split(ssh), *OPTIONS, name, _command()] for name in hosts},
        environment=os.environ,
        first=hosts[0].rpartition("@")[2],
    )


def _command() -> str:
    """What ssh runs on a machine: launch.sh of the same working tree, with the same environment if one was named."""
    named = [f"SLUICE_VENV={shlex.quote(sys.prefix)}"] if "SLUICE_VENV" in os.environ else []
    device = os.environ.get("SLUICE_DEVICE")
    named += [f"SLUICE_DEVICE={shlex.quote(device)}"] if device else []
    return " ".join([f"cd {shlex.quote(str(REPOSITORY))} &&", *named, "exec ./launch.sh node"])

"""The hostfile: the machines of a run besides the one that it is started on, a line each."""

from __future__ import annotations

import re
from pathlib import Path

_SLOTS = re.compile(r"slots=\d+")
_HOST = re.compile(r"(?:[\w.-]+@)?[\w.-]+|(?:[\w.-]+@)?[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[\w.-]+)?")
"""A name or an IPv4 address, or an IPv6 address, which has two colons at least."""


def read_hostfile(path: Path) -> list[str]:
    """The hosts in the order of the file, as ssh takes them (`name`, `user@name`, an alias of its configuration). Blank
    lines and what follows a # are left out. A `slots=8` of MPI's or DeepSpeed's files is read over: the hardware of a
    machine is asked of itself.

    Raises:
        ValueError: the file cannot be read, names no host, names one twice, or a line has something else in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"run.hostfile={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    hosts: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host, *others = words
        if re.fullmatch(r".+:\d+", host) and _HOST.fullmatch(host) is None:
            raise ValueError(
                f"{path}:{number}: {host} has a port or is a URL: write the host alone, and the port into run.ssh "
                '("ssh -p 2222") or ssh\'s own configuration'
            )
        if (
            host.startswith("-")
            or _HOST.fullmatch(host) is None
            or any(_SLOTS.fullmatch(word) is None for word in others)
        ):
            raise ValueError(f"{path}:{number}: {line.strip()!r} is no line of a hostfile: write HOST, or HOST slots=N")
        if host.rpartition("@")[2] in {known.rpartition("@")[2] for known in hosts}:
            raise ValueError(f"{path}:{number}: {host} is there already")
        hosts.append(host)
    if not hosts:
        raise ValueError(f"{path} names no host: write one a line, without the machine that the run is started on")
    return hosts

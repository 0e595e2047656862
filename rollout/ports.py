"""Ports for a rendezvous of processes."""

from __future__ import annotations

import socket

BACKLOG = 1024
"""How many processes may wait at a port until its owner answers."""


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def listen(address: str) -> socket.socket:
    """A socket that listens on a free port of that address, and on no other. Who tells others its port keeps it, so
    that nobody takes the port meanwhile."""
    family, kind, protocol, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.bind(where)
    listening.listen(BACKLOG)
    return listening

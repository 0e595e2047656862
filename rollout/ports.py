"""Ports at which processes meet."""

from __future__ import annotations

import socket

BACKLOG = 1024
"""How many processes may wait at a port until its owner answers."""


def listen(address: str) -> socket.socket:
    """A socket that listens on a free port of that address, and on no other. Who tells others its port keeps it, so
    that nobody takes the port meanwhile."""
    family, kind, protocol, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.bind(where)
    listening.listen(BACKLOG)
    return listening

"""Ports for processes of tests that find their own way to them."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

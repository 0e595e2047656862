"""Addresses and interfaces by route: which of a machine's own leads to another machine."""

from __future__ import annotations

import socket

import psutil

_PORT = 9
"""No datagram is sent, so that any port will do."""


def own_address(other: str) -> str:
    """The address of this machine from which `other`, a name or an address, is reached.

    Raises:
        OSError: it has no address, or no route leads there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(other, _PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the network interface that has an address of this machine; None if none has it."""
    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in found):
            return name
    return None

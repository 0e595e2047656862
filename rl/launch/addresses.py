"""Addresses and interfaces by route: which of a machine's own leads to another machine."""

from __future__ import annotations

import os
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


def name_interface(own: str) -> None:
    """Tell gloo in this process which interface to use: the one with this address, unless the environment names one. By
    itself gloo takes the address of the host name, which many machines resolve to loopback."""
    if own != "127.0.0.1" and (interface := interface_of(own)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

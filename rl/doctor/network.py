"""Reachability of every machine from every other one: each binds a port, publishes it, and is connected to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from rl.doctor.finding import Finding

CONNECT_S = 3.0
THREADS = 64
HELLO = b"sluice"


def listen(address: str) -> int:
    """Bind a port of this address, answer whoever connects to it while this process lives, and return the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family)
    threading.Thread(target=_answer, args=(server,), name="doctor", daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def _answer(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(HELLO)


def reach(ports: Mapping[str, int], limit_s: float = CONNECT_S) -> dict[str, str]:
    """Why each of these addresses could not be reached at its port. Those that were reached are left out."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: _connect(item[0], item[1], limit_s), ports.items())
        return {address: error for address, error in zip(ports, found, strict=True) if error is not None}


def _connect(address: str, port: int, limit_s: float) -> str | None:
    try:
        with socket.create_connection((address, port), timeout=limit_s) as connection:
            return None if connection.recv(len(HELLO)) == HELLO else "another program answers"
    except OSError as error:
        return error.strerror or str(error)


def judge(ports: Mapping[str, int], failed: Mapping[str, Mapping[str, str]]) -> Finding:
    """The finding. `failed` has, by the machine that connected, those that it did not reach and why."""
    wrong = [
        f"{origin} does not reach {target} at port {ports[target]} ({why})"
        for origin, targets in failed.items()
        for target, why in targets.items()
    ]
    if wrong:
        fix = (
            "a firewall, or a network that is not between them: let the machines of a run reach all ports of each other"
        )
        return Finding("pairs", False, f"{'; '.join(wrong)}: {fix}")
    count = len(failed) * (len(failed) - 1)
    return Finding("pairs", True, f"{count} ways between {len(failed)} machines" if count else "one machine")

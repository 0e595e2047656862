"""The actor on each machine that looks around there. What it looks at is in the other modules."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from rewards.sandbox.config import SandboxConfig
from rl.doctor import folder, network
from rl.doctor.facts import Facts, gather
from rollout.actors.process import enter_role


class Probe:
    def __init__(self, role: str, logs_dir: str) -> None:
        enter_role(role, logs_dir)
        self._address: str = ray.util.get_node_ip_address()

    def facts(self, others: Sequence[str], packages: Sequence[str], sandbox: SandboxConfig | None) -> Facts:
        return gather(self._address, others, packages, sandbox)

    def look(self, path: str, nonce: str) -> folder.Seen:
        return folder.look(Path(path), nonce, self._address)

    def listen(self) -> int:
        return network.listen(self._address)

    def reach(self, ports: Mapping[str, int]) -> dict[str, str]:
        return network.reach({address: port for address, port in ports.items() if address != self._address})

    def clock(self) -> float:
        return time.time()

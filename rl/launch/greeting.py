"""What the driver tells the other machines of a run, over their standard input: nothing of it is an argument, which
everybody on the machine could read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.paths import REPOSITORY

PACKAGES = ("rl", "rollout", "rewards", "locks")
OWN = ("CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""Environment variables that mean something else on another machine."""
SESSION = (
    *("HOME", "HOSTNAME", "LANG", "LOGNAME", "MAIL", "OLDPWD", "PATH", "PWD", "PYTHONPATH", "SHELL", "SHLVL", "TEMP"),
    *("TERM", "TMP", "TMPDIR", "USER", "VIRTUAL_ENV", "_"),
)
"""Those that the login on each machine sets, or the run itself; and how their names begin:"""
SESSIONS = ("BASH_", "DBUS_", "LC_", "RAY_", "SALLOC_", "SBATCH_", "SLUICE_", "SLURM", "SRUN_", "SSH_", "XDG_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """The head's address of Ray's, the token that Ray wants, the id of the run, variables to set, and what the code of
    the run is."""

    address: str
    token: str
    run_id: str
    environment: Mapping[str, str]
    code: str
    python: str

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Greeting:
        """Raises ValueError if it is no greeting."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"no greeting of a run came over standard input ({error})") from None

    def difference(self) -> str | None:
        """What this machine has that differs from the head's, in words; None if nothing does."""
        if platform.python_version() != self.python:
            return f"Python {platform.python_version()} is here, and {self.python} where the run was started"
        if code_digest() != self.code:
            return f"the code or the locks in {REPOSITORY} are not those of the machine where the run was started"
        return None


def greeting(address: str, token: str, run_id: str, environment: Mapping[str, str]) -> Greeting:
    """The greeting of this machine's run. Of `environment` the variables in PASSED go along."""
    kept = {*OWN, *SESSION}
    passed = {name: value for name, value in environment.items() if not (name in kept or name.startswith(SESSIONS))}
    return Greeting(
        address=address,
        token=token,
        run_id=run_id,
        environment=passed,
        code=code_digest(),
        python=platform.python_version(),
    )


def cluster_token() -> str:
    """What Ray's processes prove with that they belong to the cluster."""
    own = os.environ.get("RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    return own or Path(path).expanduser().read_text(encoding="utf-8").strip()


def code_digest(root: Path = REPOSITORY) -> str:
    """16 hex digits over the code and the locks of a working tree."""
    digest = hashlib.sha256()
    for path in _files(root):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".txt"))
